"""Finished stages, keyed by content: atomic, checked, shared by many processes, and able to say why a stage will run.

    <root>/stages/<stage>/<key>/      a finished stage: its files and stage.json
    <root>/partial/<stage>-<key>/     a stage being made; only its resume/ folder outlives a killed try
    <root>/locks/, <root>/last/       locks of each key; the last key of each stage in each recipe (for reasons)
    <root>/digests.sqlite             content hashes of files by their stat

A stage is a function `make(out, *inputs) -> None`. Inputs are frozen specs, Artifacts, None or plain values; the same
list makes the key, so a stage cannot use a value that is not in its key. It writes only under `out`; what it leaves
in `out/resume/` is handed to the next try of the same key and is removed when the stage finishes. A Store keeps every
stage that it returned from being dropped by a `clean`, until it is collected or its process ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from edgecnn.process import progress
from edgecnn.process.child import sharing_lock
from edgecnn.process.disk import as_edge_error, clear_but_resume, drop_but_resume, fsync, full_disk, is_full, write_json
from edgecnn.process.errors import EdgeError
from edgecnn.process.versions import Versions, code_version, decided_by, installed_version
from edgecnn.recipe.spec import Spec
from edgecnn.store.clean import discard
from edgecnn.store.digests import Digests
from edgecnn.store.locks import Locks
from edgecnn.store.record import age, age_text, read_record, write_record

__all__ = ["Artifact", "Decision", "Stopped", "Store", "age_text", "code_version", "decided_by", "installed_version"]

P = ParamSpec("P")


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and the key of its inputs; of a measurement also when it was taken."""

    stage: str
    key: str
    path: Path
    taken: str = ""

    @property
    def name(self) -> str:
        """Of its locks and of its folder while it is made."""
        return f"{self.stage}-{self.key}"

    def json(self, name: str) -> Any:
        """One of its JSON files, parsed."""
        return json.loads((self.path / name).read_text())


@dataclass(frozen=True)
class Decision:
    """What the store does about one stage, and why: `kept`, or `run` with reasons such as `train.epochs 3 → 5`."""

    stage: str
    kept: bool
    reasons: tuple[str, ...] = ()
    key: str = ""


class Stopped(Exception):  # not an error: `--until` or a rehearsal ends here
    """The page was left early, on purpose, after `stage`."""


