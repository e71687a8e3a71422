"""NAME.baseline.zip: written with equal bytes for equal contents, read as untrusted input.

    baseline.json          recipe, device, metric, data digest; SHA-256 of everything else
    outcomes.npz           per-image outcomes
    report.json            the run's report
    models/<sha256>.onnx   float and INT8 model (absent when they were left out)

Only these names are read, each held to its size and hash; nothing is extracted by a name from the file, nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from edgecnn.data.archives import DAMAGED
from edgecnn.process.disk import write_file
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.spec import Spec
from edgecnn.recipe.tasks import task_of_metric
from edgecnn.report import Report, parse_report
from edgecnn.tasks import Arrays, Outcomes, Task, load_task
from edgecnn.verdict.evidence import outcomes_bytes

LIMITS = {"baseline.json": 1 << 20, "report.json": 64 << 20, "outcomes.npz": 1 << 30}  # bytes
MODEL_LIMIT = 8 << 30
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold: equal contents are equal bytes


@dataclass(frozen=True)
class Kept:
    """A run's outcomes.npz: its arrays, and INT8's outcomes in them."""

    task: Task
    arrays: Arrays
    int8: Outcomes


class BaselineFile(Spec):
    """baseline.json."""

    schema_version: Literal[1] = 1
    recipe: str
    run: str
    device: str
    metric: str
    data_digest: str
    edgecnn: str
    files: dict[str, str]  # member → SHA-256
    models: dict[str, str]  # model.onnx, model.int8.onnx → SHA-256; empty without models


@dataclass(frozen=True)
class Baseline:
    """A baseline file, read and checked. `int8_model`: the ONNX bytes, None when it was left out."""

    head: BaselineFile
    report: Report
    outcomes: Kept
    int8_model: bytes | None


def write_baseline(file: Path, report: Report, report_json: bytes, outcomes: Kept, models: Mapping[str, bytes]) -> None:
    """Write a baseline file. `models`: ONNX bytes by file name, empty to leave them out.

    Raises:
        EdgeError: `file` can't be written.
    """
    members = {"report.json": report_json, "outcomes.npz": outcomes_bytes(outcomes.arrays)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in models.items()}
    members.update({f"models/{digests[name]}.onnx": content for name, content in models.items()})
    head = BaselineFile(
        recipe=report.recipe,
        run=report.run,
        device=report.device,
        metric=report.metric,
        data_digest=report.data_digest,
        edgecnn=report.edgecnn,
        files={name: hashlib.sha256(content).hexdigest() for name, content in sorted(members.items())},
        models=digests,
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in [("baseline.json", head.model_dump_json(indent=1).encode()), *sorted(members.items())]:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            # Weights don't compress, and .npz is compressed already.
            entry.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED
            archive.writestr(entry, content)
    write_file(file, buffer.getvalue())


def read_baseline(file: Path) -> Baseline:
    """Read and check a baseline file.

    Raises:
        EdgeError: it can't be read, is damaged, or is not a baseline.
    """
    hint = "make it again: `edgecnn check RUN --baseline FILE --update`"
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, str(file))
    except OSError as error:
        raise EdgeError(f"cannot read the baseline `{file}`: {error.strerror or error}", hint) from error
    except DAMAGED as error:
        what = "not an edgecnn baseline" if isinstance(error, ValidationError) else error
        raise EdgeError(f"`{file}` is damaged or not a baseline: {what}", hint) from error


def _read_archive(archive: zipfile.ZipFile, where: str) -> Baseline:
    sizes: dict[str, int] = {}
    for entry in archive.infolist():
        if entry.filename in sizes:
            raise ValueError(f"`{entry.filename}` is there twice")
        limit = LIMITS.get(entry.filename)
        if limit is None and re.fullmatch(r"models/[0-9a-f]{64}\.onnx", entry.filename):
            limit = MODEL_LIMIT
        if limit is None:
            raise ValueError(f"it holds `{entry.filename}`, which no baseline does")
        if entry.file_size > limit:
            raise ValueError(f"`{entry.filename}` claims {entry.file_size:,} bytes")
        sizes[entry.filename] = entry.file_size
    missing = [name for name in LIMITS if name not in sizes]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    head = BaselineFile.model_validate_json(archive.read("baseline.json"))
    wanted = {"report.json", "outcomes.npz", *(f"models/{digest}.onnx" for digest in head.models.values())}
    if set(head.files) != wanted or sizes.keys() - {"baseline.json"} != wanted:
        raise ValueError("its list of files is not what it holds")
    content = {name: archive.read(name) for name in sorted(wanted)}
    for name, digest in head.files.items():
        if hashlib.sha256(content[name]).hexdigest() != digest:
            raise ValueError(f"`{name}` was changed")
    int8 = head.models.get("model.int8.onnx")
    return Baseline(
        head=head,
        report=parse_report(content["report.json"], f"{where}: report.json"),
        outcomes=read_outcomes(head.metric, content["outcomes.npz"], f"{where}: outcomes.npz"),
        int8_model=content[f"models/{int8}.onnx"] if int8 else None,
    )


def read_outcomes(metric: str, content: bytes, where: str) -> Kept:
    """The outcomes.npz of a run that was scored by a metric.

    Raises:
        EdgeError: it is damaged, or holds no such outcomes.
    """
    task = load_task(task_of_metric(metric))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            if sum(entry.file_size for entry in inner.infolist()) > LIMITS["outcomes.npz"]:
                raise ValueError("it unpacks to more than 1 GB")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Kept(task, arrays, task.restore(arrays))
    except (*DAMAGED, OSError) as error:
        raise EdgeError(f"`{where}` holds no per-image outcomes: {error}", "build the run again") from error
