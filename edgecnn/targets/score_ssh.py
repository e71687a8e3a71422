"""Score on boards: pieces of the scored split out, answers back, judged here by the code that judges a model run here.

Each piece is fetched and kept as it is done, in the stage's `resume/` folder, so that a rerun after a lost link goes
on, and a fleet shares the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecnn.agent.files import digest_of
from edgecnn.backends import BackendName
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.io_contract import read_contract
from edgecnn.recipe.recipe import ScoreSpec
from edgecnn.targets.engine_io import fixed_batch
from edgecnn.targets.fleet import Board, Fleet, Json
from edgecnn.targets.recorded import Recorded
from edgecnn.tasks import load_task
from edgecnn.tasks.score import score_here

PIECES = 8  # of a score, for each board: what a lost link costs at most is one
PIECE_IMAGES = 256  # but not fewer than so many images: every piece loads the engine


@dataclass(frozen=True)
class Piece:
    """Scored images start..stop: the shards that hold them, the number of the first shard's first image."""

    start: int
    stop: int
    first: int
    shards: tuple[Path, ...]


def score_on(
    fleet: Fleet, out: Path, spec: ScoreSpec, graph: Path, model: Path, data: Path, *, backend: BackendName,
    detail: str,
) -> None:  # fmt: skip
    """Score a model on boards; write score.json, with the images of each board, and outcomes.npz into `out`.

    Args:
        graph: the ONNX file, whose contract says how images are fed. model: what runs, the same file or its engine.
        data: the data stage's folder. detail: added to the score's `how`.

    Raises:
        EdgeError: no contract, no board left, or answers that aren't finite or don't fit.
    """
    from edgecnn.data import images

    start = time.monotonic()
    contract = read_contract(graph)
    if contract is None:
        raise EdgeError(f"`{graph}` has no `edgecnn.io` metadata", "export it with edgecnn")
    count = len(images(data, "scored"))
    pieces = list(cut(data, count, fixed_batch(graph) or spec.batch, len(fleet.hosts)))
    digests = {path: digest_of(path) for path in {model, *(shard for piece in pieces for shard in piece.shards)}}
    job = {
        "do": "score", "backend": backend, "model": digests[model], "io": contract.model_dump(mode="json"),
        "batch": spec.batch, "keep": load_task(contract.task).keep(contract, spec),
    }  # fmt: skip
    folder = out / "resume"
    folder.mkdir(exist_ok=True)
    missing = [piece for piece in pieces if _kept(folder, piece) is None]
    fleet.spread(missing, lambda board, piece: _score(board, piece, job, model, digests, folder))
    done = [found for piece in pieces if (found := _kept(folder, piece))]
    how = ", ".join(dict.fromkeys(one["how"] for one in done))
    by_board = _count_by_board(done)
    files = [folder / name for one in done for name in one["files"]]
    recorded = Recorded(files, count, f"{how}, on {_boards_text(by_board)}", [one.name for one in contract.outputs])
    score_here(recorded, graph, data, spec, out, simulate=False, detail=detail, images=recorded)
    content = json.loads((out / "score.json").read_text())
    content |= {"seconds": round(time.monotonic() - start, 3), "boards": by_board}
    (out / "score.json").write_text(json.dumps(content, indent=1))


def cut(data: Path, count: int, size: int, boards: int) -> Iterator[Piece]:
    """Pieces of the scored split that begin and end where a run over all of it changes batches.

    Args:
        count: of the images. size: of a batch.
    """
    batches = -(-count // size)
    least = max(1, PIECE_IMAGES // size)
    each = max(least, -(-batches // (PIECES * boards))) * size
    shards = []
    first = 0
    for path in sorted(data.glob("scored-*.npy")):
        here = len(np.load(path, mmap_mode="r", allow_pickle=False))
        shards.append((first, first + here, path))
        first += here
    for start in range(0, count, each):
        stop = min(start + each, count)
        inside = [one for one in shards if one[0] < stop and one[1] > start]
        yield Piece(start, stop, inside[0][0], tuple(path for *_, path in inside))


def _score(
    board: Board, piece: Piece, job: Json, model: Path, digests: Mapping[Path, str], folder: Path
) -> None:  # fmt: skip
    """One piece: its answers into `folder`, and last the note that they are whole."""
    part = folder / f"{piece.start:08d}"
    part.mkdir(exist_ok=True)
    answer = board.run(
        {
            **job, "shards": [digests[shard] for shard in piece.shards], "first": piece.first,
            "rows": [piece.start, piece.stop],
        },
        {digests[path]: path for path in (model, *piece.shards)}, out=part, step="score",
    )  # fmt: skip
    names = [f"{part.name}/{file['name']}" for file in answer["files"]]
    note = {"files": names, "how": answer["how"], "board": board.host, "images": piece.stop - piece.start}
    _note(folder, piece).write_text(json.dumps(note))


def _note(folder: Path, piece: Piece) -> Path:
    return folder / f"{piece.start:08d}-{piece.stop:08d}.json"


def _kept(folder: Path, piece: Piece) -> Json | None:
    """The note of a piece that is whole."""
    try:
        note: Json = json.loads(_note(folder, piece).read_text())
        return note if all((folder / name).is_file() for name in note["files"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _count_by_board(done: list[Json]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in done:
        counts[one["board"]] = counts.get(one["board"], 0) + one["images"]
    return counts


def _boards_text(images: Mapping[str, int]) -> str:
    """`orin`, or of several `orin-a (300 images) and orin-b (300 images)`."""
    if len(images) == 1:
        return next(iter(images))
    return " and ".join(f"{host} ({count:,} images)" for host, count in sorted(images.items()))
