"""Every way in which a login fails: an error in time, with the step and the command that helps."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import QUICK, Connect
from programs import program, why_missing
from proxy import between
from sshd import Sshd, free_port, running

from edgecnn.agent.pack import Agent
from edgecnn.board.jobs import Board, JobFailed
from edgecnn.board.limits import LinkLimits, parse_limits
from edgecnn.board.login import Address, Unreachable, login_words, read_config
from edgecnn.process.errors import EdgeError


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def refused(server: Sshd, agent: Agent, *, host: str = "board", limits: LinkLimits = QUICK) -> Unreachable:
    """The error of a connect that must fail before any session."""
    with pytest.raises(Unreachable) as caught, within(15):
        Board.connect(host, agent=agent, limits=limits, config=server.config)
    return caught.value


def test_a_board_answers_what_it_is(connect: Connect, server: Sshd) -> None:
    board = connect()
    assert board.facts["backends"]["onnxruntime"].startswith("onnxruntime")
    assert board.facts["boot_id"] == board.boot_id != ""
    assert oct(server.cache.stat().st_mode)[-3:] == "700"


def test_user_host_and_port_instead_of_an_alias(server: Sshd, agent: Agent) -> None:
    text = server.config.read_text().replace("Host board", "Host *").split("  HostName")
    server.config.write_text(text[0] + "  UserKnownHostsFile" + text[1].split("UserKnownHostsFile")[1])
    server.config.write_text(server.config.read_text() + f"  IdentityFile {server.folder}/id_board\n")
    with Board.connect(f"{getpass.getuser()}@127.0.0.1:{server.port}", agent=agent, config=server.config) as board:
        assert board.facts["agent"]


def test_an_unknown_host_key(server: Sshd, agent: Agent) -> None:
    server.known_hosts.write_text("")
    error = refused(server, agent)
    assert error.message == "the host key of `board` is unknown"
    assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> {server.known_hosts}" in error.hint
    assert not server.cache.exists()


def test_a_missing_known_hosts_file_and_none(server: Sshd, agent: Agent) -> None:
    server.known_hosts.unlink()
    assert "is unknown" in refused(server, agent).message
    server.config.write_text(server.config.read_text().replace(str(server.known_hosts), "none"))
    assert "is unknown" in refused(server, agent).message


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_changed_host_key(server: Sshd, agent: Agent, kind: str) -> None:
    other = server.folder / f"other_{kind}"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(other)], check=True)
    server.known_hosts.write_text(f"board-key {' '.join(other.with_suffix('.pub').read_text().split()[:2])}\n")
    error = refused(server, agent)
    assert "the host key of `board` is not the one in known_hosts" in error.message
    assert f"ssh-keygen -R board-key -f {server.known_hosts}" in error.hint
    assert not server.cache.exists()


def test_a_revoked_host_key(server: Sshd, agent: Agent) -> None:
    server.known_hosts.write_text("@revoked " + server.known_hosts.read_text())
    assert "revoked" in refused(server, agent).message


def test_no_key_that_the_board_accepts(server: Sshd, agent: Agent) -> None:
    (server.folder / "authorized_keys").write_text("")
    error = refused(server, agent)
    assert f"refuses the login of `{getpass.getuser()}`: none of your SSH keys is accepted" in error.message
    assert f"ssh-copy-id -p {server.port} {getpass.getuser()}@127.0.0.1" in error.hint


def test_a_key_with_a_passphrase_and_no_agent(server: Sshd, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(server.folder / "id_board")], check=True
    )
    error = refused(server, agent)
    assert "none of your SSH keys is accepted" in error.message
    assert "ssh-add" in error.hint


def test_a_key_of_the_agent_alone(
    server: Sshd, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = tmp_path / "agent"
    ssh_agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(held)], stdout=subprocess.DEVNULL)
    try:
        while not held.exists():
            time.sleep(0.02)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(held))
        subprocess.run(["ssh-add", "-q", str(server.folder / "id_board")], check=True)
        (server.folder / "id_board").unlink()
        assert connect().facts["agent"]
    finally:
        ssh_agent.terminate()
        ssh_agent.wait()


def test_nobody_listens(server: Sshd, agent: Agent) -> None:
    server.write_config(port=free_port())
    error = refused(server, agent)
    assert "refuses connections (127.0.0.1 port" in error.message
    assert "still booting" in error.hint


def test_a_host_that_is_down(server: Sshd, agent: Agent) -> None:
    """Packets vanish: the kernel of the proxy accepts, then nothing comes."""
    with between(server.port) as link:
        link.faults.cut = True
        server.write_config(port=link.port)
        with within(4):
            error = refused(server, agent, limits=LinkLimits(connect_s=1.0))
    assert f"`board` does not answer (127.0.0.1 port {link.port}): nothing within 1 s" in error.message
    assert "ping 127.0.0.1" in error.hint


def test_a_host_whose_backlog_is_full(server: Sshd, agent: Agent) -> None:
    """Not even the TCP handshake is answered."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(full.getsockname())
            waiting.append(one)
        server.write_config(port=full.getsockname()[1])
        with within(4):
            error = refused(server, agent, limits=LinkLimits(connect_s=1.0))
        for one in waiting:
            one.close()
    assert "does not answer" in error.message


