"""A model's answers to some of the scored images in one file: written on the board, read on the host.

A detector's answers are nearly all background: of every image only the candidates are kept, the anchors of which some
class's score is above the confidence that the metric asks (or isn't finite, which the host must see). The host puts
zeros in place of the others, which no metric looks at.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecnn.process.disk import replacing
from edgecnn.process.errors import EdgeError

MOST_ANCHORS = 1 << 22  # of an image: a detector at 2,048 px has 86,016


@dataclass(frozen=True)
class Answers:
    """Answers to images `rows` (int64, (n,), numbers in the scored split), by output name."""

    rows: NDArray[np.int64]
    outputs: Mapping[str, Any]  # (n, …), or where `anchors` are given (candidates, …)
    offsets: NDArray[np.int64] | None = None  # (n + 1,): image i has candidates offsets[i] to offsets[i + 1]
    anchors: NDArray[np.int64] | None = None  # (candidates,): their numbers
    anchor_count: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, start: int, stop: int) -> dict[str, Any]:
        """The model's outputs for images start..stop of these (positions, not numbers), each (stop - start, …)."""
        if self.offsets is None or self.anchors is None:
            return {name: values[start:stop] for name, values in self.outputs.items()}
        found = {}
        for name, values in self.outputs.items():
            full = np.zeros((stop - start, self.anchor_count, *values.shape[1:]), values.dtype)
            for place in range(start, stop):
                part = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
                full[place - start, self.anchors[part]] = values[part]
            found[name] = full
        return found


def dense(rows: Sequence[int], outputs: Mapping[str, Any]) -> Answers:
    """All of the outputs, (n, …) each."""
    return Answers(np.asarray(rows, np.int64), outputs)


def candidates(rows: Sequence[int], outputs: Mapping[str, Any], scores: str, confidence: float) -> Answers:
    """What a detector found: outputs (n, anchors, …), of which `scores` (n, anchors, classes) decides."""
    values = np.asarray(outputs[scores])
    if any(np.asarray(one).shape[:2] != values.shape[:2] for one in outputs.values()):
        shapes = ", ".join(f"{name} {np.asarray(one).shape}" for name, one in outputs.items())
        raise EdgeError(f"the detector's outputs do not have the same anchors: {shapes}")
    wanted = (values > confidence).any(axis=-1)
    for one in outputs.values():
        finite = np.isfinite(np.asarray(one)).reshape(*values.shape[:2], -1).all(axis=-1)
        wanted |= ~finite
    images, anchors = np.nonzero(wanted)
    offsets = np.searchsorted(images, np.arange(len(values) + 1)).astype(np.int64)
    kept = {name: np.asarray(one)[images, anchors] for name, one in outputs.items()}
    return Answers(np.asarray(rows, np.int64), kept, offsets, anchors.astype(np.int64), values.shape[1])


def joined(parts: Sequence[Answers]) -> Answers:
    """Answers one after the other."""
    rows = np.concatenate([part.rows for part in parts])
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    if parts[0].offsets is None:
        return Answers(rows, outputs)
    counts = np.concatenate([np.diff(part.offsets) for part in parts if part.offsets is not None])
    anchors = np.concatenate([part.anchors for part in parts if part.anchors is not None])
    return Answers(rows, outputs, np.concatenate([[0], np.cumsum(counts)]), anchors, parts[0].anchor_count)


def write_answers(path: Path, answers: Answers) -> None:
    """Write one .npz; the same bytes for the same answers. Never half: it is renamed when it is whole."""
    arrays: dict[str, Any] = {
        f"output_{number}": np.asarray(values) for number, values in enumerate(answers.outputs.values())
    }
    arrays |= {"rows": answers.rows, "names": np.asarray(list(answers.outputs), np.str_)}
    if answers.offsets is not None and answers.anchors is not None:
        arrays |= {"offsets": answers.offsets, "anchors": answers.anchors}
        arrays["anchor_count"] = np.asarray(answers.anchor_count, np.int64)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file that a board wrote: no objects, nothing compressed, so nothing larger than the file.

    Raises:
        ValueError: it isn't such a file; whatever makes numpy or zipfile fail is told as this.
    """
    try:
        with zipfile.ZipFile(path) as stored:
            if any(one.compress_type != zipfile.ZIP_STORED for one in stored.infolist()):
                raise ValueError("it is compressed")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # of a damaged header: SyntaxError, OverflowError, MemoryError and others
        raise ValueError(f"it is damaged: {error}") from error


def read_answers(path: Path) -> Answers:
    """Read what `write_answers` wrote.

    Raises:
        EdgeError: it isn't such a file.
    """
    try:
        arrays = read_arrays(path)
        names = [str(name) for name in np.atleast_1d(arrays["names"])]
        answers = Answers(arrays["rows"], {name: arrays[f"output_{number}"] for number, name in enumerate(names)})
        if "anchors" in arrays:
            count = int(arrays["anchor_count"])
            answers = replace(answers, offsets=arrays["offsets"], anchors=arrays["anchors"], anchor_count=count)
        _check(answers)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise EdgeError(f"`{path}` holds no answers of a model: {error}", "score again") from error
    return answers


def _check(answers: Answers) -> None:
    """Whether the parts fit together; ValueError."""
    indices = [answers.rows, *(one for one in (answers.offsets, answers.anchors) if one is not None)]
    if any(one.dtype != np.int64 or one.ndim != 1 for one in indices):
        raise ValueError("its numbers of images or anchors are not whole numbers")
    expected = len(answers.rows)
    if answers.offsets is not None and answers.anchors is not None:
        expected, offsets = len(answers.anchors), answers.offsets
        whole = len(offsets) == len(answers.rows) + 1 and offsets[0] == 0 and offsets[-1] == expected
        if not whole or np.any(np.diff(offsets) < 0) or not 0 <= answers.anchor_count <= MOST_ANCHORS:
            raise ValueError("its candidates do not belong to its images")
        if np.any(answers.anchors < 0) or np.any(answers.anchors >= answers.anchor_count):
            raise ValueError("its candidates have anchors that are not there")
    for name, values in answers.outputs.items():
        if values.dtype.kind not in "fiub" or values.ndim == 0 or len(values) != expected:
            raise ValueError(f"output `{name}` is {values.dtype} {values.shape}, for {expected} rows")
