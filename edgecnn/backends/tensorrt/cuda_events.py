"""How long the GPU takes, by its own clock: CUDA events on a stream, to about half a microsecond.

Polygraphy's wrapper has the library, but no events.
"""

from __future__ import annotations

import ctypes
from typing import Any


class Stopwatch:
    """Two events around what is enqueued between `start` and `stop`.

    Args:
        cuda: Polygraphy's `cuda` module. stream: the address of a stream.
    """

    def __init__(self, cuda: Any, stream: int) -> None:
        self.cuda = cuda.wrapper()
        self.stream = ctypes.c_void_p(stream)
        self.events = (self._event(), self._event())

    def start(self) -> None:
        """Before the work is enqueued."""
        self._call("cudaEventRecord", self.events[0], self.stream)

    def stop(self) -> float:
        """Behind the work: waits for its end, and answers with its milliseconds."""
        self._call("cudaEventRecord", self.events[1], self.stream)
        self._call("cudaEventSynchronize", self.events[1])
        milliseconds = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), *self.events)
        return milliseconds.value

    def _event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(event))
        return event

    def _call(self, function: str, *arguments: Any) -> None:
        self.cuda.check(getattr(self.cuda.handle, function)(*arguments))