def test_a_name_that_does_not_resolve(server: Sshd, agent: Agent) -> None:
    error = refused(server, agent, host="jet@no-such-board.invalid")
    assert "no address is known for board `jet@no-such-board.invalid`" in error.message
    assert "getent hosts no-such-board.invalid" in error.hint


def test_a_port_that_is_no_ssh_server(server: Sshd, agent: Agent) -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    loop = asyncio.new_event_loop()
    web_server = loop.run_until_complete(asyncio.start_server(web, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server.write_config(port=web_server.sockets[0].getsockname()[1])
    error = refused(server, agent)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    assert "`board`" in error.message
    assert "ssh" in error.hint.lower()


def test_a_server_that_stops_before_the_login_ends(server: Sshd, agent: Agent) -> None:
    """sshd is there and stops answering in the middle of the key exchange."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        error = refused(server, agent, limits=LinkLimits(connect_s=1.0))
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert "does not answer" in error.message


def test_a_login_without_a_file_server(server: Sshd, connect: Connect, tmp_path: Path) -> None:
    config = server.folder / "sshd_config"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if "sftp" not in line) + "\n")
    server.restart()
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(100_000))
    assert send(connect(), file)["have"]


def test_a_shell_that_starts_nothing(server: Sshd, agent: Agent) -> None:
    nologin = shutil.which("nologin", path="/usr/sbin:/sbin")
    if nologin is None:
        pytest.skip("no nologin on this machine")
    server.shell = nologin
    server.restart()
    error = refused(server, agent)
    assert "the login shell said `This account is currently not available.`" in error.message


def test_a_banner_before_the_login_and_one_of_the_shell(server: Sshd, connect: Connect, tmp_path: Path) -> None:
    """The banner of the shell goes into the output of every command, and before the link's first word."""
    (server.folder / "banner").write_text("*** authorised users only ***\n")
    config = server.folder / "sshd_config"
    config.write_text(config.read_text() + f"Banner {server.folder}/banner\n")
    (server.home / ".bashrc").write_text("echo 'Welcome to Jetson'; printf 'no newline {\"'\n")
    server.restart()
    board = connect()
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(100_000))
    assert send(board, file)["have"]


def test_a_board_behind_another_host(server: Sshd, connect: Connect, tmp_path: Path) -> None:
    """ProxyJump, as ~/.ssh/config says it: the board's port is reached from the host between alone."""
    with running(tmp_path / "jump") as jump:
        user = getpass.getuser()
        board_key = server.known_hosts.read_text()
        server.known_hosts.write_text(board_key + jump.known_hosts.read_text().replace("board-key", "jump-key"))
        server.write_config(more="  ProxyJump jump\n")
        server.config.write_text(
            f"Host jump\n  HostName 127.0.0.1\n  Port {jump.port}\n  User {user}\n  HostKeyAlias jump-key\n"
            f"  IdentityFile {jump.folder}/id_board\n  UserKnownHostsFile {server.known_hosts}\n"
            + server.config.read_text()
        )
        assert connect().facts["agent"]
        assert "port forwarding" not in (server.folder / "sshd.log").read_text()
        assert f"Accepted publickey for {user}" in (jump.folder / "sshd.log").read_text()
        jump.stop()
        with pytest.raises(Unreachable, match="`board`"):
            connect()


def test_a_configuration_for_a_persons_sessions(server: Sshd, connect: Connect, tmp_path: Path) -> None:
    """A terminal would change bytes and echo the heartbeats; the command would run instead of our own."""
    server.write_config(
        more="  RequestTTY force\n  RemoteCommand tmux attach\n  ForwardX11 yes\n  ForwardX11Trusted yes\n"
    )
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(100_000))
    board = connect()
    assert send(board, file)["have"]


