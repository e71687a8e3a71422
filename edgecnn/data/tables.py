"""Label tables: CSV or TSV of file name and label."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgecnn.data.texts import read_text, short
from edgecnn.process.errors import EdgeError
from edgecnn.store.digests import is_regular

FILE_COLUMNS = ("file", "filename", "file_name", "image", "path")
LABEL_COLUMNS = ("label", "class")
ID_COLUMNS = (*FILE_COLUMNS, "fname", "id", "image_id", "image_name", "img", "name")  # of two columns, the file's
LONGEST = 500  # characters of one name
SHOWN = 10  # names in a list before it is counted only


@dataclass(frozen=True)
class Row:
    """One image of a label table; `file` is relative to the image folder, `line` counts from 1."""

    file: str
    label: str
    line: int


def listed(names: list[str]) -> str:
    """Up to ten names, each of a readable length, then how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"`{name if len(name) <= LONGEST else name[:LONGEST] + '…'}`" for name in names[:SHOWN]) + more


def leads_out(name: str) -> bool:
    """Whether a path that should be relative to a folder may be of something outside it."""
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def require_inside(part: str, name: str) -> None:
    """Raise an EdgeError where a declared set leads out of `data.root`."""
    if leads_out(name):
        raise EdgeError(
            f"`data.{part}: {name}` is outside `data.root`", "only what is under `data.root` is watched for changes"
        )


def read_table(path: Path, folder: Path) -> list[Row]:
    """Read a label table: `.csv` (comma) or `.tsv` (tab), UTF-8, two columns, file name relative to `folder` and label.

    A first line that names its columns (`file,label`) is a header, and may name further columns, which are not read.

    Raises:
        EdgeError: not a table, a row that has not two values, a file that is missing or outside `folder`, a file
            in two rows.
    """
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    if delimiter is None:
        raise EdgeError(f"`{path}` is not a label table", "name it .csv (comma) or .tsv (tab)")
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except FileNotFoundError as error:
        raise EdgeError(
            f"cannot read label table `{path}`: {error.strerror}", "check the path and its permissions"
        ) from error
    except csv.Error as error:
        raise EdgeError(f"label table `{path}` cannot be read: {error}", "save it as UTF-8 text") from error
    file_column, label_column, width = 0, 1, 2
    if lines and (header := _header(lines[0][1], folder)):
        file_column, label_column = header
        width = len(lines.pop(0)[1])
    if not lines:
        raise EdgeError(f"label table `{path}` has no rows", "each line is `file name,label`")
    rows = []
    for line, cells in lines:
        if len(cells) != width or not cells[file_column] or not cells[label_column]:
            raise EdgeError(
                f"label table `{path}`, line {line}: expected {width} values, got {short(cells)}",
                f"each line is a file name and a label, separated by a {'tab' if delimiter != ',' else 'comma'}",
            )
        name = PurePosixPath(cells[file_column])
        rows.append(Row(name.as_posix(), cells[label_column], line))
    _check(path, folder, rows)
    return rows


def _header(cells: list[str], folder: Path) -> tuple[int, int] | None:
    """(file's column, label's column) of a first line that names them; of two columns only the file's must be known."""
    lower = [cell.lower() for cell in cells]
    files = [number for number, cell in enumerate(lower) if cell in FILE_COLUMNS]
    labels = [number for number, cell in enumerate(lower) if cell in LABEL_COLUMNS]
    if files and labels:
        return files[0], labels[0]
    named = [number for number, cell in enumerate(lower) if cell in ID_COLUMNS]
    if len(cells) == 2 and len(named) == 1 and not is_regular(folder / cells[named[0]]):
        return named[0], 1 - named[0]
    return None


def _check(path: Path, folder: Path, rows: list[Row]) -> None:
    lines: dict[str, list[int]] = {}
    for row in rows:
        lines.setdefault(row.file, []).append(row.line)
    twice = [f"{name} (lines {', '.join(map(str, at))})" for name, at in lines.items() if len(at) > 1]
    if twice:
        raise EdgeError(f"label table `{path}` has duplicate rows: {listed(twice)}", "keep one row for each file")
    if outside := [row.file for row in rows if leads_out(row.file)]:
        raise EdgeError(
            f"label table `{path}` names files outside `{folder}`: {listed(outside)}",
            "write paths relative to that folder: only what is under it is watched for changes",
        )
    absent = [row for row in rows if not is_regular(folder / row.file)]
    if absent:
        last = absent[-1].file
        below = next((one for one in sorted(folder.iterdir()) if is_regular(one / last)), None)
        where = f"; `{below / last}` is there: write `{below.name}/` before the names" if below else ""
        raise EdgeError(
            f"label table `{path}` names missing files: {listed([f'{row.file} (line {row.line})' for row in absent])}",
            f"paths are relative to `{folder}`{where}",
        )


def table_files(table: Path) -> tuple[tuple[str, Path], ...]:
    """(name in the table, path) of every image of a table that is itself `data.root`; none if the table is bad."""
    try:
        return tuple((row.file, table.parent / row.file) for row in read_table(table, table.parent))
    except EdgeError:
        return ()  # prepare reads it again and tells
