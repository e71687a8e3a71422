"""A board's answers, replayed: a Runner that is asked for image numbers and gives what a model there answered.

So the metric, and everything that judges a board, is the code that judges a model run here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.agent.answers import Answers, read_answers
from edgecnn.backends import Arrays, TensorInfo
from edgecnn.process.errors import EdgeError


class Recorded:
    """A Runner and the images it is fed (`ImageBatches`) in one: the images are only their numbers.

    Args:
        files: answer files that hold images 0 to `count`, each once, in order.
        count: how many images were scored.
        how: what computed, and where.
        names: of the model's outputs.

    Raises:
        EdgeError: images are missing or doubled, or other outputs were answered.
    """

    inputs: tuple[TensorInfo, ...] = ()  # any batch fits: nothing is computed here

    def __init__(self, files: Sequence[Path], count: int, how: str, names: Sequence[str]) -> None:
        self.files, self.count, self.how = tuple(files), count, how
        self.starts: list[int] = []
        expected = 0
        known: dict[str, tuple[int, ...]] = {}
        for file in self.files:
            answers = read_answers(file)
            rows, shapes = answers.rows, {name: values.shape[1:] for name, values in answers.outputs.items()}
            if sorted(shapes) != sorted(names) or shapes != (known := known or shapes):
                raise EdgeError(
                    f"the board's answers are inconsistent: `{file.name}` holds outputs {shapes}, expected were"
                    f" {known or list(names)}",
                    "score again",
                )
            if not np.array_equal(rows, np.arange(expected, expected + len(rows))):
                raise EdgeError(
                    f"the board's answers are inconsistent: `{file.name}` holds images {_span(rows)}, expected was"
                    f" image {expected}",
                    "score again",
                )
            self.starts.append(expected)
            expected += len(rows)
        if expected != count:
            raise EdgeError(f"the board answered {expected} of {count} images", "score again")
        self._asked = range(0)
        self._open: tuple[int, Answers] | None = None

    def __len__(self) -> int:
        return self.count

    def batch(self, start: int, stop: int) -> Any:
        """No pixels, (stop - start, 0, 0, 1): what comes next is asked of these images."""
        self._asked = range(start, stop)
        return np.zeros((stop - start, 0, 0, 1), np.uint8)

    def __call__(self, feeds: Mapping[str, Any]) -> Arrays:
        """The outputs for the images that `batch` was last asked for."""
        parts: list[Mapping[str, Any]] = []
        start = self._asked.start
        while start < self._asked.stop:
            number = bisect_right(self.starts, start) - 1
            answers, first = self._answers(number), self.starts[number]
            stop = min(self._asked.stop, first + len(answers))
            parts.append(answers.batch(start - first, stop - first))
            start = stop
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def prepared(self, feeds: Mapping[str, Any]) -> Callable[[], None]:
        """Nothing can be timed here."""
        raise EdgeError("recorded answers cannot be timed")

    def _answers(self, number: int) -> Answers:
        if self._open is None or self._open[0] != number:  # one at a time: of a detector they are large
            self._open = (number, read_answers(self.files[number]))
        return self._open[1]


def _span(rows: Any) -> str:
    return f"{rows[0]} to {rows[-1]}" if len(rows) else "none"
