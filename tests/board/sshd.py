"""A real OpenSSH server on 127.0.0.1, run by and for the current user, whose sessions live in a folder of the test.

Nothing outside the folder is touched: keys, known_hosts, the client's configuration, the home and the programs that a
session finds are made there. The server's one forced command enters that home and starts the login shell of the test
with what the client asked for, as sshd itself would do with the shell of the password file.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from programs import SYSTEM_PATH, program

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@dataclass
class Sshd:
    """One server, its home and the client's side of it. `host` and `config` are what edgecnn is given."""

    folder: Path
    shell: str = "/bin/bash"
    port: int = 0
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)  # in the environment of every process of the board
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    host: str = "board"
    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()  # before the server's command line, as nsenter
    before: str = ""  # root: a shell command run in a mount namespace that server and sessions then live in

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def bin(self) -> Path:
        """First on the PATH of every session."""
        return self.folder / "bin"

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "edgecnn"

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def prepare(self) -> None:
        """Keys, configuration, home; `python3` of the sessions is the Python of the tests."""
        for folder in (self.home, self.bin):
            folder.mkdir(parents=True)
        self.folder.chmod(0o755)
        for name in ("host_key", "id_board"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)],
                check=True, capture_output=True,
            )  # fmt: skip
        shutil.copy(self.folder / "id_board.pub", self.folder / "authorized_keys")
        self.add_program("python3", f'exec {sys.executable} "$@"')
        self.port = self.port or free_port()
        self.trust()
        self.write_config()

    def add_program(self, name: str, script: str) -> None:
        """A program of the board: a shell script."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def trust(self) -> None:
        """Write the server's key into the client's known_hosts."""
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"board-key {kind} {key}\n")

    def write_config(self, *, port: int | None = None, more: str = "") -> None:
        """The client's configuration; `port`: that of a proxy before the server."""
        self.config.write_text(
            f"Host {self.host}\n  HostName {self.address}\n  Port {port or self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.folder}/id_board\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n"
            f"  GlobalKnownHostsFile /dev/null\n  HostKeyAlias board-key\n{more}"
        )

    def start(self) -> None:
        """Start the server and wait until it accepts."""
        exports = {
            "HOME": str(self.home), "EDGECNN_BOARD": self.mark, "PATH": f"{self.bin}:{SYSTEM_PATH}",
            "SHELL": self.shell, **self.environment,
        }  # fmt: skip
        lines = [f"export {name}='{value}'" for name, value in exports.items()]
        entry = self.folder / "enter"
        entry.write_text("\n".join([
            "#!/bin/sh", *lines, "unset SHLVL OLDPWD" + ("" if "PYTHONPATH" in exports else " PYTHONPATH"),
            'cd "$HOME" || exit 1', f'exec {self.shell} -c "$SSH_ORIGINAL_COMMAND"', "",
        ]))  # fmt: skip
        entry.chmod(0o755)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        config = self.folder / "sshd_config"
        if not config.exists():
            config.write_text(self._settings())
        sshd = program("sshd")
        assert sshd is not None
        command = [sshd, "-D", "-f", str(config), "-E", str(self.folder / "sshd.log")]
        if self.before:
            inside = f"mount --make-rprivate / && {self.before} && exec {shlex.join(command)}"
            command = ["unshare", "-m", "sh", "-c", inside]
        self.process = subprocess.Popen(
            [*self.prefix, *command],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), 5) as met:
                met.recv(4)
                return
            assert self.process.poll() is None, f"sshd ended: {(self.folder / 'sshd.log').read_text()}"
            time.sleep(0.05)
        raise AssertionError("sshd does not answer")

    def _settings(self) -> str:
        sftp = next((path for path in SFTP_SERVERS if Path(path).exists()), "internal-sftp")
        return (
            f"Port {self.port}\nListenAddress {self.address}\n"
            f"HostKey {self.folder}/host_key\nPidFile {self.folder}/pid\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nAuthenticationMethods publickey\nPermitTTY no\nUseDNS no\n"
            f"MaxStartups 100\nSubsystem sftp {sftp}\nForceCommand {self.folder}/enter\n"
        )

    def restart(self) -> None:
        """Start it again, after a change of its settings; its sessions end."""
        self.stop()
        self.start()

    def processes(self) -> dict[int, str]:
        """Every living process of the board's sessions, detached ones too: pid and command line."""
        found = {}
        wanted = f"EDGECNN_BOARD={self.mark}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found[int(folder.name)] = command
        return found

    def agents(self) -> dict[int, str]:
        """The processes that run our agent, or were started by it: all but sshd's own and the link's shell loop."""
        link = ("edgecnn-link", "head -c", "dd of=", "cat", "sleep 1")
        return {pid: one for pid, one in self.processes().items() if one and not any(word in one for word in link)}

    def crash(self) -> None:
        """What a power cut leaves: no process of the board's sessions, no server, no goodbye from the jobs."""
        self.stop()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the server and its sessions' sshd processes."""
        if self.process is None:
            return
        children = _descendants(self.process.pid)
        for pid in (self.process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def _descendants(pid: int) -> list[int]:
    """Children and theirs, as /proc tells it; only those named sshd."""
    parents: dict[int, list[int]] = {}
    names = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            line = (folder / "stat").read_text()
            names[int(folder.name)] = line[line.index("(") + 1 : line.rindex(")")]
            parents.setdefault(int(line.rpartition(")")[2].split()[1]), []).append(int(folder.name))
    found, queue = [], [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            if names.get(child, "").startswith("sshd"):
                found.append(child)
                queue.append(child)
    return found


@contextlib.contextmanager
def running(folder: Path, **settings: object) -> Iterator[Sshd]:
    """A prepared and started server; afterwards nothing of it is left running."""
    server = Sshd(folder, **settings)  # type: ignore[arg-type]  # passed through
    server.prepare()
    server.start()
    try:
        yield server
    finally:
        server.crash()