@dataclass
class Store:
    """Keeps finished stages under `root`.

    Args:
        root: the store's folder; made when missing.
        recipe: name under which the last keys are remembered, for the reasons.
        until: stop (raise Stopped) once this stage is finished.
        remeasure: take measurements again even if kept ones fit.
        rehearse: run nothing; record decisions only and raise Stopped at the first measurement.
        versions: looks up a library's version (tests plant another).
    """

    root: Path
    recipe: str = ""
    until: str | None = None
    remeasure: bool = False
    rehearse: bool = False
    versions: Versions = installed_version
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            for part in ("stages", "partial", "locks", "last"):
                (self.root / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeError(
                f"cannot write to the store `{self.root}`: {error.strerror}", "set EDGECNN_CACHE to a writable folder"
            ) from error
        self.digests = Digests(self.root / "digests.sqlite")
        self.locks = Locks(self.root / "locks")
        self.uses: dict[str, int] = {}  # by stage and key: a lock's descriptor
        weakref.finalize(self, _close, self.uses)

    def stage(self, name: str, make: Callable[Concatenate[Path, P], None], *inputs: P.args, **_: P.kwargs) -> Artifact:
        """Return the finished stage `make(out, *inputs)`, or make it.

        A name such as `quantize@rtx-4060` is the stage `quantize`, told apart only where it is shown and explained:
        two devices with equal inputs share one result.

        Raises:
            EdgeError: the stage failed, or the disk is full.
            Stopped: this was the stage to stop after.
        """
        return self._stage(name, make, inputs, fresh=False)

    def measure(
        self, name: str, make: Callable[Concatenate[Path, P], None], *inputs: P.args, **_: P.kwargs
    ) -> Artifact:
        """A stage whose result is a moment's measurement: kept and shown with its age; `remeasure` takes it again."""
        return self._stage(name, make, inputs, fresh=self.remeasure, measurement=True)

    def _stage(
        self, name: str, make: Callable[..., None], inputs: tuple[Any, ...], *, fresh: bool, measurement: bool = False
    ) -> Artifact:
        label, name = name, name.partition("@")[0]
        facts = self.facts(make, inputs)
        key = hashlib.sha256(json.dumps([name, make.__name__, facts], sort_keys=True).encode()).hexdigest()[:32]
        artifact = Artifact(name, key, self.root / "stages" / name / key)
        if self.rehearse:
            self._rehearse(artifact, label, facts, fresh)
            if measurement or label == self.until:
                raise Stopped(label)
            return artifact
        try:
            return self._provide(artifact, label, make, inputs, facts, fresh, measurement)
        except OSError as error:
            if is_full(error, self.root):
                raise full_disk(f"keeping `{label}`", error.filename or self.root, self.root) from error
            raise EdgeError(
                f"cannot use the store `{self.root}`: {error.strerror or error}: {error.filename or ''}".rstrip(": "),
                "set EDGECNN_CACHE to a folder that you can write to",
            ) from error

    def _provide(
        self, artifact: Artifact, label: str, make: Callable[..., None], inputs: tuple[Any, ...],
        facts: dict[str, Any], fresh: bool, measurement: bool,
    ) -> Artifact:  # fmt: skip
        if artifact.name not in self.uses:
            self.uses[artifact.name] = self.locks.use(artifact.name)  # before the look: what is whole now stays
        damage = self.damage(artifact)
        if damage is None and not fresh:
            self._keep(artifact, label)
        else:
            self._make(artifact, label, make, inputs, facts, damage or "asked to measure again", fresh)
        if self.recipe:
            write_json(self.root / "last" / f"{self.recipe}.{label}.json", {"key": artifact.key, "facts": facts})
        if self.until == label:
            raise Stopped(label)
        # What rests on a measurement rests on this one, not on any of the same inputs.
        return replace(artifact, taken=artifact.json("stage.json")["made"]) if measurement else artifact

    # --- deciding ---

    def facts(self, make: Callable[..., None], inputs: tuple[Any, ...]) -> dict[str, Any]:
        """Flat, JSON-ready description of everything that decides the result; the key is its hash."""
        facts: dict[str, Any] = {"edgecnn": code_version(*getattr(make, "rooms", ()))}
        for library in getattr(make, "libraries", ()):
            facts[f"{library} (library)"] = self.versions(library)
        for number, value in enumerate(inputs):
            if isinstance(value, Artifact):
                facts[value.stage] = f"{value.key} of {value.taken}" if value.taken else value.key
            elif isinstance(value, Spec):
                for leaf, leaf_value in value.leaves():
                    facts[leaf] = self._leaf(leaf_value)
            elif isinstance(value, Mapping):
                facts |= {leaf: self._leaf(leaf_value) for leaf, leaf_value in value.items()}
            else:
                facts[f"input {number}"] = self._leaf(value)
        return facts

    def _leaf(self, value: object) -> object:
        if isinstance(value, Path):
            return self.digests.of(value)
        if isinstance(value, (tuple, list)):
            return [self._leaf(part) for part in value]
        return value

    def damage(self, artifact: Artifact) -> str | None:
        """Why a stored stage can't be used (`not made yet`, a changed or missing file), or None when it is whole."""
        try:
            record = read_record(artifact.path)
        except OSError:
            return "its stage.json is missing" if os.path.lexists(artifact.path) else "not made yet"
        except ValueError:
            return "its stage.json is damaged"
        if (record.stage, record.key) != (artifact.stage, artifact.key):
            return "its stage.json is of another stage"
        for name, digest in record.files.items():
            path = artifact.path / name
            if not path.is_file():
                return f"stored file `{name}` is missing"
            if self.digests.of(path) != digest:
                return f"stored file `{name}` was changed"
        return None

    def reasons(self, stage: str, facts: dict[str, Any]) -> tuple[str, ...]:
        """What changed since this recipe's last run of the stage."""
        try:
            last = dict(json.loads((self.root / "last" / f"{self.recipe}.{stage}.json").read_bytes())["facts"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ("first run",)
        changes = []
        for name in sorted({*last, *facts}):
            before, after = last.get(name, "absent"), facts.get(name, "absent")
            if before == after:
                continue
            if _is_digest(before) or _is_digest(after) or isinstance(before, list) or isinstance(after, list):
                changes.append(f"{name} changed")
            else:
                changes.append(f"{name} {_shown(before)} → {_shown(after)}")
        return tuple(changes) or ("not in the store",)

    def _rehearse(self, artifact: Artifact, label: str, facts: dict[str, Any], fresh: bool) -> None:
        damage = self.damage(artifact)
        # An input that will be made has a key, so everything after it is decided too.
        if damage is None and not fresh:
            self.decisions.append(Decision(label, True, (age(artifact.path),), artifact.key))
        else:
            reasons = self.reasons(label, facts)
            if damage and damage != "not made yet":
                reasons = (damage,)
            if damage is None:
                reasons = ("asked to measure again",)
            if (self._partial(artifact) / "resume").exists():
                reasons = (*reasons, "continues an interrupted run")
            self.decisions.append(Decision(label, False, reasons, artifact.key))

    # --- making ---

    def _keep(self, artifact: Artifact, label: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(artifact.path)  # `clean` drops what was used longest ago
        self.decisions.append(Decision(label, True, (age(artifact.path),), artifact.key))
        progress.current().note(f"{label}: kept ({age(artifact.path)})")

    def _partial(self, artifact: Artifact) -> Path:
        return self.root / "partial" / artifact.name

    def _make(
        self, artifact: Artifact, label: str, make: Callable[..., None], inputs: tuple[Any, ...],
        facts: dict[str, Any], damage: str, fresh: bool,
    ) -> None:  # fmt: skip
        with self.locks.making(artifact.name, artifact.stage) as lock:
            again = self.damage(artifact)
            if again is None and not fresh:  # another process made it while this one waited
                self._keep(artifact, label)
                return
            reasons = self.reasons(label, facts) if damage == "not made yet" else (damage,)
            self.decisions.append(Decision(label, False, reasons, artifact.key))
            note = f"{label}: running ({', '.join(reasons)})"
            if again and again != "not made yet":
                note = f"{label}: {again}; making it again"
            progress.current().note(note)
            out = self._partial(artifact)
            clear_but_resume(out)
            start = time.monotonic()
            try:
                with sharing_lock(lock):
                    make(out, *inputs)
                self._finish(artifact, out, facts, reasons, time.monotonic() - start)
            except BaseException as error:
                full = is_full(error, self.root)  # asked before what fills it goes
                drop_but_resume(out)
                if full:
                    path = getattr(error, "filename", None) or self.root
                    raise full_disk(f"making `{artifact.stage}`", path, self.root) from error
                if isinstance(error, OSError):
                    raise as_edge_error(error, f"`{artifact.stage}`") from error
                raise

    def _finish(
        self, artifact: Artifact, out: Path, facts: dict[str, Any], reasons: tuple[str, ...], seconds: float
    ) -> None:
        shutil.rmtree(out / "resume", ignore_errors=True)
        files = {}
        for path in sorted(p for p in out.rglob("*") if p.is_file()):
            fsync(path)
            files[path.relative_to(out).as_posix()] = self.digests.of(path)
        record = {"stage": artifact.stage, "key": artifact.key, "seconds": round(seconds, 3), "why": reasons}
        write_record(out, {**record, "inputs": facts, "files": files})
        artifact.path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(artifact.path):  # damaged, or measured again
            discard(self.root, artifact.path)
        os.rename(out, artifact.path)
        fsync(artifact.path.parent)
        progress.current().note(f"{artifact.stage}: done in {seconds:.1f} s")


def _close(descriptors: dict[str, int]) -> None:
    for one in descriptors.values():
        os.close(one)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) >= 32 and all(c in "0123456789abcdef" for c in value.split(" ")[0])


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
