"""The programs that tests start beside Python's packages, and the Debian packages that they come in.

`.ci/run` installs what this prints before any test starts: tests that install at the same time fight for apt's lock,
and the losers would be skipped. Where CI is set, a test that lacks a program fails (see conftest).
"""

from __future__ import annotations

import os
import shutil

PACKAGES = {
    "sshd": ("openssh-server",), "ssh": ("openssh-client",), "ssh-keygen": ("openssh-client",),
    "fish": ("fish",), "cc": ("gcc", "libc6-dev"), "ip": ("iproute2",), "visudo": ("sudo",),
}  # fmt: skip
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
MISSING = "missing program: "  # how a skip begins that CI must not have


def program(name: str) -> str | None:
    """Where a program is, /usr/sbin included."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


def why_missing(*names: str) -> str | None:
    """A skip's reason where one of these programs isn't here; None when they all are."""
    absent = [name for name in names if program(name) is None]
    if not absent:
        return None
    packages = " ".join(dict.fromkeys(part for name in absent for part in PACKAGES.get(name, (name,))))
    return f"{MISSING}{', '.join(absent)} (apt-get install {packages})"


if __name__ == "__main__":
    print(*dict.fromkeys(part for name, parts in PACKAGES.items() if program(name) is None for part in parts))
