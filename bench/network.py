"""A slow link between two network namespaces."""

import contextlib
import os
import subprocess
import time

import measure
from contenders import NotRun, need, self_python

SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
BITS_PER_SECOND = 1_000_000_000
ONE_WAY_MS = 5


@contextlib.contextmanager
def slow_link(folder):
    """Yields the words that put a command on the server's side, those for the client's, and what the
    link is made of. netem where the kernel has it, bench/slow_link.py otherwise."""
    need("ip", "tc")
    if os.geteuid() != 0:
        raise NotRun("network namespaces need root")
    names = [f"nbdelta-bench-{os.getpid()}-{side}" for side in ("server", "client")]
    with contextlib.ExitStack() as stack:
        stack.callback(delete_namespaces, names)
        for name in names:
            try:
                measure.run_quietly("ip", "netns", "add", name)
            except measure.Failed as error:
                raise NotRun(f"no network namespaces here: {error}") from error
        if has_netem(names[0]):
            join_with_netem(names)
            how = "netem"
        else:
            stack.enter_context(relay(names, folder))
            how = "slow_link.py: this kernel has no netem"
        sides = [["ip", "netns", "exec", name] for name in names]
        yield sides[0], sides[1], how


def delete_namespaces(names):
    """Those that there are."""
    for name in names:
        if os.path.exists(f"/run/netns/{name}"):
            measure.run_quietly("ip", "netns", "delete", name)


def has_netem(name):
    words = f"-netns {name} qdisc add dev lo root netem delay 1ms".split()
    tried = subprocess.run(["tc", *words], capture_output=True, check=False)
    if tried.returncode == 0:
        measure.run_quietly("tc", "-netns", name, "qdisc", "delete", "dev", "lo", "root")
    return tried.returncode == 0


def join_with_netem(names):
    measure.run_quietly("ip", "link", "add", "slow0", "netns", names[0], "type", "veth",
                        "peer", "name", "slow0", "netns", names[1])
    for name, address in zip(names, (SERVER, CLIENT)):
        for words in (f"address add {address}/24 dev slow0", "link set slow0 up"):
            measure.run_quietly("ip", "-netns", name, *words.split())
        # limit: packets that are on their way or wait; netem's own 1000 lose some at this rate.
        measure.run_quietly("tc", "-netns", name, *(
            f"qdisc add dev slow0 root netem delay {ONE_WAY_MS}ms "
            f"rate {BITS_PER_SECOND}bit limit 100000").split())


@contextlib.contextmanager
def relay(names, folder):
    if not os.path.exists("/dev/net/tun"):
        raise NotRun("neither netem nor tun devices here")
    process = measure.Child(
        self_python("slow_link.py", names[0], SERVER, names[1], CLIENT, ONE_WAY_MS,
                    BITS_PER_SECOND), f"{folder}/slow_link.log")
    try:
        deadline = time.monotonic() + 10
        while "ready" not in process.output():
            if not process.running() or time.monotonic() > deadline:
                raise NotRun(f"slow_link.py does not start: {process.output()}")
            time.sleep(0.02)
        yield
    finally:
        process.stop()
