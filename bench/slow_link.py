#!/usr/bin/python3
"""A slow link between two network namespaces, for kernels without netem: takes packets from a tun
device in one to a tun device in the other, with a rate and a delay.

    slow_link.py NAMESPACE ADDRESS NAMESPACE ADDRESS ONE_WAY_MS BITS_PER_SECOND

Prints "ready" and goes on until it is killed. Like a virtual machine's network card it takes TCP
segments of up to 64 KiB (that is what makes it fast enough), but counts the headers that these would
have as packets of 1500 bytes.
"""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
VNET_HEADER = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, ...
CLONE_NEWNET = 0x40000000
LONGEST_PACKET = 65536 + VNET_HEADER.size
HEADERS = 40 + 12  # IP, TCP, its timestamps
MOST_QUEUED = 32 << 20  # bytes; more are dropped


def open_tun(namespace, address):
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF,
                struct.pack("16sH22x", b"slow0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tun, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER.size))
    fcntl.ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    for words in (f"address add {address}/24 dev slow0", "link set slow0 up", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True)
    return tun


class Direction:
    """Packets on their way from one tun device to the other."""

    def __init__(self, source, target, delay, rate):
        self.source, self.target = source, target
        self.delay, self.rate = delay, rate
        self.queue = deque()  # (when it arrives, packet)
        self.queued = 0
        self.free_at = 0.0  # when the link has sent all that is queued

    def take(self, now):
        while True:
            try:
                packet = os.read(self.source, LONGEST_PACKET)
            except BlockingIOError:
                return
            if self.queued + len(packet) > MOST_QUEUED:
                continue
            size = len(packet) - VNET_HEADER.size
            segment = VNET_HEADER.unpack_from(packet)[3]
            if segment:
                size += max(0, -(-(size - HEADERS) // segment) - 1) * HEADERS
            self.free_at = max(self.free_at, now) + size / self.rate
            self.queue.append((self.free_at + self.delay, packet))
            self.queued += len(packet)

    def deliver(self, now):
        while self.queue and self.queue[0][0] <= now:
            packet = self.queue.popleft()[1]
            self.queued -= len(packet)
            try:
                os.write(self.target, packet)
            except OSError:
                pass  # what a full or broken link does: TCP sends it again

    def due(self):
        return self.queue[0][0] if self.queue else float("inf")


def main():
    first, first_address, second, second_address, delay_ms, bits = sys.argv[1:]
    ends = open_tun(first, first_address), open_tun(second, second_address)
    delay, rate = float(delay_ms) / 1000, int(bits) / 8
    directions = [Direction(ends[0], ends[1], delay, rate),
                  Direction(ends[1], ends[0], delay, rate)]
    print("ready", flush=True)
    while True:
        wait = min(direction.due() for direction in directions) - time.monotonic()
        select.select(ends, [], [], None if wait == float("inf") else max(wait, 0))
        now = time.monotonic()
        for direction in directions:
            direction.take(now)
            direction.deliver(now)


main()
