"""Six networks of the edge zoo, small: quantized, held to TensorRT 10.3's rules and compiled by TensorRT for RTX."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks"
SIDE = 64
EXPORT = f"""
import sys
sys.path.insert(0, {str(BENCH)!r})
from pathlib import Path
from zoo_models import SAMPLE, export
for name in SAMPLE:
    folder = Path(sys.argv[1], f"{{name}}-{SIDE}")
    folder.mkdir(parents=True)
    export(name, folder / "model.onnx", {SIDE})
"""


@pytest.mark.slow
@pytest.mark.full(reason="networks of others: the foreign graphs and random ones meet the same code")
@pytest.mark.train
def test_a_sample_of_the_zoo(tmp_path: Path) -> None:
    for module in ("torchvision", "timm", "tensorrt_rtx"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path)], check=True, capture_output=True)
    zoo = [sys.executable, str(BENCH / "zoo.py"), "--work", str(tmp_path), "--only", "sample", "--side", str(SIDE)]
    done = subprocess.run(zoo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "results").iterdir())]
    assert len(results) == 6
    for found in results:
        assert found["refusals"] == []
        assert found["compile_seconds"] > 0
        assert found["int8_macs"] > 0.9
        assert found["qdq"] > 20
        assert found["sqnr_db"] > 5.0, found["name"]
    assert "6 of 6 ok (100.0%)" in done.stdout
