"""Runs programs one at a time and says what each took: wall time, processor time, memory."""

import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass

SERVER_START_SECONDS = 60
CLIENT_SECONDS = 1800


class Failed(Exception):
    """A program that ended badly, or a copy that is not what it should be."""


@dataclass
class Usage:
    """What one process took, as wait4(2) tells.

    peak_bytes is at least what this Python process took when it started the other one (fork(2)
    hands that on), some 16 MiB: so nothing large is done in this process.
    """

    seconds: float
    user_seconds: float
    system_seconds: float
    peak_bytes: int
    faults: int

    @property
    def cpu_seconds(self):
        return self.user_seconds + self.system_seconds


class Child:
    """A program in the foreground, in a session of its own; its output goes to `log`."""

    def __init__(self, argv, log):
        self.argv = [str(word) for word in argv]
        self.log = log
        self._started = time.monotonic()
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True)

    @property
    def pid(self):
        return self._process.pid

    def running(self):
        # Not poll(): that would reap it, and its usage with it.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self, good=(0,)):
        """Throws Failed with the program's output unless it ends with a status in `good`."""
        previous = signal.signal(signal.SIGALRM, lambda *_: self._process.kill())
        signal.alarm(CLIENT_SECONDS)
        try:
            _, status, rusage = os.wait4(self.pid, 0)
        except BaseException:  # interrupted
            self.kill()
            raise
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        seconds = time.monotonic() - self._started
        code = os.waitstatus_to_exitcode(status)
        self._process.returncode = code  # Popen need not look for it any more
        if code not in good:
            raise Failed(f"{' '.join(self.argv)}: status {code}\n{self.output()}")
        return Usage(seconds, rusage.ru_utime, rusage.ru_stime, rusage.ru_maxrss * 1024,
                     rusage.ru_minflt + rusage.ru_majflt)

    def stop(self):
        os.kill(self.pid, signal.SIGTERM)  # Popen's own would reap one that has ended
        return self.wait(good=(0, -signal.SIGTERM))

    def kill(self):
        """Nothing where it has been waited for."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def output(self):
        with open(self.log, encoding="utf-8", errors="replace") as output:
            return output.read()


@dataclass
class Sample:
    """One run of one contender. The server's start is not part of `seconds`."""

    seconds: float
    client: Usage | None = None
    server: Usage | None = None


@dataclass
class Contender:
    """One way to do the work: a client, and a server where there is one."""

    name: str
    client: list
    server: list | None = None  # argv; must write `pid_file` when it listens
    pid_file: str | None = None
    target: str | None = None  # removed before each run; on the disk at the end of it
    check: object = None  # called after each run; throws Failed

    def run(self, folder, memory):
        """One run, checked, with so much memory at hand that need not be had from a hypervisor
        first; without any, no file in the folder is in the page cache at its start."""
        if self.target:
            remove(self.target)
        if memory:
            take_pages(folder, memory)
        else:
            drop_from_cache(folder)
        server = start_server(self.server, self.pid_file, folder) if self.server else None
        try:
            started = time.monotonic()
            client = Child(self.client, f"{folder}/client.log").wait()
            if self.target:
                sync_file(self.target)
            seconds = time.monotonic() - started
        finally:
            served = server.stop() if server else None
        if self.check:
            self.check()
        if self.target:
            remove(self.target)
        return Sample(seconds, client, served)


def start_server(argv, pid_file, folder):
    for left in (pid_file, f"{folder}/socket"):
        remove(left)  # nbdkit leaves its socket behind
    server = Child(argv, f"{folder}/server.log")
    deadline = time.monotonic() + SERVER_START_SECONDS
    try:
        while not (os.path.exists(pid_file) and os.path.getsize(pid_file)):
            if not server.running():
                server.wait(good=())
            if time.monotonic() > deadline:
                raise Failed(f"{' '.join(server.argv)}: does not listen\n{server.output()}")
            time.sleep(0.005)
    except BaseException:  # also where it is interrupted
        server.kill()
        raise
    return server


@dataclass
class Opener:
    """A server alone: the time until a client that connects is greeted."""

    name: str
    server: list
    socket: str

    def run(self, folder, memory):
        """One run, as of a Contender."""
        remove(self.socket)
        if not memory:
            drop_from_cache(folder)
        started = time.monotonic()
        server = Child(self.server, f"{folder}/server.log")
        try:
            while not greeted(self.socket):
                if not server.running() or time.monotonic() > started + SERVER_START_SECONDS:
                    raise Failed(f"{' '.join(server.argv)}: does not listen\n{server.output()}")
                time.sleep(0.0005)
            seconds = time.monotonic() - started
        finally:
            served = server.stop()
        return Sample(seconds, server=served)


def greeted(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError:
            return False
        return connection.recv(8) == b"NBDMAGIC"


def in_turn(contenders, rounds, folder, memory, progress):
    """{name: [Sample of each round]}: each once a round, after one round that is thrown away. The
    order is random in each round, since the memory that one leaves is what the next one gets.
    `memory`: as for Contender.run()."""
    samples = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in random.sample(contenders, len(contenders)):
            progress(f"round {number} of {rounds}: {contender.name}" if number
                     else f"warm-up: {contender.name}")
            sample = contender.run(folder, memory)
            if number:
                samples[contender.name].append(sample)
    return samples


@dataclass
class Spread:
    median: float
    least: float
    most: float

    @staticmethod
    def of(values):
        return Spread(statistics.median(values), min(values), max(values))


def run_quietly(*argv):
    """Throws Failed with its output unless the program ends well."""
    result = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL,
                            capture_output=True, text=True, check=False)
    if result.returncode:
        raise Failed(f"{' '.join(result.args)}: status {result.returncode}\n"
                     f"{result.stdout}{result.stderr}")
    return result.stdout


def take_pages(folder, size):
    """The seconds that the memory for a new file takes there; it is given back."""
    path, zeros = f"{folder}/pages", bytes(1 << 20)
    with open(path, "wb", buffering=0) as file:
        started = time.monotonic()
        for _ in range(size >> 20):
            file.write(zeros)
        seconds = time.monotonic() - started
    os.unlink(path)
    return seconds


def page_seconds(folder):
    """What the memory for a GiB of a new file takes there, by a quarter of it."""
    return 4 * take_pages(folder, 1 << 28)


def remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def end_children():
    """Those of whose start an interruption let nobody know."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            left = [int(word) for word in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def remove_folder(folder):
    """And what is mounted in it."""
    for entry in list(os.scandir(folder)):
        if os.path.ismount(entry.path):
            # Lazily, so that what an interruption has left open in it is not in the way.
            run_quietly("umount", "--lazy", entry.path)
    shutil.rmtree(folder)


def sync_file(path):
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise Failed(f"{path}: no such file was made") from None
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop_from_cache(folder):
    """The contents of all files; what is not on the disk yet would stay, so it is synced first."""
    for entry in os.scandir(folder):
        if not entry.is_file(follow_symlinks=False):
            continue
        descriptor = os.open(entry.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
