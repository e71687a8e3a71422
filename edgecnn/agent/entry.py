"""Where the zipapp goes on: `JOB` is the guard of a job; the other roles are processes that the guard starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edgecnn.agent.protocol import Cache

ROLES = ("--worker", "--keeper", "--sampler")


def enter(arguments: list[str]) -> int:
    """Run in the role that the command line names.

    Args:
        arguments: the zipapp's path; then a job id, or a role, a job id and the guard's process id.
    """
    os.umask(0o077)
    pyz = Path(arguments[0]).absolute()
    cache = Cache(pyz.parent.parent)
    match arguments[1:]:
        case ["--worker", job, parent]:
            from edgecnn.agent.worker import work

            return work(cache, job, int(parent))
        case ["--keeper", job, *mending]:
            from edgecnn.agent.keeper import keep

            return keep(cache, job, mending=bool(mending))
        case ["--sampler", file]:
            from edgecnn.agent.sampler import sample

            return sample(Path(file))
        case [job] if job not in ROLES:
            from edgecnn.agent.guard import guard

            return guard(cache, pyz, job)
        case _:
            print("usage: python3 AGENT.pyz JOB", file=sys.stderr)
            return 2
