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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecnn.families.export import export
from edgecnn.process import progress
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import TrainSpec
from edgecnn.store.clean import clean
from edgecnn.store.stage import Artifact, Stopped, Store, decided_by
from edgecnn.training import train


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


@pytest.mark.parametrize("library", ["torch", "torchvision", "timm", "ultralytics", "opencv-python"])
@pytest.mark.parametrize("make", [train, export])
def test_a_network_is_made_again_by_another_version_of_its_library(
    tmp_path: Path, make: Callable[..., None], library: str
) -> None:
    keys = [Store(tmp_path, versions=lambda name, v=v: v if name == library else "1").facts(make, ()) for v in "12"]
    assert keys[0] != keys[1]


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
        "import sys, time; from pathlib import Path; from edgecnn.store.stage import Store\n"
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
    del store  # while it lives it uses them
    for age, artifact in enumerate(artifacts):
        os.utime(artifact.path, (1_000_000 - age, 1_000_000 - age))
    size = sum(f.stat().st_size for f in artifacts[0].path.iterdir())
    rehearsed = clean(tmp_path, max_bytes=int(size * 1.5), dry_run=True)
    assert all(artifact.path.exists() for artifact in artifacts)
    result = clean(tmp_path, max_bytes=int(size * 1.5))
    assert result == replace(rehearsed, dry_run=False)
    assert result.dropped == 2
    assert "would drop 2 stages, free 0.0 MB" in rehearsed.text()
    assert [artifact.path.exists() for artifact in artifacts] == [True, False, False]


USER = """
import sys, time
from pathlib import Path
from edgecnn.store.stage import Store
def fill(out, number):
    (out / "data").write_bytes(bytes(1000))
store = Store(Path(sys.argv[1]))
print(store.stage("data", fill, 1).path, flush=True)
sys.stdin.read()
"""


@contextmanager
def build_that_uses(root: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process that rests on a finished stage."""
    command = [sys.executable, "-c", USER, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip()), process
        process.kill()


def test_clean_leaves_what_a_build_uses(tmp_path: Path) -> None:
    """Made or kept, until the build ends, by whatever end."""
    with build_that_uses(tmp_path) as (made_one, maker), build_that_uses(tmp_path) as (kept, keeper):
        assert made_one == kept
        maker.kill()
        maker.wait()
        result = clean(tmp_path, max_bytes=0)
        assert (result.dropped, result.in_use, kept.exists()) == (0, 1, True)
        assert "1 of them in use by a running build" in result.text()
        keeper.kill()
        keeper.wait()
        assert clean(tmp_path, max_bytes=0).dropped == 1
    assert not kept.exists()


def test_cleaning_all_the_time_breaks_no_build(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    stop = context.Event()

    def keep_cleaning() -> None:
        while not stop.is_set():
            clean(tmp_path, max_bytes=0)

    cleaner = context.Process(target=keep_cleaning)
    cleaner.start()
    try:
        for epochs in range(1, 40):
            store = Store(tmp_path)
            first = store.stage("train", write_epochs, TrainSpec(epochs=epochs % 3 + 1))
            second = store.stage("chain", chain, first)
            assert (second.path / "chained.txt").read_text() == f"{epochs % 3 + 1}!"
    finally:
        stop.set()
        cleaner.join(10)
    assert cleaner.exitcode == 0


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        record = json.loads(content)
        changed = change(record)
        return json.dumps(changed if isinstance(changed, list) else record).encode()

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: b"", lambda content: content[:-20], lambda content: b"\xff" + content,
        lambda content: b"[" * 100_000, lambda content: content.replace(b"1", b"9" * 6000, 1),
        edited(lambda record: record.pop("made")), edited(lambda record: record.update(made="yesterday")),
        edited(lambda record: record.update(made=None)), edited(lambda record: record.update(made="9999-01-01")),
        edited(lambda record: record.update(files=[])), edited(lambda record: record["files"].clear()),
        edited(lambda record: record["files"].update({"../../x": "0"})), edited(lambda record: [record]),
        edited(lambda record: record.update(seconds="long")), edited(lambda record: record.update(inputs=3)),
        edited(lambda record: record.update(stage="data")), edited(lambda record: record.pop("seal")),
    ],
    ids=range(17),
)  # fmt: skip
def test_an_edited_record_is_made_again(tmp_path: Path, edit: Callable[[bytes], bytes]) -> None:
    artifact = Store(tmp_path).stage("train", write_epochs, TrainSpec())
    file = artifact.path / "stage.json"
    file.write_bytes(edit(file.read_bytes()))
    planned = Store(tmp_path, rehearse=True)
    planned.stage("train", write_epochs, TrainSpec())
    assert planned.decisions[0].reasons == ("its stage.json is damaged",)
    again = Store(tmp_path)
    assert again.stage("train", write_epochs, TrainSpec()).path == artifact.path
    assert made(again) == ["train"]
    assert (artifact.path / "epochs.txt").read_text() == str(TrainSpec().epochs)


def test_whatever_stands_in_a_stages_place_is_made_again(tmp_path: Path) -> None:
    artifact = Store(tmp_path).stage("train", write_epochs, TrainSpec())
    for plant in (lambda path: path.write_text("x"), lambda path: path.symlink_to("nowhere"), Path.mkdir):
        clean(tmp_path, max_bytes=0)
        plant(artifact.path)
        assert (Store(tmp_path).stage("train", write_epochs, TrainSpec()).path / "epochs.txt").is_file()


@pytest.mark.parametrize("text", ["[]", '{"facts": 3}', '{"facts": [1]}', "[" * 100_000, "\udcff"])
def test_edited_last_keys_explain_nothing(tmp_path: Path, text: str) -> None:
    Store(tmp_path, recipe="r").stage("train", write_epochs, TrainSpec())
    (tmp_path / "last" / "r.train.json").write_bytes(text.encode(errors="surrogateescape"))
    store = Store(tmp_path, recipe="r")
    store.stage("train", write_epochs, TrainSpec(epochs=2))
    assert store.decisions[0].reasons == ("first run",)


def test_a_store_on_a_read_only_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    Store(disk / "store").stage("train", write_epochs, TrainSpec())
    if subprocess.run(["mount", "--bind", disk, disk], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", disk], check=True)
        for epochs in (TrainSpec().epochs, 2):
            with pytest.raises(EdgeError, match=r"cannot use the store .* Read-only file system") as caught:
                Store(disk / "store").stage("train", write_epochs, TrainSpec(epochs=epochs))
            assert "EDGECNN_CACHE" in caught.value.hint
        with pytest.raises(EdgeError, match=r"cleaning the store .* failed: Read-only file system"):
            clean(disk / "store", 0)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_name_that_is_not_utf8_is_kept_in_the_record(tmp_path: Path) -> None:
    def note(out: Path, name: str) -> None:
        (out / "x").write_text("x")

    artifact = Store(tmp_path).stage("data", note, "caf\udce9.png")
    assert artifact.json("stage.json")["inputs"]["input 0"] == "caf\udce9.png"
    assert Store(tmp_path).stage("data", note, "caf\udce9.png") == artifact
