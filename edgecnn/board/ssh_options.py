"""Whom to log in to, by the user's OpenSSH configuration, and what a refused login means."""

from __future__ import annotations

import asyncio
import re
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import asyncssh

from edgecnn.board.limits import LinkLimits
from edgecnn.board.shell import Unreachable
from edgecnn.process.disk import user_path
from edgecnn.process.errors import EdgeError

# Fastest first: hardware does AES on every board (Jetson's default, chacha20, halved the throughput measured).
CIPHERS = [
    "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr",
    "chacha20-poly1305@openssh.com",
]  # fmt: skip
HOST_KEYS = (
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256",
)  # fmt: skip
GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")


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


@dataclass(frozen=True)
class Login:
    """What the configuration makes of an address, and the arguments of asyncssh.connect."""

    address: Address
    host: str
    port: int
    user: str
    key_name: str  # under which the host's key is known
    known_hosts: list[str]
    own_known_hosts: str  # where a person adds a key
    arguments: dict[str, object]

    @property
    def target(self) -> str:
        """`-p 2222 user@host`, as ssh and ssh-copy-id take it."""
        port = f"-p {self.port} " if self.port != 22 else ""
        return f"{port}{shlex.quote(f'{self.user}@{self.host}')}"


def login_of(address: Address, config: Path | None, limits: LinkLimits) -> Login:
    """Read the user's configuration, or `config`, for an address.

    Raises:
        Unreachable: the configuration can't be read.
    """
    given: dict[str, object] = {"host": address.host}
    if config is not None:
        given["config"] = [str(config)]
    if address.user:
        given["username"] = address.user
    if address.port:
        given["port"] = address.port
    try:
        options = asyncssh.SSHClientConnectionOptions(**given, client_keys=None)  # reads no keys
    except (asyncssh.Error, OSError, ValueError) as error:
        raise Unreachable(f"the SSH configuration for `{address.text}` cannot be used: {error}") from error
    files, own = _known_hosts(options)
    arguments: dict[str, object] = {
        **given, "known_hosts": files, "encryption_algs": CIPHERS, "compression_algs": ["none"],
        "keepalive_interval": limits.silence_s / 4, "keepalive_count_max": 1 << 30,
        "login_timeout": limits.connect_s, "connect_timeout": limits.connect_s,
        "x509_trusted_certs": None, "password": None, "agent_forwarding": False,
        # What a person's session may have: a terminal changes bytes and echoes, a command replaces the file server.
        "request_pty": False, "command": None, "x11_forwarding": False,
    }  # fmt: skip
    if (keys := _identities(options)) is not None:
        arguments |= {"client_keys": keys, "ignore_encrypted": True}
    key_name = options.host_key_alias or options.host
    login = Login(address, options.host, options.port, options.username, key_name, files, own, arguments)
    if algorithms := _key_algorithms(login, options):
        arguments["server_host_key_algs"] = algorithms
    return login


def _identities(options: asyncssh.SSHClientConnectionOptions) -> list[str] | None:
    """The configured keys that are there, if not all are: ssh passes over the others, asyncssh ends at them.

    Of a key that only the agent or a token has, the public half names which one is meant.
    """
    named = [user_path(name) for name in cast("list[str]", options.config.get("IdentityFile", []))]
    if all(path.is_file() for path in named):
        return None
    there = [path if path.is_file() else path.with_name(f"{path.name}.pub") for path in named]
    return [str(path) for path in there if path.is_file()]


def _key_algorithms(login: Login, options: asyncssh.SSHClientConnectionOptions) -> list[str]:
    """Kinds of host keys, those that are known of this host first; empty: asyncssh's own choice.

    asyncssh would ask for the known ones alone, and a board set up anew without one of them would just hang up.
    """
    trusted, authorities = _known(login)
    if authorities or not trusted or options.config.get("HostKeyAlgorithms"):
        return []
    known = [name.decode() for key in trusted for name in key.sig_algorithms]
    return [*dict.fromkeys([*(name for name in known if name in HOST_KEYS), *HOST_KEYS])]


