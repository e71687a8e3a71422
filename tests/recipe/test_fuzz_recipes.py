"""Recipes and device files with seeded mistakes: taken or refused, never a traceback, never a wait."""

from __future__ import annotations

from pathlib import Path

import pytest
from yaml_mutants import load_all


@pytest.mark.parametrize("kind", ["recipes", "devices"])
def test_mutants_are_taken_or_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, slowest = load_all(kind, 300, seed=0, folder=tmp_path)
    assert found["refused"] > 150
    assert found["taken"] > 5
    assert set(found) == {"refused", "taken"}
    assert slowest < 10
