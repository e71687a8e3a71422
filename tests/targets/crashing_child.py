"""A child that dies as native code does: named by tests, run as `python -m crashing_child JOB`."""

from __future__ import annotations

import os
import signal
import sys

from edgecnn.process.child import serve


def work(job: dict[str, object]) -> dict[str, object]:
    print("[ERROR] the engine's last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), getattr(signal, str(job["signal"])))
    return {}


if __name__ == "__main__":
    serve(work)
