"""The store: keys, atomic finish, damage, reasons, waiting, resuming, sharing."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgecnn import progress
from edgecnn.errors import EdgeError
from edgecnn.recipe import TrainSpec
from edgecnn.store import Artifact, Stopped, Store, decided_by
from edgecnn.store_clean import clean


class Notes:
    """A Progress that remembers its notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    task = progress._SILENT.task


def write_epochs(out: Path, spec: TrainSpec) -> None:
    (out / "epochs.txt").write_text(str(spec.epochs))


def copy_file(out: Path, source: Path) -> None:
    (out / "copy").write_bytes(source.read_bytes())


def chain(out: Path, before: Artifact) -> None:
    (out / "chained.txt").write_text((before.path / "epochs.txt").read_text() + "!")


@decided_by("onnxruntime")
def library(out: Path) -> None:
    (out / "x").write_text("x")


def made(store: Store) -> list[str]:
    return [decision.stage for decision in store.decisions if not decision.kept]


def test_second_run_is_kept(tmp_path: Path) -> None:
    first = Store(tmp_path).stage("train", write_epochs, TrainSpec(epochs=3))
    again = Store(tmp_path)
    assert again.stage("train", write_epochs, TrainSpec(epochs=3)) == first
    assert made(again) == []
    assert (first.path / "epochs.txt").read_text() == "3"
    assert not (tmp_path / "partial" / f"train-{first.key}").exists()


def test_changed_value_reruns_it_and_what_follows_and_says_why(tmp_path: Path) -> None:
    for epochs, expected in ((3, ["train", "next"]), (5, ["train", "next"]), (3, [])):
        store = Store(tmp_path, recipe="r")
        trained = store.stage("train", write_epochs, TrainSpec(epochs=epochs))
        store.stage("next", chain, trained)
        assert made(store) == expected
    store = Store(tmp_path, recipe="r", rehearse=True)
    trained = store.stage("train", write_epochs, TrainSpec(epochs=7))
    store.stage("next", chain, trained)
    assert store.decisions[0].reasons == ("train.epochs 3 → 7",)
    assert store.decisions[1].reasons == ("train changed",)


def test_outside_file_enters_by_content_not_by_path(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("same")
    two.write_text("same")
    store = Store(tmp_path / "store")
    assert store.stage("copy", copy_file, one) == store.stage("copy", copy_file, two)
    two.write_text("other")
    assert store.stage("copy", copy_file, one) != store.stage("copy", copy_file, two)


def test_library_version_is_in_the_key(tmp_path: Path) -> None:
    store = Store(tmp_path, recipe="r", versions=lambda name: "1.0")
    old = store.stage("quantize", library)
    new = Store(tmp_path, recipe="r", versions=lambda name: "2.0")
    assert new.stage("quantize", library) != old
    assert new.decisions[0].reasons == ("onnxruntime (library) 1.0 → 2.0",)


def test_label_after_at_is_not_in_the_key(tmp_path: Path) -> None:
    store = Store(tmp_path, recipe="r")
    plain = store.stage("train@rtx-4060", write_epochs, TrainSpec())
    assert store.stage("train@jetson", write_epochs, TrainSpec()) == plain
    assert [d.stage for d in store.decisions] == ["train@rtx-4060", "train@jetson"]


@pytest.mark.parametrize("damage", ["change", "remove", "manifest"])
def test_damaged_stage_is_said_and_made_again(tmp_path: Path, damage: str) -> None:
    artifact = Store(tmp_path).stage("train", write_epochs, TrainSpec(epochs=3))
    victim = artifact.path / ("stage.json" if damage == "manifest" else "epochs.txt")
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_text("4")
    notes = Notes()
    store = Store(tmp_path)
    with progress.showing(notes):
        store.stage("train", write_epochs, TrainSpec(epochs=3))
    assert made(store) == ["train"]
    assert any("making it again" in note for note in notes.said), notes.said
    assert (artifact.path / "epochs.txt").read_text() == "3"


def test_change_that_keeps_size_and_mtime_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.stage("train", write_epochs, TrainSpec(epochs=3))
    victim = artifact.path / "epochs.txt"
    times = victim.stat()
    victim.write_text("9")
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Store(tmp_path).damage(artifact) == "stored file `epochs.txt` was changed"


def test_failed_stage_leaves_nothing_seen_but_keeps_resume(tmp_path: Path) -> None:
    def fail(out: Path, seed: int) -> None:
        (out / "resume").mkdir(exist_ok=True)
        (out / "resume" / "checkpoint").write_text("epoch 1")
        (out / "half").write_text("half")
        raise EdgeError("loss is NaN at step 7")

    store = Store(tmp_path)
    with pytest.raises(EdgeError, match="NaN"):
        store.stage("train", fail, 1)
    assert list((tmp_path / "stages").rglob("*")) == []
    (partial,) = (tmp_path / "partial").iterdir()
    assert [p.name for p in partial.iterdir()] == ["resume"]


def test_resume_folder_reaches_the_next_try_and_not_the_result(tmp_path: Path) -> None:
    def resumable(out: Path, seed: int) -> None:
        resume = out / "resume"
        if not resume.exists():
            resume.mkdir()
            (resume / "at").write_text("half way")
            raise KeyboardInterrupt
        (out / "result").write_text((resume / "at").read_text())

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).stage("train", resumable, 1)
    artifact = Store(tmp_path).stage("train", resumable, 1)
    assert sorted(p.name for p in artifact.path.iterdir()) == ["result", "stage.json"]


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full")])
def test_full_disk(tmp_path: Path, code: int, words: str) -> None:
    def fill(out: Path, seed: int) -> None:
        (out / "big").write_text("...")
        raise OSError(code, os.strerror(code), str(out / "big"))

    with pytest.raises(EdgeError, match=words) as caught:
        Store(tmp_path).stage("data", fill, 1)
    assert "finished stages are kept" in caught.value.hint
    assert not any(p.is_file() for p in (tmp_path / "partial").rglob("*"))


