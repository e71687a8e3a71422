"""Our quantizer with default settings on one network: `python our_default.py JOB.json`, a job of `defaults.py`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from default_models import network
from peer_child import peak_mb

from edgecnn import __version__
from edgecnn.data import Images
from edgecnn.process import progress
from edgecnn.quantize import quantize_model
from edgecnn.recipe.load import load_device
from edgecnn.recipe.recipe import QuantizeSpec


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    net = network(job["network"], Path(job["data"]), Path(job["work"]))
    images = np.load(job["images"])
    spec = QuantizeSpec.model_validate({"images": len(images), **job.get("spec", {}), "effort": job["method"]})
    start, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="edgecnn-default-") as folder:
        out = Path(folder)
        quantize_model(out, spec, load_device(job["device"]).scheme, net.model, Images((images,)), net.contract)
        record = json.loads((out / "quantize.json").read_text())
        Path(job["output"]).write_bytes((out / "model.onnx").read_bytes())
    answer = {
        "seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu, "peak_mb": peak_mb(),
        "versions": {"edgecnn": __version__}, "ladder": record["ladder"], "notes": record["recovery"]["notes"],
        "told": record["sqnr_db"], "calibrate": record["calibration"]["seconds"],
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    with progress.showing(progress.Plain(60)):
        main()
