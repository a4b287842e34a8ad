"""What the cases are measured on. Each scenario sets up data and yields its contenders."""

import contextlib
import os

import contenders as by
import data
import measure
import network
from data import GIB, KIB, MIB, TIB, apart

# The same where nbdelta reads the image itself, which it can on the image's own machine.
DIRECT = "nbdelta delta:"
PORT = 28000 + os.getpid() % 4000


class Bench:
    """The folder, the programs and the sizes of one run."""

    def __init__(self, tools, folder, scale):
        self.tools = tools
        self.folder = folder
        self.scale = scale
        self.make = by.Maker(tools, folder)
        self.note = ""
        self.page_seconds = None  # measure.page_seconds(folder)

    def path(self, name):
        return f"{self.folder}/{name}"

    def size(self, small, full):
        return full if self.scale == "full" else small


@contextlib.contextmanager
def full(bench):
    """full pull of random data, raw to raw, Unix socket"""
    yield full_raw(bench, by.unix_wire(bench.folder), bench.size(256 * MIB, 4 * GIB), cp=True)


@contextlib.contextmanager
def tls(bench):
    """full pull of random data, raw to raw, TLS on TCP, loopback"""
    yield full_raw(bench, by.tls_wire(bench.folder, PORT), bench.size(128 * MIB, 4 * GIB), cp=False)


def full_raw(bench, wire, size, cp):
    make, disk, target = bench.make, bench.path("disk.raw"), bench.path("copy.raw")
    apart(data.random_file, disk, size)
    check = by.same_bytes(disk, target)
    runs = [make.nbdelta_pull("nbdelta", wire, make.delta(wire, disk, "format=raw"), "", target,
                              check),
            make.nbdcopy(wire, make.nbdkit(wire, "file", disk), target, check)]
    if cp:
        runs += [measure.Contender("cp", ["cp", disk, target], target=target, check=check),
                 make.nbdelta_pull_direct(DIRECT, disk, "format=raw", target, check)]
    return runs


@contextlib.contextmanager
def qcow2(bench):
    """full pull of random data, qcow2 to qcow2, Unix socket"""
    make, disk, target = bench.make, bench.path("disk.qcow2"), bench.path("copy.qcow2")
    apart(data.full_disk, disk, bench.size(256 * MIB, 4 * GIB), 64 * KIB)
    wire = by.unix_wire(bench.folder)
    check = by.same_disk(disk, "qcow2", target, "qcow2")
    yield [make.nbdelta_pull("nbdelta", wire, make.delta(wire, disk), "", target, check),
           make.nbdelta_pull_direct(DIRECT, disk, "format=qcow2", target, check),
           measure.Contender("qemu-img convert", ["qemu-img", "convert", "-W", "-m", "16", "-f", "raw",
                                                  "-O", "qcow2", wire.uri_of(), target],
                             make.qemu_nbd(disk), make.pid_file, target, check=check)]


@contextlib.contextmanager
def incremental(bench):
    """incremental: random blocks of 64 KiB have changed"""
    yield changed(bench, 64 * KIB, shuffled=False)


@contextlib.contextmanager
def fragmented(bench):
    """incremental: random clusters of 16 KiB have changed, and lie at random in the image"""
    yield changed(bench, 16 * KIB, shuffled=True)


def changed(bench, cluster_size, shuffled):
    make, disk = bench.make, bench.path("disk.qcow2")
    disk_size = bench.size(4 * GIB, 64 * GIB)
    apart(data.changed_disk, disk, disk_size, cluster_size, bench.size(64 * MIB, GIB), True, shuffled)
    raw = bench.path("copy.raw")
    check = by.same_disk(disk, "qcow2", raw, "raw")
    return [pull_changes(bench, "nbdelta", disk, disk_size),
            pull_changes(bench, DIRECT, disk, disk_size, direct=True),
            make.extents_copy(disk, disk_size, raw, check),
            make.virtnbdbackup_loop(disk, raw, check)]


def pull_changes(bench, name, disk, disk_size, wire=None, options=(), direct=False):
    """nbdelta, from the bitmap of `disk` to an overlay over an empty backup."""
    make, target = bench.make, bench.path("copy.qcow2")
    base = bench.path(f"base-{disk_size}.qcow2")
    measure.run_quietly("qemu-img", "create", "-q", "-f", "qcow2", base, str(disk_size))
    wire = wire or by.unix_wire(bench.folder)
    if direct:
        return make.nbdelta_pull_direct(name, disk, f"bitmap={data.BITMAP}", target,
                                        by.same_disk(disk, "qcow2", target, "qcow2"), "--base", base)
    return make.nbdelta_pull(name, wire, make.delta(wire, disk), f"dirty:{data.BITMAP}", target,
                             by.same_disk(disk, "qcow2", target, "qcow2"), "--base", base, *options)


@contextlib.contextmanager
def disk_size(bench):
    """incremental: as much has changed, on disks of different sizes"""
    runs = []
    for name, size in (("small disk", bench.size(4 * GIB, 64 * GIB)),
                       ("large disk", bench.size(256 * GIB, 16 * TIB))):
        disk = bench.path(f"{name.split()[0]}.qcow2")
        apart(data.changed_disk, disk, size, 64 * KIB, bench.size(64 * MIB, GIB))
        runs += [pull_changes(bench, name, disk, size),
                 pull_changes(bench, f"{name}, delta:", disk, size, direct=True)]
    yield runs


