"""Fills the reference pages when the site is built: what a person would copy by hand goes stale."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put what the code says where a page has `<!-- generated: NAME -->`; a name that is not known ends the build."""
    return re.sub(r"<!-- generated: ([\w ]+) -->", lambda mark: "\n".join(GENERATED[mark[1]]()), markdown)


def _asked(*arguments: str) -> Any:
    """What a command of edgecnn prints as JSON."""
    done = subprocess.run([sys.executable, "-m", "edgecnn", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def recipe_keys() -> Iterator[str]:
    """Every section of a recipe as a table, from its JSON Schema."""
    schema = _asked("schema")
    yield from _section("The recipe", schema, schema["$defs"])
    written: set[str] = set()
    for key, value in schema["properties"].items():
        yield from _nested(key, value, schema["$defs"], written)


def _nested(place: str, value: Json, definitions: Json, written: set[str]) -> Iterator[str]:
    """The tables of the sections that a key can hold, those within them behind them."""
    for name in _references(value):
        if name in written or "properties" not in definitions[name]:
            continue
        written.add(name)
        yield from _section(f"`{place}`", definitions[name], definitions)
        for key, inner in definitions[name]["properties"].items():
            yield from _nested(f"{place}.{key}", inner, definitions, written)


def _references(value: Json) -> list[str]:
    choices = [value, *value.get("anyOf", ())]
    return [choice["$ref"].rsplit("/", 1)[1] for choice in choices if "$ref" in choice]


def _section(title: str, section: Json, definitions: Json) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    if text := section.get("description"):
        yield from (text, "")
    yield from ("| key | value | default | |", "|---|---|---|---|")
    for key, value in section["properties"].items():
        default = "*required*" if key in section.get("required", ()) else _default(value, definitions)
        yield f"| `{key}` | {_type(value, definitions)} | {default} | {_cell(value.get('description', ''))} |"


def _default(value: Json, definitions: Json) -> str:
    default = value.get("default")
    if isinstance(default, dict) or (default is None and "default" not in value):
        return "see its section" if _references(value) else ""
    return "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"


def _type(value: Json, definitions: Json) -> str:
    if "anyOf" in value:
        return " or ".join(_type(choice, definitions) for choice in value["anyOf"] if choice.get("type") != "null")
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        target = definitions[name]
        if "properties" not in target:
            return _type(target, definitions)
        return "a section" if name.endswith(("Spec", "Budgets", "Normalization")) else f"[{name}](#{name.lower()})"
    if value.get("type") == "array":
        items = value.get("items") or (value.get("prefixItems") or [{}])[0]
        return f"list of {_type(items, definitions)}"
    words = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
    limits = [form.format(value[key]) for key, form in words.items() if key in value]
    return " ".join([value.get("type", "any"), ", ".join(limits)]).strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands() -> Iterator[str]:
    """Every command with its arguments and options, from the command line itself."""
    import typer

    from edgecnn.cli.app import app

    group: Any = typer.main.get_command(app)
    yield from _commands(group, group.make_context("edgecnn", [], resilient_parsing=True))


def _commands(group: Any, context: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        own = command.make_context(name, [], parent=context, resilient_parsing=True)
        if hasattr(command, "commands"):
            yield from _commands(command, own)
            continue
        yield from ("", f"## {own.command_path}", "", " ".join(command.help.split()), "")
        yield from ("| | |", "|---|---|")
        for parameter in command.params:
            shown, meaning = parameter.get_help_record(own)
            yield f"| `{shown}` | {_cell(meaning)} |"
        yield "| `-h, --help` | Show this message and exit. |"


def devices() -> Iterator[str]:
    """The packed device files."""
    yield from ("| device | backend | compute capability | memory | precisions | source |", "|---|---|---|---|---|---|")
    for one in _asked("devices", "list", "--json"):
        memory = f"{one['memory_mb'] / 1024:.0f} GB" if one["memory_mb"] else ""
        yield (
            f"| `{one['name']}` | {one['backend']} | {one['compute_capability'] or ''} | {memory} "
            f"| {', '.join(one['precisions'])} | {_cell(one['source'])} |"
        )


def report_schema() -> Iterator[str]:
    """The parts of report.json, from the classes that write it."""
    from edgecnn.report import Report

    schema = Report.model_json_schema(mode="serialization")
    sections = {"Report": schema, **{name: part for name, part in schema["$defs"].items() if "properties" in part}}
    comments = _field_comments(ROOT / "edgecnn" / "report")
    for name, section in sections.items():
        for key, value in section["properties"].items():
            value.setdefault("description", comments.get(f"{name}.{key}", ""))
        yield from _section(name, section, schema["$defs"])


def _field_comments(folder: Path) -> dict[str, str]:
    """`Class.field` → the comment behind the field."""
    found = {}
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
        for owner in classes:
            for field in owner.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    _, _, comment = lines[(field.end_lineno or field.lineno) - 1][
                        field.end_col_offset or 0 :
                    ].partition("# ")
                    found[f"{owner.name}.{field.target.id}"] = comment
    return found


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    "recipe keys": recipe_keys,
    "commands": commands,
    "devices": devices,
    "report schema": report_schema,
}
