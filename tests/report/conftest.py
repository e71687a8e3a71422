"""Reports judged from hand-made artifacts."""

from __future__ import annotations

import pytest
from evidence_folders import CPU, HERE, climb, evidence, recipe

from edgecnn.report import CompiledCheck, CompiledFor
from edgecnn.verdict.gate import judge


@pytest.fixture(scope="session")
def built_evidence(tmp_path_factory):
    """Ten classes, twenty layers, 500 pairs, a climb of three rungs whose second was left out."""
    climbed = climb("held", 0.04, 0.05, 0.009)
    return evidence(tmp_path_factory.mktemp("stages"), images=2000, b=40, c=20, accuracy=0.92, climb=climbed)


@pytest.fixture(scope="session")
def built(built_evidence):
    """A report with every part and with checks that pass, fail and stay undecided."""
    budgets = recipe(max_accuracy_drop=0.02, min_speedup=3.0, max_p99_ms=8.0, max_size_mb=0.5)
    report = judge(budgets, CPU, HERE, built_evidence, run="20260102-030405-ab12cd34")
    parser = CompiledCheck(name="TensorRT for RTX 1.7 parser", passed=True, detail="accepted")
    return report.with_compiled(
        [
            CompiledFor(device="rtx-4060", built=True, note="compiled for 8.9", checks=(parser,), passed=True),
            CompiledFor.failed("jetson-orin-nano", "node <conv1> & its bias: refused"),
        ]
    )


@pytest.fixture(scope="session")
def passing(tmp_path_factory):
    """A report whose checks all passed."""
    made = evidence(tmp_path_factory.mktemp("passing"))
    return judge(recipe(max_accuracy_drop=0.02, min_speedup=1.5), CPU, HERE, made)
