"""Publishing a build: a run folder with everything a person or a CI takes away, and an atomic `latest` beside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from edgecnn import families
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.recipe import Recipe
from edgecnn.recipe.yaml_file import dump_yaml
from edgecnn.report import Report, write_report
from edgecnn.store.stage import Artifact, code_version
from edgecnn.verdict.evidence import Evidence, collect_outcomes, outcomes_bytes

LIBRARIES = (
    "numpy", "pillow", "scipy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "torch",
    *families.LIBRARIES, "faster-coco-eval", "openvino", "tensorrt-rtx-cu13", "tensorrt",
)  # fmt: skip


def require_latest(folder: Path) -> None:
    """Refuse a folder of runs whose `latest` is not ours to point elsewhere, before the work and not after it.

    Raises:
        EdgeError: it is a folder or file of its own, as a copy that followed the link leaves.
    """
    latest = folder / "latest"
    if latest.exists() and not latest.is_symlink():
        raise EdgeError(
            f"`{latest}` is a {'folder' if latest.is_dir() else 'file'}, not a link to a run",
            "rename or remove it, or choose another folder with --out",
        )


def publish(
    folder: Path, recipe: Recipe, report: Report, evidence: Evidence, compiled: Sequence[Artifact],
    versions: Callable[[str], str],
) -> tuple[Path, Report]:  # fmt: skip
    """Write `folder/<run id>/` and point `folder/latest` at it.

    The run id is the time of its newest stage and a hash of all of them, so a build that makes nothing leaves the
    folder as it is. Files: model.onnx, model.int8.onnx, model.int8.typed.onnx (TensorRT), engines, report.json,
    report.html, report.md, junit.xml, outcomes.npz, recipe.lock.yaml.

    Raises:
        EdgeError: the folder can't be written.
    """
    parts = [*evidence.artifacts(), *compiled]
    newest = max(part.json("stage.json")["made"] for part in parts)
    identity = [(p.stage, p.key, p.json("stage.json")["made"]) for p in parts]
    content = json.dumps([identity, recipe.model_dump(mode="json"), code_version()], sort_keys=True)
    stamp = newest[:19].replace("-", "").replace(":", "").replace("T", "-")
    run = folder / f"{stamp}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    report = report.model_copy(update={"run": run.name})
    if not (run / "report.json").is_file():
        try:
            _write(run, recipe, report, evidence, compiled, versions)
        except OSError as error:
            raise EdgeError(
                f"cannot write the run `{run}`: {error.strerror}", "choose another folder with --out"
            ) from error
    _point(folder / "latest", run.name)
    return run, report


def _write(
    run: Path, recipe: Recipe, report: Report, evidence: Evidence, compiled: Sequence[Artifact],
    versions: Callable[[str], str],
) -> None:  # fmt: skip
    partial = run.with_name(f".{run.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        shutil.copyfile(evidence.base.path / "model.onnx", partial / "model.onnx")  # as it ships: `export.nms` in it
        shutil.copyfile(evidence.int8.path / "model.onnx", partial / "model.int8.onnx")
        for engine in (evidence.engine, *compiled):
            _copy_engine(engine, partial)
        lock = {
            # A number that means "at most" unless it is typed stays untyped.
            "recipe": recipe.model_dump(
                mode="json", exclude={"quantize": {"images"} - recipe.quantize.model_fields_set}
            ),
            "stages": {part.stage: part.key for part in (*evidence.artifacts(), *compiled)},
            "data_digest": report.data_digest,
            "versions": {"edgecnn": code_version(), **{name: versions(name) for name in LIBRARIES}},
        }
        (partial / "recipe.lock.yaml").write_text(dump_yaml(lock))
        kept = outcomes_bytes(collect_outcomes(evidence))
        write_report(report, partial, outcomes=kept, data=evidence.data.path)
        try:
            os.rename(partial, run)
        except OSError:
            if not (run / "report.json").is_file():  # else another build of the same run was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_engine(engine: Artifact, run: Path) -> None:
    facts = engine.json("engine.json")
    name = facts["engine"]
    if name and name.endswith(".engine"):
        shutil.copyfile(engine.path / name, run / name)
    typed = engine.path / "typed.onnx"
    if typed.is_file() and not (run / "model.int8.typed.onnx").exists():
        shutil.copyfile(typed, run / "model.int8.typed.onnx")


def _point(link: Path, name: str) -> None:
    """Point the link at a run in one step: a reader sees the old run or the new one."""
    if link.is_symlink() and os.readlink(link) == name:
        return
    temporary = link.with_name(f".latest.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name, target_is_directory=True)
    os.replace(temporary, link)
