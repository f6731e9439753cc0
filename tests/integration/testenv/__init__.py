"""Nodes, pods and daemons for scenarios: real namespaces, real redirection, the real binaries.

    world = World(tmp_path)
    n1, n2 = world.node(), world.node()
    client, server = n1.pod("client"), n2.pod("server")
    world.start()                      # writes the local file, starts a daemon per node, enrols every pod
    server.echo(8080)
    with client.connect(server.ip, 8080) as s: ...

Everything is torn down with world.close(); a daemon that dies, leaks or trips a sanitizer fails the test then.
"""
from .daemon import Daemon
from .netns import Namespace
from .world import Node, Pod, World
from .wait import eventually

__all__ = ["Daemon", "Namespace", "Node", "Pod", "World", "eventually"]
