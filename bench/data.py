"""Makes the disks that are copied. Each function makes one file; call them through apart()."""

import array
import os
import random
import signal
import struct
import traceback

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
BITMAP = "b0"
COPIED = 1 << 63  # qcow2 specification, "L2 table entry": exactly one reference


def apart(function, *arguments):
    """Calls it in a process of its own, so that this one stays small: see measure.Usage."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    try:
        status = os.waitpid(child, 0)[1]
    except BaseException:  # interrupted: it must not go on writing, nor keep a mount busy
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if status != 0:
        raise RuntimeError(f"{function.__name__}{arguments}: failed")


def random_file(path, size):
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(os.urandom(min(4 * MIB, size - file.tell())))


def text_file(path, size):
    """Random hexadecimal digits: zstd makes half of them."""
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(os.urandom(min(4 * MIB, size - file.tell()) // 2).hex().encode())


def random_clusters(disk_size, cluster_size, count, seed):
    """Which clusters of a disk have changed, ascending."""
    total = disk_size // cluster_size
    return array.array("Q", sorted(random.Random(seed).sample(range(total), count)))


class Qcow2:
    """A qcow2 image that holds some clusters of a disk, and a persistent bitmap in which just these
    are set (its granularity is the cluster size). Written as a whole, in the order

        header, bitmap directory, bitmap table, bitmap, refcounts, L1 table, L2 tables, data

    with every cluster in use once, so that `qemu-img check` has nothing to say. QEMU itself would
    need hours for millions of clusters.
    """

    def __init__(self, disk_size, cluster_size, clusters, shuffled=False):
        self.disk_size = disk_size
        self.cluster_size = cluster_size
        self.clusters = clusters
        self.per_table = cluster_size // 8
        self.tables = []  # guest: which L2 tables there are
        for cluster in clusters:
            if not self.tables or self.tables[-1] != cluster // self.per_table:
                self.tables.append(cluster // self.per_table)
        self._lay_out()
        place = range(len(clusters))
        if shuffled:
            place = list(place)
            random.Random(1).shuffle(place)
        self.host = array.array("Q", (self.data + at * cluster_size for at in place))

    def _lay_out(self):
        def clusters_of(length):
            return -(-length // self.cluster_size)

        total = self.disk_size // self.cluster_size
        self.bitmap_bytes = -(-total // 8)
        l1_entries = -(-total // self.per_table)
        counted = 0  # refcount blocks hold their own clusters' counts too
        while True:
            blocks = -(-counted // (self.cluster_size // 2))
            lengths = [
                ("header", 1), ("directory", 1),
                ("bitmap_table", clusters_of(8 * clusters_of(self.bitmap_bytes))),
                ("bitmap", clusters_of(self.bitmap_bytes)),
                ("refcount_table", clusters_of(8 * blocks)), ("refcount_blocks", blocks),
                ("l1", clusters_of(8 * l1_entries)), ("l2", len(self.tables)),
                ("data", len(self.clusters))]
            if sum(length for _, length in lengths) == counted:
                break
            counted = sum(length for _, length in lengths)
        self.in_use = counted
        self.length = dict(lengths)
        at = 0
        for name, length in lengths:
            setattr(self, name, at * self.cluster_size)
            at += length

    def write(self, path, fill):
        """With `fill` the data is random; without, a hole."""
        with open(path, "wb") as file:
            self._write_header(file)
            self._write_bitmap(file)
            self._write_refcounts(file)
            self._write_tables(file)
            file.truncate(self.in_use * self.cluster_size)
            if fill:
                file.seek(self.data)
                for left in range(len(self.clusters) * self.cluster_size, 0, -4 * MIB):
                    file.write(os.urandom(min(left, 4 * MIB)))

    def write_extents(self, path):
        """Where the data is, for extents_copy: (in the image, on the disk, length) as native
        64-bit numbers; neighbours on both sides are one."""
        with open(path, "wb") as file:
            extent = None
            for cluster, host in zip(self.clusters, self.host):
                guest = cluster * self.cluster_size
                if extent and extent[0] + extent[2] == host and extent[1] + extent[2] == guest:
                    extent[2] += self.cluster_size
                    continue
                if extent:
                    file.write(struct.pack("=QQQ", *extent))
                extent = [host, guest, self.cluster_size]
            if extent:
                file.write(struct.pack("=QQQ", *extent))

    def _write_header(self, file):
        bits = self.cluster_size.bit_length() - 1
        l1_entries = -(-self.disk_size // (self.cluster_size * self.per_table))
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, bits, self.disk_size, 0, l1_entries,
            self.l1, self.refcount_table, self.length["refcount_table"], 0, 0,
            0, 0, 1,  # incompatible, compatible, autoclear: the bitmaps extension is consistent
            4, 104)
        directory_entry = struct.pack(
            ">QIIBBHI", self.bitmap_table, self.length["bitmap"], 0, 1, bits, len(BITMAP), 0)
        directory_entry += BITMAP.encode()
        directory_entry += bytes(-len(directory_entry) % 8)
        bitmaps = struct.pack(">IIIIQQ", 0x23852875, 24, 1, 0, len(directory_entry),
                              self.directory)
        file.write(header + bitmaps + bytes(8))
        file.seek(self.directory)
        file.write(directory_entry)

    def _write_bitmap(self, file):
        write_be64(file, self.bitmap_table,
                   (self.bitmap + i * self.cluster_size for i in range(self.length["bitmap"])))
        bits = bytearray(self.bitmap_bytes)
        for cluster in self.clusters:
            bits[cluster >> 3] |= 1 << (cluster & 7)
        file.seek(self.bitmap)
        file.write(bits)

    def _write_refcounts(self, file):
        blocks = self.length["refcount_blocks"]
        write_be64(file, self.refcount_table,
                   (self.refcount_blocks + i * self.cluster_size for i in range(blocks)))
        file.seek(self.refcount_blocks)
        file.write(b"\0\1" * self.in_use)

    def _write_tables(self, file):
        l1 = [0] * (self.tables[-1] + 1 if self.tables else 0)
        for i, table in enumerate(self.tables):
            l1[table] = (self.l2 + i * self.cluster_size) | COPIED
        write_be64(file, self.l1, l1)
        file.seek(self.l2)
        table = number = None
        for cluster, host in zip(self.clusters, self.host):
            if cluster // self.per_table != number:
                if table is not None:
                    table.byteswap()
                    file.write(table)
                table = array.array("Q", bytes(self.cluster_size))
                number = cluster // self.per_table
            table[cluster % self.per_table] = host | COPIED
        if table is not None:
            table.byteswap()
            file.write(table)


def write_be64(file, offset, numbers):
    numbers = array.array("Q", numbers)
    numbers.byteswap()
    file.seek(offset)
    file.write(numbers)


def changed_disk(path, disk_size, cluster_size, changed, fill=True, shuffled=False):
    """A disk of which `changed` bytes, in clusters at random places, have changed. Beside it,
    PATH.extents: see Qcow2.write_extents()."""
    count = changed // cluster_size
    image = Qcow2(disk_size, cluster_size, random_clusters(disk_size, cluster_size, count, 7),
                  shuffled)
    image.write(path, fill)
    if fill:
        image.write_extents(path + ".extents")


def full_disk(path, disk_size, cluster_size):
    """A disk every byte of which is random, in a qcow2 image."""
    image = Qcow2(disk_size, cluster_size, array.array("Q", range(disk_size // cluster_size)))
    image.write(path, fill=True)


def mapped_disk(path, expected, disk_size, cluster_size, changed):
    """As changed_disk(), with holes for data; `expected` is a text file with a line "OFFSET LENGTH"
    for each changed extent."""
    count = changed // cluster_size
    image = Qcow2(disk_size, cluster_size, random_clusters(disk_size, cluster_size, count, 7))
    image.write(path, fill=False)
    with open(expected, "w", encoding="ascii") as file:
        begin = end = 0
        for cluster in image.clusters:
            if cluster != end:
                if end > begin:
                    file.write(f"{begin * cluster_size} {(end - begin) * cluster_size}\n")
                begin = cluster
            end = cluster + 1
        file.write(f"{begin * cluster_size} {(end - begin) * cluster_size}\n")


def data_of(image, raw):
    """All that changed_disk() has put into an image, in order of the disk, as a raw image."""
    with open(image + ".extents", "rb") as extents, open(image, "rb") as source, \
            open(raw, "wb") as target:
        for host, _, length in struct.iter_unpack("=QQQ", extents.read()):
            source.seek(host)
            target.write(source.read(length))
