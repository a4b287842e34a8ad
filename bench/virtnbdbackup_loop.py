#!/usr/bin/python3
"""The way virtnbdbackup copies: Python, one connection, the dirty extents by block status, then one
synchronous read at a time, a checksum, a write. Without its compression and its own file format.

    virtnbdbackup_loop.py URI CONTEXT TARGET
"""

import os
import sys
import zlib

import nbd

DIRTY = 1  # NBD's bitmap contexts: bit 0
LONGEST_READ = 32 << 20
LONGEST_STATUS = 1 << 30


def dirty_extents(connection, context):
    """[(offset, length)], neighbours joined."""
    extents = []
    size = connection.get_size()
    offset = 0
    while offset < size:
        entries = []

        def remember(name, _offset, flat, _error):
            if name == context:
                entries.extend(flat)

        connection.block_status(min(size - offset, LONGEST_STATUS), offset, remember)
        for length, flags in zip(entries[0::2], entries[1::2]):
            if flags & DIRTY:
                if extents and sum(extents[-1]) == offset:
                    extents[-1] = (extents[-1][0], extents[-1][1] + length)
                else:
                    extents.append((offset, length))
            offset += length
    return extents


def main():
    uri, context, target = sys.argv[1:]
    connection = nbd.NBD()
    connection.add_meta_context(context)
    connection.connect_uri(uri)
    checksum = 1
    with open(target, "wb", buffering=0) as file:
        os.ftruncate(file.fileno(), connection.get_size())
        for offset, length in dirty_extents(connection, context):
            end = offset + length
            while offset < end:
                data = connection.pread(min(end - offset, LONGEST_READ), offset)
                checksum = zlib.adler32(data, checksum)
                os.pwrite(file.fileno(), data, offset)
                offset += len(data)
    connection.shutdown()
    print(f"adler32 {checksum:08x}")


main()
