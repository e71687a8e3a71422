"""A tool in a process of its own, to be interrupted and killed: runs one job on a board.

python tool.py CONFIG JOB.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgecnn.agent.pack import pack_agent
from edgecnn.board.jobs import Board
from edgecnn.board.limits import LinkLimits
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError

if __name__ == "__main__":
    content = json.loads(Path(sys.argv[2]).read_text())
    inputs = {digest: Path(path) for digest, path in content["inputs"].items()}
    limits = LinkLimits(silence_s=2.0, heartbeat_s=2.0)
    try:
        with (
            progress.showing(progress.Plain(0.0)),
            Board.connect("board", agent=pack_agent(), limits=limits, config=Path(sys.argv[1])) as board,
        ):
            print(json.dumps(board.run(content["job"], inputs)))
    except EdgeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
