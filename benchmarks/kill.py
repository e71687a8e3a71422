"""Kill a build with SIGKILL at random moments, build again, and compare the end with that of an unbroken build.

    python benchmarks/kill.py --kills 30 [--seed 0] [--recipe FILE]

Every kill starts from an empty store. Compared: the bytes of weights and ONNX files, the per-image outcomes, and every
figure of the report but measured latency. Prints one line a kill and ends with code 1 at the first difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

RECIPE = """\
name: killed
data: {format: arrays, root: digits.npz, color: gray}
model: {family: small, name: gap-s, image_size: 8, normalize: half}
teacher:
  {family: small, name: gap-s, image_size: 8, normalize: half, train: {epochs: 1, batch: 128, lr: 0.003, threads: 1}}
train: {epochs: 2, batch: 128, lr: 0.003, augment: shift, ema: 0.99, threads: 1, distill: {method: dist}}
quantize: {images: 16}
bench: {min_pairs: 200, min_seconds: 0.1, max_seconds: 0.2}
device: cpu-x86
budgets: {max_accuracy_drop: 0.05}
"""
MEASURED = ("latency", "speed", "throughput", "p50", "p90", "p99", "seconds", "noisy")


def command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "edgecnn", "build", str(recipe), "--out", str(out)]


def environment(store: Path) -> dict[str, str]:
    return {**os.environ, "EDGECNN_CACHE": str(store), "OMP_NUM_THREADS": "1"}


def outcome(store: Path, out: Path) -> dict[str, object]:
    """Everything that must be equal: digests of weights, graphs and outcomes, and the report's unmeasured figures."""
    run = (out / "latest").resolve()
    files = [*run.glob("*.onnx"), run / "outcomes.npz", *store.glob("stages/*/*/weights.safetensors")]
    digests = sorted(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files)
    report = json.loads((run / "report.json").read_text())
    figures = {
        figure["name"]: figure["value"]
        for figure in report["figures"]
        if not any(word in figure["name"].lower() for word in MEASURED)
    }
    checks = [(check["name"], check["state"], check["measured"]) for check in report["checks"]]
    return {"digests": digests, "figures": figures, "checks": checks}


def killed_and_continued(recipe: Path, folder: Path, seconds: float) -> tuple[dict[str, object], bool]:
    """One build killed after `seconds`, then one to the end; also whether the kill came before the end."""
    store, out = folder / "store", folder / "out"
    child = subprocess.Popen(
        command(recipe, out), env=environment(store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(seconds)
    broken = child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = subprocess.run(command(recipe, out), env=environment(store), capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(f"the rerun after {seconds:.2f} s ended with {done.returncode}:\n{done.stderr}")
    return outcome(store, out), broken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="edgecnn-kill-") as scratch:
        recipe = arguments.recipe or Path(scratch, "killed.yaml")
        if arguments.recipe is None:
            recipe.write_text(RECIPE)
            digits = load_digits()
            images = (digits.images * 15.9).astype(np.uint8)[..., None]
            np.savez(recipe.with_name("digits.npz"), images=images, labels=digits.target)
        start = time.monotonic()
        whole = Path(scratch, "unbroken")
        subprocess.run(
            command(recipe, whole / "out"), env=environment(whole / "store"), capture_output=True, check=False
        )
        seconds = time.monotonic() - start
        expected = outcome(whole / "store", whole / "out")
        print(f"unbroken build: {seconds:.1f} s, {len(expected['digests'])} files, {len(expected['figures'])} figures")
        for number in range(arguments.kills):
            moment = moments.uniform(0.1, seconds)
            found, broken = killed_and_continued(recipe, Path(scratch, str(number)), moment)
            equal = found == expected
            ending = "equal" if equal else "DIFFERENT"
            print(f"kill {number + 1:2d} at {moment:5.2f} s{'' if broken else ' (had ended)'}: {ending}", flush=True)
            if not equal:
                for key in expected:
                    if found[key] != expected[key]:
                        print(f"  {key}\n    unbroken: {expected[key]}\n    continued: {found[key]}")
                sys.exit(1)
    print(f"{arguments.kills} of {arguments.kills} equal")


if __name__ == "__main__":
    main()