def test_failed_stage_leaves_no_empty_folder(tmp_path: Path) -> None:
    def fail(out: Path, seed: int) -> None:
        (out / "half").write_text("half")
        raise EdgeError("no such model")

    with pytest.raises(EdgeError):
        Store(tmp_path).stage("train", fail, 1)
    assert list((tmp_path / "partial").iterdir()) == []


def test_full_disk_that_a_library_tells_in_words_only(tmp_path: Path) -> None:
    def fill(out: Path, seed: int) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(EdgeError, match="the disk is full while making `train`"):
        Store(tmp_path).stage("train", fill, 1)


def test_really_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 1 MB, filled by a stage: the real ENOSPC of the kernel."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("cannot mount a small tmpfs here")

    def fill(out: Path, seed: int) -> None:
        (out / "big").write_bytes(b"x" * (4 << 20))

    try:
        with pytest.raises(EdgeError, match="the disk is full while making `data`"):
            Store(small / "store").stage("data", fill, 1)
        assert Store(small / "store").stage("train", write_epochs, TrainSpec()).path.is_dir()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match="cannot write to the store") as caught:
        Store(tmp_path / "file" / "store")
    assert "EDGECNN_CACHE" in caught.value.hint


def test_until_stops_after_the_stage(tmp_path: Path) -> None:
    store = Store(tmp_path, until="train")
    with pytest.raises(Stopped):
        store.stage("train", write_epochs, TrainSpec())
    assert made(store) == ["train"]
    assert any((tmp_path / "stages" / "train").iterdir())


def test_measurement_is_kept_and_taken_again_when_asked(tmp_path: Path) -> None:
    def clock(out: Path, seed: int) -> None:
        (out / "t").write_text(str(time.monotonic_ns()))

    def value(store: Store) -> str:
        return (store.measure("speed", clock, 1).path / "t").read_text()

    first = value(Store(tmp_path))
    assert value(Store(tmp_path)) == first
    assert value(Store(tmp_path, remeasure=True)) != first


def _slow_append(out: Path, log: Path, seconds: float) -> None:
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    (out / "done").write_text("done")


def _build(root: Path, log: Path) -> None:
    Store(root).stage("slow", _Slow(log), 0.5)


class _Slow:
    __name__ = "slow"

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, out: Path, seconds: float) -> None:
        _slow_append(out, self.log, seconds)


def test_four_processes_share_a_store_and_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build, args=(tmp_path / "store", log)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_waiting_is_said(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_build, args=(tmp_path / "store", tmp_path / "log"))
    worker.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    notes = Notes()
    with progress.showing(notes):
        Store(tmp_path / "store").stage("slow", _Slow(tmp_path / "log"), 0.5)
    worker.join(30)
    assert any(f"being made by process {worker.pid}; waiting for it" in note for note in notes.said), notes.said


def test_killed_maker_is_succeeded(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from edgecnn.store import Store\n"
        "def slow(out, n):\n    (out / 'half').write_text('half'); print('started', flush=True); time.sleep(60)\n"
        "Store(Path(sys.argv[1])).stage('slow', slow, 1)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()

    def slow(out: Path, n: int) -> None:
        assert list(out.iterdir()) == []
        (out / "whole").write_text("whole")

    artifact = Store(tmp_path).stage("slow", slow, 1)
    assert (artifact.path / "whole").exists()


def test_stage_json_tells_inputs_and_time(tmp_path: Path) -> None:
    artifact = Store(tmp_path).stage("train", write_epochs, TrainSpec(epochs=3))
    record = json.loads((artifact.path / "stage.json").read_text())
    assert record["inputs"]["train.epochs"] == 3
    assert record["why"] == ["first run"]
    assert set(record["files"]) == {"epochs.txt"}


def test_clean_drops_the_longest_unused_first(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fill(out: Path, number: int) -> None:
        (out / "data").write_bytes(bytes(1000))

    artifacts = [store.stage("data", fill, number) for number in range(3)]
    for age, artifact in enumerate(artifacts):
        os.utime(artifact.path, (1_000_000 - age, 1_000_000 - age))
    size = sum(f.stat().st_size for f in artifacts[0].path.iterdir())
    result = clean(tmp_path, max_bytes=int(size * 1.5))
    assert result.dropped == 2
    assert [artifact.path.exists() for artifact in artifacts] == [True, False, False]
