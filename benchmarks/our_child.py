"""Our quantizer on one model: `python our_child.py JOB.json`; the same job and answer as `peer_child.py`.

`method` is a list of rungs. They run in order, whatever they bring: no budget stops them, no labels are read.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from packs import bench_model, ladder_tools
from peer_child import peak_mb

from edgecnn import __version__
from edgecnn.process import progress
from edgecnn.quantize.ladder.ladder import load_rung
from edgecnn.quantize.write.rewrite import serialized
from edgecnn.recipe.load import load_device

DEVICE = "jetson-orin-nano"  # its scheme is TensorRT's


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    bench = bench_model(job["name"], Path(job["data"]), Path(job["work"]))
    scheme = load_device(DEVICE).scheme
    start, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="edgecnn-rungs-") as folder:
        tools, candidate = ladder_tools(bench, scheme, job["draw"], Path(folder), job["fold"])
        notes = []
        for name in job["method"].split(","):
            if name == "ranges":
                continue  # `ladder_tools` chose them
            before = time.monotonic()
            candidate = load_rung(name)(candidate, tools)
            notes.append(f"{name} {time.monotonic() - before:.1f} s")
        Path(job["output"]).write_bytes(serialized(candidate.quantized(scheme)))
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    answer = {
        "seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_mb(), "versions": {"edgecnn": __version__},
        "notes": [*notes, *candidate.notes],
    }  # fmt: skip
    print(json.dumps(answer))


if __name__ == "__main__":
    with progress.showing(progress.Plain(60)):
        main()
