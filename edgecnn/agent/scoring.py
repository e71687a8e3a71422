"""Score on the board: images in, the engine's answers out, in files that are whole one by one.

The metric is computed on the host, by the same code as everywhere. Images are cut into batches as a run over all of
them from image 0 would cut them, so that every answer has the same bits whoever computes it, in however many pieces.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.agent import files
from edgecnn.agent.answers import Answers, candidates, dense, joined, write_answers
from edgecnn.agent.protocol import Cache, Json, Refusal
from edgecnn.backends import load_backend
from edgecnn.backends.cpu import cores
from edgecnn.measure.feeding import Feeding, answer, batch_size, batches
from edgecnn.process import progress
from edgecnn.process.disk import write_json

FILE_BYTES = 8_000_000  # of answers in one file: what a cut link costs at most,
FILE_SECONDS = 5.0  # or so much time
SAY_SECONDS = 0.1  # between lines of progress, which share the link with the answers


@dataclass(frozen=True)
class Shards:
    """Images `first` and on of the scored split: uint8 NHWC arrays, mapped from disk."""

    arrays: tuple[Any, ...]
    first: int

    def __len__(self) -> int:
        return sum(len(array) for array in self.arrays)

    def batch(self, start: int, stop: int) -> Any:
        """Images start..stop by their numbers in the split, a copy in memory."""
        parts, first = [], self.first
        for array in self.arrays:
            low, high = max(start - first, 0), min(stop - first, len(array))
            if low < high:
                parts.append(array[low:high])
            first += len(array)
        return np.concatenate(parts)


def open_shards(paths: Sequence[Path], first: int) -> Shards:
    """Map shards as `data.write_shards` wrote them.

    Raises:
        Refusal: one is not an array of images.
    """
    arrays = []
    for path in paths:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise Refusal("damaged", f"`{path.name[:12]}…` holds no images: {error}", "send it again") from error
        if array.dtype != np.uint8 or array.ndim != 4:
            raise Refusal("refused", f"`{path.name[:12]}…` holds {array.dtype} {array.shape}, not uint8 NHWC images")
        arrays.append(array)
    if not arrays:
        raise Refusal("refused", "the job names no images")
    return Shards(tuple(arrays), first)


def score(cache: Cache, folder: Path, job: Json) -> Json:
    """Answer the job's images.

    Args:
        folder: the job's; `out/` takes the answers (`agent.answers`), each file under the number of its first image.
        job: `backend`; `model` and `shards`, digests; `io`, the model's contract; `first`, the number of the first
            image; `rows`, [start, stop] where not all of the shards are wanted; `batch`; `keep`.

    Returns:
        `files`, a list of {name, sha256, size, rows: [start, stop]} in order; `how`; `seconds`; `images`, how many
        were answered now: not those that a job of the same content, cut off before, had left in `out/`.
    """
    start = time.monotonic()
    model, feed = files.checked(cache, job["model"]), Feeding.of(job["io"])
    images = open_shards([files.present(cache, digest) for digest in job["shards"]], int(job.get("first", 0)))
    first, stop = job.get("rows") or (images.first, images.first + len(images))
    backend = load_backend(job["backend"])
    runner = backend.load(model, threads=cores())
    out = _Out(folder / "out", _key(job, runner.how))
    size, _ = batch_size(runner, int(job["batch"]))
    done = [range(*one) for one in out.ranges()]
    wanted = [
        numbers for numbers in batches(stop - first, size, first)
        if not any(numbers.start in one and numbers.stop - 1 in one for one in done)
    ]  # fmt: skip
    answered = 0
    with progress.current().task("scoring", stop - first) as task:
        before = stop - first - sum(len(numbers) for numbers in wanted)
        said = 0.0
        for numbers in wanted:
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                task.update(before + answered)
            answers = answer(runner, feed, images.batch(numbers.start, numbers.stop), int(job["batch"]))
            out.add(numbers, _kept(answers, numbers, job))
            answered += len(numbers)
        task.update(before + answered)
    out.flush()
    seconds = time.monotonic() - start
    return {"files": out.listed(), "how": runner.how, "seconds": seconds, "images": answered}


def _kept(answers: Any, numbers: range, job: Json) -> Answers:
    outputs = {one["name"]: np.asarray(answers[one["name"]])[: len(numbers)] for one in job["io"]["outputs"]}
    match job["keep"]:
        case {"rows": str(name), "above": float(least)} if name in outputs:
            return candidates(numbers, outputs, name, least)
        case {} as everything if not everything:
            return dense(numbers, outputs)
        case other:
            raise Refusal("refused", f"the agent cannot keep the answers of `{other}`")


def _key(job: Json, how: str) -> str:
    deciding = {part: job.get(part) for part in ("backend", "model", "io", "shards", "first", "batch", "keep")}
    return hashlib.sha256(json.dumps([deciding, how], sort_keys=True).encode()).hexdigest()


class _Out:
    """The files of a job. What an earlier try left is kept when it was of the same content, else removed."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key, self.index = folder, key, folder / "index.json"
        self.parts: list[Answers] = []
        self.numbers: list[range] = []
        self.bytes, self.opened = 0, time.monotonic()
        self.files: list[Json] = self._left()

    def _left(self) -> list[Json]:
        try:
            content = json.loads(self.index.read_text())
        except (OSError, ValueError):
            content = {}
        if content.get("key") != self.key:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700)
            return []
        return [
            one for one in content["files"]
            if (path := self.folder / one["name"]).is_file() and files.digest_of(path) == one["sha256"]
        ]  # fmt: skip

    def ranges(self) -> list[list[int]]:
        """[start, stop] of the images that are answered."""
        return [one["rows"] for one in self.files]

    def add(self, numbers: range, answers: Answers) -> None:
        """Take a batch's answers; written when there are enough, when it was long, or where numbers leave a gap."""
        if self.numbers and numbers.start != self.numbers[-1].stop:
            self.flush()
        if not self.numbers:
            self.opened = time.monotonic()
        self.numbers.append(numbers)
        self.parts.append(answers)
        self.bytes += sum(values.nbytes for values in answers.outputs.values())
        if self.bytes >= FILE_BYTES or time.monotonic() - self.opened >= FILE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        if not self.parts:
            return
        rows = [self.numbers[0].start, self.numbers[-1].stop]
        path = self.folder / f"{rows[0]:08d}.npz"
        write_answers(path, joined(self.parts))
        entry = {**files.entry(path), "rows": rows}
        self.parts, self.numbers, self.bytes = [], [], 0
        self.files.append(entry)
        write_json(self.index, {"key": self.key, "files": self.files})

    def listed(self) -> list[Json]:
        """The files, by their first image."""
        return sorted(self.files, key=lambda one: int(one["rows"][0]))