def test_fish_as_the_login_shell(server: Sshd, connect: Connect, tmp_path: Path) -> None:
    if why := why_missing("fish"):
        pytest.skip(why)
    fish = str(program("fish"))
    server.shell = fish
    server.restart()
    (server.home / ".config" / "fish").mkdir(parents=True, exist_ok=True)
    (server.home / ".config" / "fish" / "config.fish").write_text("echo 'Welcome to fish'\n")
    board = connect()
    file = tmp_path / "weights.bin"
    file.write_bytes(os.urandom(100_000))
    assert send(board, file)["have"]
    with pytest.raises(JobFailed, match="the agent has no job `dance`"):
        board.run({"do": "dance"})


def send(board: Board, file: Path) -> dict[str, object]:
    """Bring a file to the board and ask whether it is there."""
    import hashlib

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return board.run({"do": "accept", "files": [{"sha256": digest, "size": file.stat().st_size}]}, {digest: file})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("orin", ("orin", None, None)),
        ("nvidia@orin.local", ("orin.local", "nvidia", None)),
        ("nvidia@orin.local:2222", ("orin.local", "nvidia", 2222)),
        ("fe80::1%eth0", ("fe80::1%eth0", None, None)),
        ("nvidia@[fe80::1]:2222", ("fe80::1", "nvidia", 2222)),
        ("first.last@lab@10.0.0.7", ("10.0.0.7", "first.last@lab", None)),
    ],
)
def test_names_of_boards(text: str, parts: tuple[str, str | None, int | None]) -> None:
    address = Address.parse(text)
    assert (address.host, address.user, address.port) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=touch x",
        "a b",
        "$(touch x)",
        "nvidia@",
        "@orin",
        "orin:port",
        "orin:123456",
        "-l@orin",
        "a\nb",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(EdgeError, match="is not a board"):
        Address.parse(text)


def test_the_users_configuration_is_followed(agent: Agent, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host orin\n  HostName 10.1.2.3\n  Port 2200\n  User nvidia\n")
    for name, expected in (("orin", ("10.1.2.3", "2200", "nvidia")), ("root@orin:22", ("10.1.2.3", "22", "root"))):
        found = read_config(login_words(Address.parse(name), config))
        assert (found["hostname"], found["port"], found["user"]) == expected
    with pytest.raises(Unreachable, match="SSH configuration"):
        Board.connect("orin", agent=agent, config=tmp_path / "missing")


def test_limits_of_the_command_line() -> None:
    assert parse_limits(["silence_s=30"]) == LinkLimits(silence_s=30.0)
    for text, said in (("stop_s=soon", "takes NAME=SECONDS"), ("fast_s=1", "no link limit `fast_s`")):
        with pytest.raises(EdgeError, match=said):
            parse_limits([text])
    with pytest.raises(EdgeError, match="`silence_s` is -1"):
        LinkLimits(silence_s=-1)
