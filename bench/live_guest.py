"""The test guest of tests/guest, which writes as fast as it can, and what its log says."""

import json
import os
import re
import socket
import time
from dataclasses import dataclass, field

from measure import Child, Failed

START_SECONDS = 120
ANSWER_SECONDS = 120
STARTED = re.compile(rb"^start (\d+) 0 (?:write|zero|discard) ", re.MULTILINE)
DONE = re.compile(rb"^done (\d+) 0 (write|zero|discard) \d+ \d+ (\d+) \d+$", re.MULTILINE)
FAILED = re.compile(rb"^failed .*$", re.MULTILINE)


class Lines:
    """A Unix socket that lines go over."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")

    def send(self, line):
        self._socket.sendall(line.encode() + b"\n")

    def receive(self):
        line = self._file.readline()
        if not line:
            raise Failed("QEMU has closed a connection")
        return line.decode().rstrip("\n")

    def close(self):
        self._file.close()
        self._socket.close()


class Qmp(Lines):
    def __init__(self, path):
        super().__init__(path)
        self.receive()  # the greeting
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        """Events before the answer are lost: none that we wait for can come then."""
        self.send(json.dumps({"execute": command, "arguments": arguments}))
        while True:
            message = json.loads(self.receive())
            if "error" in message:
                raise Failed(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def wait_for_event(self, name):
        while True:
            message = json.loads(self.receive())
            if message.get("event") == name:
                return message["data"]


@dataclass
class Part:
    """A stretch of the guest's log, as offsets in the file; the clock is this machine's."""

    name: str
    log_begin: int
    begin: float
    log_end: int = 0
    end: float = 0

    @property
    def seconds(self):
        return self.end - self.begin


@dataclass
class Felt:
    """What the guest's operations took that began in a part of the log."""

    seconds: float
    writes: int
    writes_per_second: float
    median_ms: float
    p99_ms: float
    longest_ms: float  # of any operation; of writes of 4 KiB those before
    parts: dict = field(default_factory=dict)  # {name: [seconds, longest_ms]}


class Guest:
    """Runs from its construction until shut_down() or kill(); its writer waits for start().

    `files` is where vmlinuz and initramfs.cpio.gz are. QEMU's command line is that of
    tests/guest/guest.cpp, which says why it is so.
    """

    def __init__(self, folder, files, disk, area):
        self.folder = folder
        node = {"driver": "qcow2", "node-name": "disk0", "discard": "unmap",
                "file": {"driver": "file", "discard": "unmap", "filename": disk}}
        line = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr nbdelta.blocks=vda "
                f"nbdelta.rate=0 nbdelta.seed=1 nbdelta.area={area} nbdelta.paused=1")
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
                "-display", "none", "-accel", "tcg", "-cpu", "qemu64,-cx16", "-m", "256",
                "-kernel", f"{files}/vmlinuz", "-initrd", f"{files}/initramfs.cpio.gz",
                "-append", line,
                "-chardev", f"file,id=console,path={folder}/console", "-serial", "chardev:console",
                "-chardev", f"socket,id=qmp,server=on,wait=off,path={self.qmp_path}",
                "-mon", "chardev=qmp,mode=control", "-device", "virtio-serial-pci",
                "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=disk0,id=vda"]
        for port, chardev in (("log", f"file,path={folder}/operations"),
                              ("control", f"socket,server=on,wait=off,path={folder}/control.sock")):
            argv += ["-chardev", f"{chardev},id={port}",
                     "-device", f"virtserialport,chardev={port},name=nbdelta.{port}"]
        self._qemu = Child(argv, f"{folder}/qemu.log")
        try:
            self._wait_until_ready()
            self._control = Lines(f"{folder}/control.sock")
        except BaseException:
            self.kill()
            raise

    @property
    def qmp_path(self):
        return f"{self.folder}/qmp.sock"

    def _wait_until_ready(self):
        deadline = time.monotonic() + START_SECONDS
        console = f"{self.folder}/console"
        while True:
            if os.path.exists(console):
                with open(console, encoding="utf-8", errors="replace") as file:
                    if "nbdelta-guest ready" in file.read():
                        return
            if not self._qemu.running() or time.monotonic() > deadline:
                raise Failed(f"the guest does not start\n{self._qemu.output()}")
            time.sleep(0.05)

    def control(self, command):
        self._control.send(command)
        answer = self._control.receive()
        if answer != "ok":
            raise Failed(f"the guest's writer, told to '{command}': {answer}")

    def begin_part(self, name):
        return Part(name, os.path.getsize(f"{self.folder}/operations"), time.monotonic())

    def end_part(self, part):
        part.log_end = os.path.getsize(f"{self.folder}/operations")
        part.end = time.monotonic()

    def shut_down(self):
        self.control("poweroff")
        self._qemu.wait()
        self._qemu = None

    def kill(self):
        """Does nothing after shut_down()."""
        if self._qemu:
            self._qemu.stop()
            self._qemu = None

    def log(self):
        """When nothing is being written any more. Throws Failed where a write has failed."""
        with open(f"{self.folder}/operations", "rb") as file:
            log = file.read()
        failed = FAILED.search(log)
        if failed:
            raise Failed(f"in the guest: {failed.group().decode()}")
        return log


def felt(log, parts):
    """One Felt over parts that follow each other. An operation counts where it began, with all of
    its length; the last one before counts too, since it may be what a part begins with waiting."""
    done = {int(match[1]): (match[2], int(match[3]) / 1000) for match in DONE.finditer(log)}

    def operations(begin, end):
        """[(kind, ms)]"""
        begin = max(0, log.rfind(b"start ", 0, begin))
        numbers = [int(match[1]) for match in STARTED.finditer(log[begin:end])]
        return [done[number] for number in numbers if number in done]

    everything = operations(parts[0].log_begin, parts[-1].log_end)
    writes = sorted(ms for kind, ms in everything if kind == b"write")
    if not writes:
        raise Failed(f"the guest's log has no write for the part '{parts[0].name}'")
    seconds = parts[-1].end - parts[0].begin
    return Felt(seconds, len(writes), len(writes) / seconds, writes[len(writes) // 2],
                writes[min(len(writes) - 1, len(writes) * 99 // 100)],
                max(ms for _, ms in everything),
                {part.name: [part.seconds,
                             max((ms for _, ms in operations(part.log_begin, part.log_end)),
                                 default=0)]
                 for part in parts})
