"""The cases: what must hold, each against whom, in which scenario."""

from dataclasses import dataclass

import network
import scenarios
from data import GIB, MIB


@dataclass
class Bound:
    """One comparison. `value` takes both samples of a round (`theirs` may be None) and the bytes
    copied; the median over the rounds must be at least, or at most, the given number."""

    scenario: object
    ours: str
    theirs: str | None
    what: str
    value: object
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"

    @property
    def limit(self):
        return f"at least {self.at_least:g}" if self.at_most is None else f"at most {self.at_most:g}"

    def holds(self, value):
        return value >= self.at_least if self.at_most is None else value <= self.at_most

    def against_limit(self, value):
        """1 is just enough, more is better."""
        return value / self.at_least if self.at_most is None else self.at_most / value


@dataclass
class Case:
    name: str
    title: str
    bounds: list


def faster(scenario, theirs, at_least, ours="nbdelta"):
    return Bound(scenario, ours, theirs, f"throughput of {ours} / {theirs}",
                 lambda our, their, _: their.seconds / our.seconds, at_least=at_least)


def faster_in_both_ways(scenario, theirs, at_least, direct_at_least=None):
    return [faster(scenario, theirs, at_least),
            faster(scenario, theirs, direct_at_least or at_least, scenarios.DIRECT)]


def client_memory(scenario, ours, mebibytes, what):
    return Bound(scenario, ours, None, f"client memory of {ours}, {what}",
                 lambda our, *_: our.client.peak_bytes / MIB, at_most=mebibytes, unit="MiB")


def link_share(our, _, size):
    return 100 * size * 8 / our.seconds / network.BITS_PER_SECOND


BOTH = ("nbdelta", scenarios.DIRECT)

# Every nbdelta with its defaults, but for the maps, whose memory is the map's above all.
BY_SCENARIO = {
    scenarios.full: BOTH, scenarios.qcow2: BOTH, scenarios.incremental: BOTH,
    scenarios.fragmented: BOTH,
    scenarios.disk_size: [f"{disk} disk{how}" for disk in ("small", "large")
                          for how in ("", ", delta:")],
    scenarios.tls: ["nbdelta"], scenarios.latency: ["nbdelta"], scenarios.compressed: BOTH,
    scenarios.reflinks: [scenarios.DIRECT]}

CASES = [
    Case("full-nbdcopy", "full pull against nbdcopy from nbdkit's file plugin",
         faster_in_both_ways(scenarios.full, "nbdcopy", 1.7)),
    Case("full-cp", "full pull against cp", faster_in_both_ways(scenarios.full, "cp", 0.9, 1)),
    Case("qcow2-convert", "full pull, qcow2 to qcow2, against qemu-img convert -W -m 16 from qemu-nbd",
         faster_in_both_ways(scenarios.qcow2, "qemu-img convert", 2)),
    Case("incremental-loop", "incremental, blocks of 64 KiB, against a pread/pwrite loop",
         faster_in_both_ways(scenarios.incremental, "pread/pwrite loop", 0.8)),
    Case("incremental-virtnbdbackup", "incremental, blocks of 64 KiB, against virtnbdbackup's loop",
         faster_in_both_ways(scenarios.incremental, "virtnbdbackup's loop", 5)),
    Case("fragmented-loop", "incremental, fragmented clusters of 16 KiB, against a pread/pwrite loop",
         faster_in_both_ways(scenarios.fragmented, "pread/pwrite loop", 0.6)),
    Case("map", "map of 10 million changed extents against nbdinfo --map on qemu-nbd -B",
         [*faster_in_both_ways(scenarios.dirty_map, "nbdinfo", 5),
          *(client_memory(scenarios.dirty_map, ours, 128, "very many extents")
            for ours in BOTH)]),
    Case("disk-size", "1 GiB changed on 16 TiB against 64 GiB",
         [Bound(scenarios.disk_size, f"large disk{how}", f"small disk{how}",
                f"seconds, large disk{how} / small disk{how}",
                lambda our, their, _: our.seconds / their.seconds, at_most=1.15)
          for how in ("", ", delta:")]),
    Case("tls", "full pull over TCP with TLS against nbdcopy with TLS",
         [faster(scenarios.tls, "nbdcopy", 1.5)]),
    Case("latency", "blocks of 64 KiB over 10 ms and 1 Gbit/s against nbdcopy on a raw image",
         [faster(scenarios.latency, "nbdcopy", 1),
          Bound(scenarios.latency, "nbdelta", None, "share of the link", link_share, at_least=90,
                unit="%")]),
    Case("compressed", "full pull of a compressed (zstd) image against qemu-img convert",
         faster_in_both_ways(scenarios.compressed, "qemu-img convert", 2)),
    Case("client-cpu", "client's processor seconds for a GiB against nbdcopy",
         [Bound(scenarios.full, ours, "nbdcopy", f"client's processor seconds, {ours} / nbdcopy",
                lambda our, their, _: our.client.cpu_seconds / their.client.cpu_seconds,
                at_most=0.8) for ours in BOTH]),
    Case("client-memory", "client memory beside the map, at any size: of every case but map",
         [client_memory(scenario, ours, 64, scenario.__name__)
          for scenario, all_ours in BY_SCENARIO.items() for ours in all_ours]),
    Case("reflink", "full pull where the file system copies by reference, against cp --reflink=never",
         [faster(scenarios.reflinks, "cp", 20, scenarios.DIRECT)]),
    Case("open", "qcow2 image of 16 TiB opened and ready to serve, against qemu-nbd",
         [faster(scenarios.opening, "qemu-nbd", 1, ours="nbdkit delta")]),
]

# Bytes that a scenario's contenders copy, where a bound asks for them.
COPIED = {scenarios.latency: lambda bench: bench.size(64 * MIB, GIB)}
