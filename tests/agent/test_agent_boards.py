"""Boards that aren't what they should be: an old Python, no numpy, another protocol, a damaged agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from agent_home import AgentHome

from edgecnn.agent.pack import pack_agent, packed_modules
from edgecnn.agent.protocol import PROTOCOL


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    return AgentHome(tmp_path / "home")


def test_a_damaged_agent(home: AgentHome) -> None:
    content = home.pyz.read_bytes()
    home.pyz.write_bytes(content + b"more")  # still a zip file that Python runs
    answer = home.run("describe")
    assert (answer["kind"], "the agent on the board is damaged" in answer["error"]) == ("agent-damaged", True)


@pytest.mark.parametrize(("protocol", "kind"), [(PROTOCOL + 1, "agent-too-old"), (PROTOCOL - 1, "tool-too-old")])
def test_another_protocol(home: AgentHome, protocol: int, kind: str) -> None:
    answer = home.run("describe", protocol=protocol)
    assert answer["kind"] == kind
    assert f"this edgecnn speaks protocol {protocol}, the board's agent speaks {PROTOCOL}" in answer["error"]


def test_a_job_that_is_not_there(home: AgentHome) -> None:
    for name, words in (("none", "there is no job `none`"), ("../x", "`../x` is not a job id")):
        done = subprocess.run(
            [sys.executable, str(home.pyz), name], cwd=home.home, env=home.env, stdin=subprocess.PIPE,
            capture_output=True, text=True,
        )  # fmt: skip
        answer = json.loads(done.stdout)
        assert (answer["kind"], words in answer["error"], done.stderr) == ("refused", True, "")


def blocked_numpy(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import sys\nsys.modules['numpy'] = None\n")
    return {"PYTHONPATH": str(tmp_path / "site")}


def test_numpy_is_missing(tmp_path: Path) -> None:
    home = AgentHome(tmp_path / "home", env=blocked_numpy(tmp_path))
    answer = home.run("describe")
    assert answer["kind"] == "missing"
    assert answer["error"].startswith("numpy is missing on the board")
    assert "apt install python3-numpy" in answer["hint"]
    assert home.result("accept", files=[])["have"] == []  # needs none


@pytest.mark.parametrize("module", ["guard", "keeper", "sampler", "files"])
def test_what_stands_beside_an_engine_starts_without_numpy(tmp_path: Path, module: str) -> None:
    """They start while a board is timed, or while its owner waits."""
    env = {**os.environ, **blocked_numpy(tmp_path)}
    done = subprocess.run([sys.executable, "-c", f"import edgecnn.agent.{module}"], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr


BLOCK_ALL = """\
import sys
class Block:
    names = frozenset({names!r})
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_the_agent_needs_nothing_but_numpy(tmp_path: Path) -> None:
    """Every module of the zipapp is imported with all else blocked, out of the zipapp alone."""
    from importlib.metadata import packages_distributions

    names = {name for name in packages_distributions() if name not in ("numpy", "edgecnn") and not name.startswith("_")}
    (tmp_path / "sitecustomize.py").write_text(BLOCK_ALL.format(names=sorted(names)))
    pyz = tmp_path / "agent.pyz"
    pyz.write_bytes(pack_agent().data)
    modules = list(packed_modules())
    code = (
        f"import sys; sys.path.insert(0, {str(pyz)!r})\nimport importlib\n"
        f"for name in {modules!r}: assert '.pyz' in importlib.import_module(name).__file__\n"
        "try: import pydantic\nexcept ImportError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "blocked: pydantic\n"), done.stderr


def pythons() -> list[tuple[str, str]]:
    """(version, path) of other Pythons that are here."""
    folders = [Path(one) for one in os.environ["PATH"].split(os.pathsep) if "shims" not in one]  # they only ask pyenv
    folders += sorted(Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob("versions/*/bin"))
    found = {}
    for minor in range(6, 15):
        for folder in folders:
            path = folder / f"python3.{minor}"
            if f"3.{minor}" not in found and path.exists():
                done = subprocess.run([str(path), "-c", "print(1)"], capture_output=True, check=False)
                if done.returncode == 0:
                    found[f"3.{minor}"] = str(path)
    return list(found.items())


OTHER = pythons()
OLD = [one for one in OTHER if int(one[0][2:]) < 10]
NEW = [one for one in OTHER if int(one[0][2:]) >= 10]


@pytest.mark.parametrize(("version", "path"), OLD, ids=[version for version, _ in OLD])
def test_a_python_too_old_says_so(tmp_path: Path, version: str, path: str) -> None:
    answer = AgentHome(tmp_path / "home", python=path).run("describe")
    assert answer["error"] == f"the board's python3 is {version}, the agent needs 3.10 or newer"
    assert answer["kind"] == "python-too-old"


def test_a_python_too_old_says_so_here_too(tmp_path: Path) -> None:
    """Where no old Python is installed: the zipapp's first lines, told that this one is 3.8."""
    pyz = tmp_path / "agent.pyz"
    pyz.write_bytes(pack_agent().data)
    code = f"import runpy, sys; sys.version_info = (3, 8, 10); runpy.run_path({str(pyz)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)["kind"]) == (1, "python-too-old")


@pytest.mark.parametrize(("version", "path"), NEW, ids=[version for version, _ in NEW])
def test_every_python_of_a_jetpack_runs_the_guard(tmp_path: Path, version: str, path: str) -> None:
    home = AgentHome(tmp_path / "home", python=path)
    assert home.result("accept", files=[])["have"] == []
    answer = home.run("describe")
    assert answer.get("result", {}).get("python", "").startswith(version) or answer["kind"] == "missing"
