"""Whom to log in to, how `ssh` is called for it, and what a refused login means."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecnn.board.limits import LinkLimits
from edgecnn.process.disk import user_path
from edgecnn.process.errors import EdgeError, printable

# A person's session may have a terminal (it changes bytes and echoes), a command in place of ours, forwardings, and a
# shared connection without our keepalives. Ciphers: hardware does AES on every board, and chacha20, the usual first
# choice, halved the throughput measured.
OPTIONS = (
    "ssh", "-Txa", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oUpdateHostKeys=no", "-oRemoteCommand=none",
    "-oClearAllForwardings=yes", "-oPermitLocalCommand=no", "-oControlMaster=no", "-oControlPath=none",
    "-oLogLevel=INFO", "-oCompression=no", "-oTCPKeepAlive=yes",
    "-oCiphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr",
)  # fmt: skip


class Unreachable(EdgeError):
    """No session on the board could be opened: name, network, host key, login."""


@dataclass(frozen=True)
class Address:
    """A board as a person names it: `[user@]host[:port]`; an IPv6 address with a port stands in brackets."""

    text: str
    host: str
    user: str | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Take the text apart.

        Raises:
            EdgeError: it is not such a name.
        """
        user, _, rest = text.rpartition("@")
        if bracketed := re.fullmatch(r"\[([0-9A-Fa-f:.%\w]+)\](?::(\d{1,5}))?", rest):
            host, port = bracketed[1], bracketed[2]
        elif rest.count(":") > 1:
            host, port = rest, None  # a bare IPv6 address
        else:
            host, _, port = rest.partition(":")
        named = re.fullmatch(r"[\w.:%][\w.:%-]*", host) and re.fullmatch(r"([\w.][\w.@\\+-]*)?", user)
        if not named or (port is not None and not re.fullmatch(r"\d{0,5}", port)) or text.startswith("@"):
            raise EdgeError(f"`{text}` is not a board", "write user@host, user@host:port, or an alias of ~/.ssh/config")
        return cls(text, host, user or None, int(port) if port else None)


def login_words(address: Address, config: Path | None) -> tuple[str, ...]:
    """The arguments that name a board to `ssh`."""
    given = (("-F", config and str(config)), ("-l", address.user), ("-p", address.port and str(address.port)))
    return (*(word for option, value in given if value for word in (option, value)), "--", address.host)


def read_config(words: Sequence[str]) -> dict[str, str]:
    """What the configuration makes of an address, as `ssh -G` tells it; {} where it can't be read."""
    done = subprocess.run(["ssh", "-G", *words], capture_output=True, text=True, errors="replace", check=False)
    return {key: value for key, _, value in (line.partition(" ") for line in done.stdout.splitlines())}


def refusal_of(
    printed: str, timely: bool, said: str, address: Address, words: Sequence[str], limits: LinkLimits
) -> Unreachable:
    """The step of the login that failed, and the command that helps.

    Args:
        printed: what the login shell printed in place of our loop's first word. timely: it ended before `connect_s`.
        said: what ssh said. words: `login_words`.
    """
    found = read_config(words)
    host, port, user = found.get("hostname", address.host), found.get("port", "22"), found.get("user", "")
    name, place = address.text, f"{host} port {port}"
    login = f"{f'-p {port} ' if port != '22' else ''}{shlex.quote(f'{user}@{host}')}"
    ping = f"is it on, and in this network? `ping {shlex.quote(host)}`"
    last = printable(said.strip().splitlines()[-1][:500]) if said.strip() else ""
    if printed:
        return Unreachable(
            f"`{name}` lets us in, but its login shell starts no programs: the login shell said"
            f" `{printable(printed.splitlines()[-1][:200])}`",
            f"`ssh {login} echo hello` must answer",
        )
    if not found:
        return Unreachable(f"the SSH configuration for `{name}` cannot be used: {last}")
    if "REVOKED HOST KEY" in said:
        return Unreachable(f"the host key of `{name}` is marked as revoked in known_hosts")
    if re.search("(?i)host key verification failed|host identification has changed|no matching host key", said):
        return _host_key(name, login, found)
    if "Permission denied" in said:
        return Unreachable(
            f"`{name}` refuses the login of `{user}`: none of your SSH keys is accepted",
            f"run `ssh-copy-id {login}`; a key with a passphrase needs `ssh-add` (no password is asked for)",
        )
    if resolved := re.search(r"Could not resolve hostname \S+: (.*)", said):
        return Unreachable(
            f"no address is known for board `{name}` ({host}): {resolved[1].strip()}",
            f"check the name with `getent hosts {shlex.quote(host)}`, or give the board's IP address",
        )
    if "Connection refused" in said:
        return Unreachable(
            f"`{name}` refuses connections ({place}): no SSH server listens there",
            "is it still booting? On the board: `sudo systemctl enable --now ssh`; or give the right port",
        )
    if not timely or "timed out" in said:
        return Unreachable(
            f"`{name}` does not answer ({place}): nothing within {limits.connect_s:g} s",
            f"{ping}; a slow link: --link connect_s=30",
        )
    if re.search("kex_exchange|Connection (closed|reset)", said):
        return Unreachable(
            f"`{name}` closed the connection before the login ({place}): {last}",
            "is it shutting down, or not an SSH server? Try again, and look at `journalctl -u ssh` on the board",
        )
    if "connect to host" in said:
        return Unreachable(f"`{name}` cannot be reached ({place}): {last.rpartition(': ')[2]}", ping)
    return Unreachable(
        f"the login to `{name}` failed ({place}): {last or 'it ended at once'}", f"look at what `ssh -v {login}` says"
    )


def _host_key(name: str, login: str, found: dict[str, str]) -> Unreachable:
    host, port = found["hostname"], found["port"]
    key_name = found.get("hostkeyalias") or (host if port == "22" else f"[{host}]:{port}")
    own = [*shlex.split(found.get("userknownhostsfile", "").replace("none", "")), "~/.ssh/known_hosts"][0]
    file = "" if user_path(own) == user_path("~/.ssh/known_hosts") else f" -f {shlex.quote(own)}"
    files = [*shlex.split(found.get("userknownhostsfile", "")), *shlex.split(found.get("globalknownhostsfile", ""))]
    if any(_knows(user_path(one), key_name) for one in files):
        return Unreachable(
            f"the host key of `{name}` is not the one in known_hosts: another machine answers, or it was reinstalled",
            f"if that is expected, forget the old key with `ssh-keygen -R {shlex.quote(key_name)}{file}`, then log in"
            f" once with `ssh {login}` and compare the fingerprint it shows",
        )
    option = f"-p {port} " if port != "22" else ""
    return Unreachable(
        f"the host key of `{name}` is unknown",
        f"log in once with `ssh {login}` and compare the fingerprint it shows; unattended:"
        f" `ssh-keyscan {option}{shlex.quote(host)} >> {shlex.quote(own) if file else own}`",
    )


def _knows(file: Path, key_name: str) -> bool:
    """Whether a known_hosts file has any key of this host."""
    done = subprocess.run(["ssh-keygen", "-F", key_name, "-f", str(file)], capture_output=True, check=False)
    return file.is_file() and b"#" in done.stdout
