"""Ultralytics' published weights: another file of their name is refused, and so is another that is fetched."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import ModelSpec

pytestmark = pytest.mark.train
CONTENT = b"weights as published"


class Notes(progress.Plain):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server that answers CONTENT in place of the release, and torch's cache in an empty folder."""
    from edgecnn.families import yolo_files

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(yolo_files, "ULTRALYTICS_RELEASE", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    yield tmp_path / "hub/checkpoints"
    server.shutdown()
    thread.join()
    server.server_close()


def model(name: str) -> ModelSpec:
    return ModelSpec(family="ultralytics", name=name, weights=f"{name}.pt", image_size=64)


def test_what_is_fetched_is_what_was_published(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecnn.families import yolo_files

    with pytest.raises(EdgeError, match=r"`yolov8n.pt` could not be fetched: invalid hash value"):
        yolo_files.published_file(model("yolov8n"))
    assert list(release.iterdir()) == []
    monkeypatch.setitem(yolo_files.SHA256, "yolov8n.pt", hashlib.sha256(CONTENT).hexdigest())
    path = yolo_files.published_file(model("yolov8n"))
    assert path == release / "yolov8n.pt"
    assert path.read_bytes() == CONTENT


def test_another_file_in_the_cache_is_refused(release: Path) -> None:
    from edgecnn.families import yolo_files

    release.mkdir(parents=True)
    (release / "yolo11n.pt").write_bytes(b"something else")
    with pytest.raises(EdgeError, match=r"is not the `yolo11n.pt` that Ultralytics published: its SHA-256 is") as error:
        yolo_files.published_file(model("yolo11n"))
    assert "`model.weights: ./yolo11n.pt`" in error.value.hint


def test_a_file_without_a_known_hash_is_named_with_its_own(release: Path) -> None:
    from edgecnn.families import yolo_files

    notes = Notes()
    with progress.showing(notes):
        yolo_files.published_file(model("yolov9t"))
    assert hashlib.sha256(CONTENT).hexdigest() in notes.notes[-1]


def test_hashes_are_of_known_models() -> None:
    from edgecnn.families import ultralytics, yolo_files

    for name, digest in yolo_files.SHA256.items():
        assert name.removesuffix(".pt") in ultralytics.NAMES
        assert len(bytes.fromhex(digest)) == 32