def _known(login: Login) -> tuple[Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey]]:
    """(trusted keys, trusted authorities) of this host."""
    port = None if login.port == 22 else login.port
    trusted, authorities, *_ = asyncssh.match_known_hosts(login.known_hosts, login.key_name, "", port)
    return trusted, authorities


def _known_hosts(options: asyncssh.SSHClientConnectionOptions) -> tuple[list[str], str]:
    """The files that hold trusted host keys, and the user's first.

    The list is never empty: asyncssh takes `UserKnownHostsFile none` for "trust all".
    """
    user = cast("list[str]", options.config.get("UserKnownHostsFile", USER_KNOWN_HOSTS))  # empty for `none`
    everyone = cast("list[str]", options.config.get("GlobalKnownHostsFile", GLOBAL_KNOWN_HOSTS))
    files = [user_path(name) for name in (*user, *everyone)]
    return [str(file) for file in files if file.is_file()] or ["/dev/null"], user[0] if user else USER_KNOWN_HOSTS[0]


def refusal_of(error: Exception, login: Login, limits: LinkLimits) -> Unreachable:
    """The step of the login that failed, and the command that helps."""
    name, place = login.address.text, f"{login.host} port {login.port}"
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return _host_key(error, login)
        case asyncssh.KeyExchangeFailed() if _trusted(login):
            return _host_key(error, login)
        case asyncssh.PermissionDenied():
            return Unreachable(
                f"`{name}` refuses the login of `{login.user}`: none of your SSH keys is accepted",
                f"run `ssh-copy-id {login.target}`; a key with a passphrase needs `ssh-add` (no password is asked)",
            )
        case socket.gaierror():
            return Unreachable(
                f"no address is known for board `{name}` ({login.host}): {error.strerror}",
                f"check the name with `getent hosts {shlex.quote(login.host)}`, or give the board's IP address",
            )
        case ConnectionRefusedError():
            return Unreachable(
                f"`{name}` refuses connections ({place}): no SSH server listens there",
                "is it still booting? On the board: `sudo systemctl enable --now ssh`; or give the right port",
            )
        case asyncio.TimeoutError() | TimeoutError():
            return Unreachable(
                f"`{name}` does not answer ({place}): nothing within {limits.connect_s:g} s",
                f"is it on, and in this network? `ping {shlex.quote(login.host)}`; a slow link: EDGECNN_CONNECT_S=30",
            )
        case asyncssh.ConnectionLost() | ConnectionError():
            return Unreachable(
                f"`{name}` closed the connection before the login ({place}): {error}",
                "is it shutting down, or not an SSH server? Try again, and look at `journalctl -u ssh` on the board",
            )
        case OSError():
            return Unreachable(
                f"`{name}` cannot be reached ({place}): {error.strerror or error}",
                f"is it on, and in this network? `ping {shlex.quote(login.host)}`",
            )
        case _:
            return Unreachable(
                f"the login to `{name}` failed ({place}): {error}", f"look at what `ssh -v {login.target}` says"
            )


def _trusted(login: Login) -> bool:
    """Whether a key of this host is known."""
    trusted, authorities = _known(login)
    return bool(trusted or authorities)


def _host_key(error: Exception, login: Login) -> Unreachable:
    name = login.key_name if login.port == 22 or login.key_name != login.host else f"[{login.host}]:{login.port}"
    own = login.own_known_hosts
    file = "" if own == USER_KNOWN_HOSTS[0] else f" -f {shlex.quote(own)}"
    if "revoked" in str(error):
        return Unreachable(f"the host key of `{login.address.text}` is marked as revoked in known_hosts")
    if _trusted(login):
        return Unreachable(
            f"the host key of `{login.address.text}` is not the known one: another machine, or a board set up anew",
            f"if that is expected, forget the old key with `ssh-keygen -R {shlex.quote(name)}{file}`, then log in once"
            f" with `ssh {login.target}` and compare the fingerprint it shows",
        )
    port = f"-p {login.port} " if login.port != 22 else ""
    return Unreachable(
        f"the host key of `{login.address.text}` is unknown",
        f"log in once with `ssh {login.target}` and compare the fingerprint it shows; unattended:"
        f" `ssh-keyscan {port}{shlex.quote(login.host)} >> {own if not file else shlex.quote(own)}`",
    )
