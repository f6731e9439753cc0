#!/usr/bin/python3
"""The story that deploy/demo tells, and `up` and `down`.

lab.py lays out the two nodes and their pods, from_file.py or from_istiod.py tells the daemons of them, story.py is the steps, and
envoy_story.py those of --waypoint and --gateway. This file reads the command line and makes sure that whatever ends us, nothing is left behind.
"""
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
import envoy_story  # noqa: E402
import lab  # noqa: E402
import story  # noqa: E402
from from_file import FromFile  # noqa: E402


class Ended(Exception):
    """A signal asks us to end."""


def on_signal(number, _frame):
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)  # the clean-up is not to be interrupted
    raise Ended(number)


def tell(bin_dir, leave_running, source, teller=story, prepare=None):
    mesh = lab.Lab(bin_dir, leave_running, source)
    passed = False
    try:
        if prepare:
            prepare(mesh)
        mesh.start()
        if leave_running:
            mesh.enrol_all()
            print(mesh.what_to_type_next())
            passed = True
        else:
            passed = teller.tell(mesh)
    except Ended as e:
        print(f"\ninterrupted by signal {e}, cleaning up")
    except (lab.Trouble, RuntimeError) as e:
        print(f"\ndeploy/demo: {e}", file=sys.stderr)
        mesh.show_logs()
    finally:
        if not (leave_running and passed):
            mesh.stop()
    return 0 if passed else 1


def main():
    bin_dir, verb, envoy = sys.argv[1:4]
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, on_signal)
    if verb == "down":
        lab.take_down_all()
        return 0
    if verb == "--istiod":
        from from_istiod import FromIstiod
        return tell(bin_dir, False, FromIstiod)
    if envoy:
        return tell(bin_dir, False, FromFile, envoy_story, lambda mesh: envoy_story.prepare(mesh, verb, envoy))
    return tell(bin_dir, verb == "up", FromFile)


sys.exit(main())
