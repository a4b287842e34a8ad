"""How each program is called: servers, clients, and checks of what they have copied."""

import os
import shutil
import sys
from dataclasses import dataclass, field
from urllib.parse import quote

import data
import measure

HERE = os.path.dirname(os.path.abspath(__file__))
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's: has python3-libnbd


class NotRun(Exception):
    """What a case needs is not here."""


@dataclass
class Tools:
    nbdelta: str
    plugin: str
    extents_copy: str


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise NotRun(f"{program} is not here (ci/deps installs it)")


@dataclass
class Wire:
    """How a client reaches a server: `listen` for nbdkit, `uri` with EXPORT in it, and what a command
    line must begin with to be on the right side of a network."""

    listen: list
    uri: str
    server_side: list = field(default_factory=list)
    client_side: list = field(default_factory=list)

    def uri_of(self, export=""):
        return self.uri.replace("EXPORT", export)


def unix_wire(folder):
    return Wire(["-U", f"{folder}/socket"], f"nbd+unix:///EXPORT?socket={quote(folder)}/socket")


def tcp_wire(host, port, server_side=(), client_side=()):
    return Wire(["-i", host, "-p", str(port)], f"nbd://{host}:{port}/EXPORT", list(server_side),
                list(client_side))


def tls_wire(folder, port):
    """TCP on this machine, with certificates made here."""
    need("certtool")
    keys = f"{folder}/certificates"
    os.mkdir(keys)
    infos = {"ca": "cn = bench\nca\ncert_signing_key\n"}
    for side in ("server", "client"):
        infos[side] = (f"cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\n"
                       f"tls_www_{side}\nencryption_key\nsigning_key\n")
    for who, info in infos.items():
        with open(f"{keys}/{who}.info", "w", encoding="ascii") as file:
            file.write(info)
        measure.run_quietly("certtool", "--generate-privkey", "--outfile", f"{keys}/{who}-key.pem")
        signed_by = ["--generate-self-signed"] if who == "ca" else [
            "--generate-certificate", "--load-ca-certificate", f"{keys}/ca-cert.pem",
            "--load-ca-privkey", f"{keys}/ca-key.pem"]
        measure.run_quietly("certtool", *signed_by, "--load-privkey", f"{keys}/{who}-key.pem",
                            "--template", f"{keys}/{who}.info",
                            "--outfile", f"{keys}/{who}-cert.pem")
    return Wire(["-i", "127.0.0.1", "-p", str(port), "--tls", "require", "--tls-certificates", keys],
                f"nbds://127.0.0.1:{port}/EXPORT?tls-certificates={keys}")


class Maker:
    """Makes contenders that work in one folder."""

    def __init__(self, tools, folder):
        self.tools = tools
        self.folder = folder
        self.pid_file = f"{folder}/pid"
        self.socket = f"{folder}/socket"

    def nbdkit(self, wire, *plugin):
        need("nbdkit")
        return wire.server_side + ["nbdkit", "--foreground", "--pidfile", self.pid_file,
                                   *wire.listen, *plugin]

    def delta(self, wire, image, *more):
        """With the options of `nbdelta backup`."""
        return self.nbdkit(wire, "--threads=1", self.tools.plugin, image, "packed=on", *more)

    def qemu_nbd(self, image, *more, image_format="qcow2"):
        need("qemu-nbd")
        return ["qemu-nbd", "--persistent", "--read-only", "--format", image_format, "--shared", "8",
                "--socket", self.socket, "--pid-file", self.pid_file, *more, image]

    def nbdelta_pull(self, name, wire, server, export, target, check, *options):
        return measure.Contender(
            name, wire.client_side + [self.tools.nbdelta, "pull", "--quiet", *options,
                                      wire.uri_of(export), target],
            server, self.pid_file, target, check=check)

    def nbdelta_pull_direct(self, name, image, query, target, check, *options):
        return measure.Contender(
            name, [self.tools.nbdelta, "pull", "--quiet", *options, f"delta:{image}?{query}", target],
            target=target, check=check)

    def nbdcopy(self, wire, server, target, check, *options):
        need("nbdcopy")
        return measure.Contender(
            "nbdcopy", wire.client_side + ["nbdcopy", *options, wire.uri_of(), target],
            server, self.pid_file, target, check=check)

    def extents_copy(self, image, disk_size, target, check):
        if not os.access(self.tools.extents_copy, os.X_OK):
            raise NotRun(f"{self.tools.extents_copy} has not been built (--extents-copy)")
        return measure.Contender(
            "pread/pwrite loop",
            [self.tools.extents_copy, image + ".extents", image, target, str(disk_size)],
            target=target, check=check)

    def virtnbdbackup_loop(self, image, target, check):
        try:
            measure.run_quietly(SYSTEM_PYTHON, "-c", "import nbd")
        except (measure.Failed, FileNotFoundError) as error:
            raise NotRun("python3-libnbd is not here (ci/deps installs it)") from error
        wire = unix_wire(self.folder)
        return measure.Contender(
            "virtnbdbackup's loop",
            [SYSTEM_PYTHON, f"{HERE}/virtnbdbackup_loop.py", wire.uri_of(),
             f"qemu:dirty-bitmap:{data.BITMAP}", target],
            self.qemu_nbd(image, "--bitmap", data.BITMAP), self.pid_file, target, check=check)


def same_bytes(expected, target):
    """A check: both files hold the same bytes."""
    def check():
        measure.run_quietly("cmp", expected, target)
    return check


def same_disk(expected, expected_format, target, target_format):
    """A check: both images show the same disk."""
    need("qemu-img")

    def check():
        measure.run_quietly("qemu-img", "compare", "-f", expected_format, "-F", target_format,
                            expected, target)
    return check


def same_map(expected, target, changed_lines):
    """A check: a map as text, where `changed_lines` (awk) picks the lines of what has changed."""
    def check():
        measure.run_quietly(
            "sh", "-c", f"awk '{changed_lines} {{print $1, $2}}' '{target}' | cmp - '{expected}'")
    return check


def to_file(target, *words):
    """A command line whose standard output is the file."""
    return ["sh", "-c", 'target=$1; shift; exec "$@" > "$target"', "sh", target, *words]


def self_python(script, *arguments):
    return [sys.executable, f"{HERE}/{script}", *map(str, arguments)]
