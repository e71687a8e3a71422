"""An aarch64 userland behind a real OpenSSH server, on an x86 machine: a virtual board for numbers, never for times.

    python tests/board/aarch64.py FOLDER        unpack the root file system there and start the server until Ctrl-C

A Debian root file system of arm64 is unpacked without running any of it (`mmdebstrap --variant=extract`), numpy and
onnxruntime come as wheels of that platform, and qemu-user runs what is called. The host's own sshd serves it from a
mount and process namespace of its own by ChrootDirectory, so that nothing outside the folder is touched. Needs root,
Debian's apt and a package index; about 20 s and 340 MB.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    "python3-minimal", "python3", "openssh-sftp-server", "rsync", "coreutils", "dash", "bash", "procps",
    "libstdc++6", "ca-certificates",
)  # fmt: skip
WHEELS = ("numpy", "onnxruntime==1.32.0")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
# What Linux tells of an Orin's cores. onnxruntime's cpuinfo finds no x86 here that it would stumble over.
CPUINFO = """\
processor\t: {number}
model name\t: ARMv8 Processor rev 1 (v8l)
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""
BINFMT = Path("/proc/sys/fs/binfmt_misc")


def missing() -> str | None:
    """Why the userland cannot be had here; None where it can. Installs what it can."""
    if platform.machine() != "x86_64" or not shutil.which("apt-get"):
        return "an aarch64 userland is emulated on x86_64 Debian only"
    if os.geteuid() != 0:
        return "an aarch64 userland needs root: chroot, mounts and binfmt_misc"
    needed = {
        "mmdebstrap": "mmdebstrap", "qemu-aarch64-static": "qemu-user-static", "update-binfmts": "binfmt-support",
        "sshd": "openssh-server", "ssh": "openssh-client",
    }  # fmt: skip
    packages = [package for program, package in needed.items() if not _program(program)]
    if packages:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]):
            if subprocess.run(command, capture_output=True, env=environment).returncode != 0:
                return f"`{' '.join(command)}` failed"
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], capture_output=True)
    if not (BINFMT / "qemu-aarch64").exists():
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], capture_output=True)
    # F: the emulator is opened once, by the kernel, and so is there inside a chroot too.
    if not (BINFMT / "qemu-aarch64").exists() or "flags: PF" not in (BINFMT / "qemu-aarch64").read_text():
        return "binfmt_misc cannot be given qemu-aarch64 here"
    return None


def unpack(root: Path) -> None:
    """The root file system, once: its last step leaves a mark.

    Raises:
        subprocess.CalledProcessError: no network, or no such package.
    """
    if (root / "etc" / "edgecnn-test").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={','.join(PACKAGES)}",
            SUITE, str(root),
        ],
        check=True,
    )  # fmt: skip
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target",
            str(root / "opt" / "edge"), *(f"--platform={name}" for name in PLATFORMS), "--python-version", "3.11",
            "--implementation", "cp", "--only-binary=:all:", *WHEELS,
        ],
        check=True,
    )  # fmt: skip
    (root / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/bin/sh\n"
    )
    (root / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    # The machine's own /sys would show x86 cores, at which onnxruntime crashes.
    cores = root / "sys" / "devices" / "system" / "cpu"
    cores.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cores / name).write_text("0-1\n")
    (root / "etc" / "cpuinfo").write_text("".join(CPUINFO.format(number=number) for number in range(2)))
    (root / "etc" / "edgecnn-test").write_text(SUITE + "\n")


@dataclass(frozen=True)
class Aarch64:
    """A running server: the name and the client configuration that edgecnn is given, and the home of its user."""

    host: str
    config: Path
    home: Path


@contextlib.contextmanager
def running(root: Path, folder: Path) -> Iterator[Aarch64]:
    """Serve an unpacked root file system; keys, home and logs lie in `folder`. Every process of it ends with it."""
    home = folder / "home"
    home.mkdir(parents=True)
    home.chmod(0o700)
    for name in ("host_key", "id_board"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, capture_output=True
        )
    shutil.copy(folder / "id_board.pub", folder / "authorized_keys")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    config = folder / "ssh_config"
    config.write_text(
        f"Host aarch64\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {folder}/id_board\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "AuthenticationMethods publickey\nPermitRootLogin prohibit-password\nPermitTTY no\nUseDNS no\n"
        f"Subsystem sftp internal-sftp\nSetEnv PYTHONPATH=/opt/edge EDGECNN_BOARD={folder}\nChrootDirectory /mnt\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    # /mnt of its own name space: the way to a ChrootDirectory must be root's, and a temporary folder's isn't.
    script = (
        'set -e; mount --make-rprivate /; mount --bind "$1" /mnt; mount -t proc proc /mnt/proc;'
        ' mount --bind "$1/etc/cpuinfo" /mnt/proc/cpuinfo; mount --rbind /dev /mnt/dev;'
        ' mount --bind "$2/home" /mnt/root; exec "$3" -D -f "$2/sshd_config" -E "$2/sshd.log"'
    )
    # A killed test leaves no server behind either.
    command = [
        "setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script,
        "sh",
    ]  # fmt: skip
    with (folder / "set-up.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, str(root), str(folder), str(_program("sshd"))], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(server, port, folder)
        yield Aarch64("aarch64", config, home)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as met:
            if met.recv(4):
                return
        assert server.poll() is None, f"the server ended: {(folder / 'set-up.log').read_text()}"
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def main() -> None:
    """Set up and serve until Ctrl-C."""
    if why := missing():
        sys.exit(why)
    folder = Path(sys.argv[1]).absolute()
    start = time.monotonic()
    unpack(folder / "root")
    run = folder / f"run-{os.getpid()}"
    with running(folder / "root", run) as board:
        print(f"ready in {time.monotonic() - start:.0f} s: ssh -F {board.config} {board.host}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    shutil.rmtree(run)


if __name__ == "__main__":
    main()
