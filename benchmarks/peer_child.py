"""One peer's quantizer on one model, run by that peer's own Python: `python peer_child.py JOB.json`.

It imports nothing of edgecnn. The job: tool, method, model, output, images (uint8 NHWC .npy), input (name, color, low,
high, mean, std), exclude (node names that stay float). It prints one JSON line: seconds, cpu_seconds, peak_mb and
versions. Both seconds are of the quantizer's call with everything it reads and writes, after the imports; the peak is
of the process.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def feeds(job: dict[str, Any]) -> np.ndarray:
    """All calibration images as the model takes them: float32 NCHW."""
    values = np.load(job["images"])
    return np.concatenate([feed(job, values[number : number + 1]) for number in range(len(values))])


def feed(job: dict[str, Any], images: np.ndarray) -> np.ndarray:
    """uint8 NHWC → float32 NCHW, as edgecnn's contract does it."""
    how = job["input"]
    values = images[..., ::-1] if how["color"] == "bgr" else images
    values = values.astype(np.float32) * np.float32((how["high"] - how["low"]) / 255.0) + np.float32(how["low"])
    if how["mean"]:
        values = (values - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)


def prepare_onnxruntime(job: dict[str, Any]) -> Callable[[], None]:
    """Weights per channel, 8 images collected at a time.

    Symmetric S8S8 with float biases (TensorRT refuses others), or with `types: u8s8` what onnxruntime advises for x86.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = np.load(job["images"], mmap_mode="r")
            self.next, self.end = 0, len(self.images)

        def __len__(self) -> int:
            return len(self.images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.next, self.end = start_index, end_index

        def get_next(self) -> dict[str, np.ndarray] | None:
            if self.next >= self.end:
                return None
            self.next += 1
            return {job["input"]["name"]: feed(job, self.images[self.next - 1 : self.next])}

    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    wide = job.get("types") == "u8s8"

    def call() -> None:
        prepared = job["output"] + ".prepared.onnx"
        quant_pre_process(job["model"], prepared)
        quantize_static(
            prepared, job["output"], Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8 if wide else QuantType.QInt8, weight_type=QuantType.QInt8,
            nodes_to_exclude=job["exclude"], calibrate_method=methods[job["method"]],
            extra_options={
                "ActivationSymmetric": not wide, "WeightSymmetric": True, "QuantizeBias": wide, "CalibStridedMinMax": 8,
            },
        )  # fmt: skip
        Path(prepared).unlink()

    return call


def prepare_nncf(job: dict[str, Any]) -> Callable[[], None]:
    """Performance preset; `bias` is the same with full bias correction."""
    import nncf
    import onnx

    def call() -> None:
        images = np.load(job["images"], mmap_mode="r")
        data = nncf.Dataset(range(len(images)), lambda n: {job["input"]["name"]: feed(job, images[n : n + 1])})
        scope = nncf.IgnoredScope(names=job["exclude"]) if job["exclude"] else None
        model = nncf.quantize(
            onnx.load(job["model"]), data, preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(images),
            fast_bias_correction=job["method"] != "bias", ignored_scope=scope,
        )  # fmt: skip
        onnx.save(model, job["output"])

    return call


def prepare_modelopt(job: dict[str, Any]) -> Callable[[], None]:
    """Islands in FP32, so that what is compared is INT8 alone."""
    from modelopt.onnx.quantization import quantize

    def call() -> None:
        quantize(
            job["model"], quantize_mode="int8", calibration_data={job["input"]["name"]: feeds(job)},
            calibration_method=job["method"], calibration_eps=["cpu"], high_precision_dtype="fp32",
            nodes_to_exclude=[re.escape(name) + "$" for name in job["exclude"]] or None, output_path=job["output"],
        )  # fmt: skip

    return call


PEERS = {
    "onnxruntime": (prepare_onnxruntime, ("onnxruntime", "onnx")),
    "nncf": (prepare_nncf, ("nncf", "openvino", "onnx")),
    "modelopt": (prepare_modelopt, ("nvidia-modelopt", "onnxruntime-gpu", "onnx")),
}


def peak_mb() -> float:
    """Largest resident size of this process image so far, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    prepare, packages = PEERS[job["tool"]]
    call = prepare(job)
    start, cpu = time.monotonic(), time.process_time()
    call()
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    versions = {package: version(package) for package in packages}
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_mb(), "versions": versions}))


if __name__ == "__main__":
    main()
