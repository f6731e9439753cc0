#!/usr/bin/python3
"""What tests/run does after it has installed packages: builds, runs every test, prints a summary.

    tests/run                 ASan+UBSan: all tests; TSan: the threaded part; release: all tests; lint
    tests/run --interop       real peers from packages
    tests/run --only STAGE    one of: asan tsan release lint interop (may be repeated)
    tests/run --filter TEXT   only tests whose name contains TEXT

Missing privileges or tools skip a test loudly; with CI=true they fail it. Results are kept in build/results for the conformance
lint (tests/lint/conformance), which checks that every case that docs/conformance.md claims was really run.
"""
import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, "build")
RESULTS = os.path.join(BUILD, "results")
JOBS = str(os.cpu_count() or 2)


def say(text):
    print(f"== {text}", flush=True)


class Totals:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []

    def add_junit(self, path, stage):
        """cmocka and pytest both write JUnit XML."""
        for case in ET.parse(path).getroot().iter("testcase"):
            name = f"{stage}: {case.get('classname') or os.path.basename(path)}: {case.get('name')}"
            if case.find("failure") is not None or case.find("error") is not None:
                self.fail(name, next((e.text or e.get("message") or "" for e in case if e.tag in ("failure", "error")), ""))
            elif case.find("skipped") is not None:
                self.skipped += 1
                reason = case.find("skipped").get("message") or ""
                print(f"SKIPPED {name} {reason}")
                if os.environ.get("CI") == "true":
                    self.fail(name, "skipped under CI=true: " + reason)
                    self.skipped -= 1
            else:
                self.passed += 1

    def fail(self, name, text=""):
        self.failed += 1
        self.failures.append((name, text))


TOTALS = Totals()


def run(cmd, **kw):
    return subprocess.run(cmd, **kw)


def build(stage, *options):
    """Configures and builds build/<stage>; a failure ends the run."""
    path = os.path.join(BUILD, stage)
    os.makedirs(path, exist_ok=True)
    say(f"{stage}: building")
    start = time.monotonic()
    launcher = ["-DCMAKE_C_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    configure = ["cmake", "-S", ROOT, "-B", path, "-G", "Ninja", "-DZT_WERROR=ON"] + launcher + list(options)
    if run(configure, stdout=subprocess.DEVNULL).returncode or run(["ninja", "-C", path, "--quiet"]).returncode:
        TOTALS.fail(f"{stage}: build")
        finish()
    say(f"{stage}: built in {time.monotonic() - start:.0f} s")
    return path


def results_dir(stage):
    path = os.path.join(RESULTS, stage)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


SANITIZER_ENV = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def ctest(stage, path, pattern=None, exclude=None):
    """Unit tests and corpus replays. cmocka writes one XML file a group (the build says where) and never over one that is there; a
    binary that dies without one is a failure."""
    out, written = results_dir(stage + "-unit"), os.path.join(path, "results")
    shutil.rmtree(written, ignore_errors=True)
    os.makedirs(written)
    env = dict(os.environ, CMOCKA_MESSAGE_OUTPUT="XML", **SANITIZER_ENV)
    cmd = ["ctest", "--test-dir", path, "-j", JOBS, "--output-on-failure", "--output-junit", os.path.join(out, "ctest.junit")]
    if pattern:
        cmd += ["-R", pattern]
    if exclude:
        cmd += ["-E", exclude]
    say(f"{stage}: unit tests")
    log = os.path.join(out, "ctest.log")
    with open(log, "w") as f:
        run(cmd, env=env, stdout=f, stderr=subprocess.STDOUT)
    for case in ET.parse(os.path.join(out, "ctest.junit")).getroot().iter("testcase"):
        if case.get("status") != "run":
            TOTALS.fail(f"{stage}: {case.get('name')}", case.findtext("system-out") or "")
        elif not case.get("name").startswith("unit."):
            TOTALS.passed += 1
    for name in sorted(os.listdir(written)):
        shutil.move(os.path.join(written, name), out)
    for name in sorted(os.listdir(out)):
        if name.endswith(".xml"):
            TOTALS.add_junit(os.path.join(out, name), stage)


def pytest(stage, path, folder="integration", marker=None):
    """Scenarios with the real binaries, in parallel: each makes its own namespaces."""
    out = results_dir(f"{stage}-{folder}")
    env = dict(os.environ, ZT_BUILD=path, PYTHONDONTWRITEBYTECODE="1", **SANITIZER_ENV)
    where = os.path.join(ROOT, "tests", folder)
    if not os.path.isdir(where) or not any(n.startswith("test_") for n in os.listdir(where)):
        return
    xml = os.path.join(out, "pytest.xml")
    cmd = ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", xml, "-n", str(2 * int(JOBS)),
           "--dist", "load", "-rs", where]
    if marker:
        cmd += ["-m", marker]
    if ARGS.filter:
        cmd += ["-k", ARGS.filter]
    say(f"{stage}: {folder}")
    code = run(cmd, env=env, cwd=ROOT).returncode
    if not os.path.exists(xml):
        TOTALS.fail(f"{stage}: {folder}: pytest ended with {code} and no results")
        return
    TOTALS.add_junit(xml, stage)
    if code not in (0, 1, 5):
        TOTALS.fail(f"{stage}: {folder}: pytest ended with {code}")


