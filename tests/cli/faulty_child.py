"""A child with a mistake in it: named by tests, run as `python -m faulty_child JOB`."""

from __future__ import annotations

import os
import sys

from edgecnn.process.child import serve


def work(job: dict[str, object]) -> dict[str, object]:
    if job["do"] == "leave":
        print("last words", file=sys.stderr, flush=True)
        os._exit(5)
    return {"quotient": 1 / 0}


if __name__ == "__main__":
    serve(work)