@contextlib.contextmanager
def dirty_map(bench):
    """map of very many changed extents, to a file"""
    make, disk, target = bench.make, bench.path("disk.qcow2"), bench.path("map.txt")
    size = bench.size(128 * GIB, 16 * TIB)
    expected = bench.path("expected.txt")
    apart(data.mapped_disk, disk, expected, size, 64 * KIB, size // 24)
    by.need("nbdinfo", "awk")
    unix, tcp = by.unix_wire(bench.folder), by.tcp_wire("127.0.0.1", PORT)

    runs = []
    for name, wire in (("nbdelta", unix), ("nbdelta over TCP", tcp)):
        runs.append(measure.Contender(
            name,
            by.to_file(target, bench.tools.nbdelta, "map", wire.uri_of(f"dirty:{data.BITMAP}")),
            make.delta(wire, disk), make.pid_file, target,
            check=by.same_map(expected, target, '$3 == "changed"')))
    runs.append(measure.Contender(
        DIRECT, by.to_file(target, bench.tools.nbdelta, "map", f"delta:{disk}?bitmap={data.BITMAP}"),
        target=target, check=by.same_map(expected, target, '$3 == "changed"')))
    runs.append(measure.Contender(
        "nbdinfo",
        by.to_file(target, "nbdinfo", f"--map=qemu:dirty-bitmap:{data.BITMAP}", unix.uri_of()),
        make.qemu_nbd(disk, "--bitmap", data.BITMAP), make.pid_file, target,
        check=by.same_map(expected, target, '$4 == "dirty"')))
    yield runs


@contextlib.contextmanager
def latency(bench):
    """incremental: random blocks of 64 KiB, over 10 ms round trip and 1 Gbit/s"""
    with network.slow_link(bench.folder) as (server_side, client_side, how):
        make, disk, raw = bench.make, bench.path("disk.qcow2"), bench.path("disk.raw")
        size = bench.size(4 * GIB, 64 * GIB)
        apart(data.changed_disk, disk, size, 64 * KIB, bench.size(64 * MIB, GIB))
        apart(data.data_of, disk, raw)
        wire = by.tcp_wire(network.SERVER, PORT, server_side, client_side)
        target = bench.path("copy.raw")
        bench.note = f"link: {how}"
        yield [pull_changes(bench, "nbdelta", disk, size, wire),
               make.nbdcopy(wire, make.nbdkit(wire, "file", raw), target,
                            by.same_bytes(raw, target)),
               pull_changes(bench, "nbdelta --depth 64", disk, size, wire, ("--depth", "64"))]


@contextlib.contextmanager
def compressed(bench):
    """full pull of a compressed (zstd) qcow2 image to qcow2, Unix socket"""
    make, disk, target = bench.make, bench.path("disk.qcow2"), bench.path("copy.qcow2")
    raw = bench.path("disk.raw")
    apart(data.text_file, raw, bench.size(64 * MIB, 2 * GIB))
    measure.run_quietly("qemu-img", "convert", "-c", "-W", "-m", "16", "-f", "raw", "-O", "qcow2",
                        "-o", "compression_type=zstd", raw, disk)
    measure.remove(raw)
    wire = by.unix_wire(bench.folder)
    check = by.same_disk(disk, "qcow2", target, "qcow2")
    yield [make.nbdelta_pull("nbdelta", wire, make.delta(wire, disk), "", target, check),
           make.nbdelta_pull_direct(DIRECT, disk, "format=qcow2", target, check),
           measure.Contender("qemu-img convert", ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2",
                                                  disk, target], target=target, check=check)]


@contextlib.contextmanager
def reflinks(bench):
    """full pull of random data, qcow2 to qcow2, on a file system that copies by reference (XFS)"""
    size = bench.size(256 * MIB, 4 * GIB)
    mount = mount_xfs(bench, 3 * size)
    disk, target = f"{mount}/disk.qcow2", f"{mount}/copy.qcow2"
    apart(data.full_disk, disk, size, 64 * KIB)
    same = by.same_disk(disk, "qcow2", target, "qcow2")
    used_before = used_bytes(mount)

    def by_reference():
        same()
        used = used_bytes(mount) - used_before
        if used > size // 32:
            raise measure.Failed(f"{used / MIB:.0f} MiB of data blocks were written")

    yield [bench.make.nbdelta_pull_direct(DIRECT, disk, "format=qcow2", target, by_reference),
           measure.Contender("cp", ["cp", "--reflink=never", disk, target], target=target,
                             check=same)]


def mount_xfs(bench, size):
    """Where a new XFS is mounted: measure.remove_folder unmounts it with the rest of the scenario."""
    by.need("mkfs.xfs")
    image, mount = bench.path("xfs"), bench.path("mount")
    with open(image, "wb") as file:
        file.truncate(size)
    measure.run_quietly("mkfs.xfs", "-q", "-m", "reflink=1", image)
    os.mkdir(mount)
    try:
        measure.run_quietly("mount", "-o", "loop", image, mount)
    except measure.Failed as error:
        raise by.NotRun(f"XFS cannot be mounted here: {error}") from error
    return mount


def used_bytes(mount):
    os.sync()
    facts = os.statvfs(mount)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


@contextlib.contextmanager
def opening(bench):
    """a qcow2 image of 16 TiB is opened, and a client greeted"""
    disk = bench.path("disk.qcow2")
    apart(data.changed_disk, disk, 16 * TIB, 64 * KIB, bench.size(64 * MIB, GIB), False)
    socket = bench.path("socket")
    yield [measure.Opener("nbdkit delta", bench.make.delta(by.unix_wire(bench.folder), disk), socket),
           measure.Opener("qemu-nbd", bench.make.qemu_nbd(disk), socket)]
