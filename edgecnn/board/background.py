"""An asyncio loop in a thread, for callers that are not asyncio. Ctrl-C cancels its work and waits for its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """One loop, one thread, one call at a time. `stop_s`: how long cancelled work may take to end."""

    def __init__(self, stop_s: float) -> None:
        self.stop_s = stop_s
        self.loop = asyncio.new_event_loop()
        self.running: tuple[concurrent.futures.Future[Any], threading.Event] | None = None
        self.thread = threading.Thread(target=self.loop.run_forever, name="edgecnn-board", daemon=True)
        self.thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` in the loop and return its result. It sees the caller's context: progress is shown as here.

        Raises:
            concurrent.futures.CancelledError: another thread called `cancel`.
        """
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self.loop)
        self.running = future, ended
        try:
            return future.result()
        except BaseException:
            self.cancel()  # Ctrl-C; nothing where the work itself failed
            raise
        finally:
            self.running = None

    def cancel(self) -> None:
        """Cancel what runs, if anything does, and wait for its end."""
        if self.running is not None:
            future, ended = self.running
            if future.cancel():
                ended.wait(self.stop_s)

    def close(self) -> None:
        """End the loop and its thread."""
        if self.loop.is_closed():
            return
        future = asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop)
        concurrent.futures.wait([future], self.stop_s)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(self.stop_s)
        if not self.thread.is_alive():
            self.loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