def script(stage, *cmd):
    """A check that is a program of its own: exit status 0 passes."""
    say(f"{stage}: {' '.join(os.path.relpath(c, ROOT) if c.startswith('/') else c for c in cmd)}")
    if run(list(cmd), cwd=ROOT).returncode:
        TOTALS.fail(f"{stage}: {os.path.relpath(cmd[0], ROOT)}")
    else:
        TOTALS.passed += 1


def stage_asan():
    path = build("asan", "-DZT_SANITIZE=asan", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    ctest("asan", path, ARGS.filter)
    pytest("asan", path)


def stage_tsan():
    """Threads: loops and mailboxes, the store's lock, log, metrics, secrets, sessions and revocation lists, and whole daemons under load."""
    path = build("tsan", "-DZT_SANITIZE=tsan", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    ctest("tsan", path, ARGS.filter or r"unit\.(base|loop|net|rpc|state|secrets|xds|config|dns|proxy|ops|cni)\.")
    pytest("tsan", path, marker="threads")


def stage_release():
    path = build("release", "-DCMAKE_BUILD_TYPE=Release")
    ctest("release", path, ARGS.filter)
    pytest("release", path)


def stage_lint():
    script("lint", os.path.join(ROOT, "tests", "lint", "run"))
    if not ARGS.filter and "asan" in STAGES:
        script("lint", os.path.join(ROOT, "tests", "lint", "conformance"), RESULTS)


def stage_interop():
    path = build("release", "-DCMAKE_BUILD_TYPE=Release")
    pytest("interop", path, folder="interop")


def finish():
    for name, text in TOTALS.failures:
        print(f"FAILED {name}")
        for line in (text or "").strip().splitlines()[-40:]:
            print("    " + line)
    print(f"{TOTALS.passed} passed, {TOTALS.failed} failed, {TOTALS.skipped} skipped", flush=True)
    sys.exit(1 if TOTALS.failed or not TOTALS.passed else 0)


ALL = {"asan": stage_asan, "tsan": stage_tsan, "release": stage_release, "lint": stage_lint, "interop": stage_interop}
PARSER = argparse.ArgumentParser(prog="tests/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--interop", action="store_true")
PARSER.add_argument("--only", action="append", choices=sorted(ALL))
PARSER.add_argument("--filter")
ARGS = PARSER.parse_args()
STAGES = ARGS.only or (["interop"] if ARGS.interop else ["asan", "tsan", "release", "lint"])


def main():
    started = time.monotonic()
    for stage in STAGES:
        ALL[stage]()
    say(f"done in {time.monotonic() - started:.0f} s")
    finish()


if __name__ == "__main__":
    main()
