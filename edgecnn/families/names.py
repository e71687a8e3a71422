"""The child process that looks model names up in their libraries: `python -m edgecnn.families.names JOB.json`."""

from __future__ import annotations

from edgecnn.families import check_name
from edgecnn.process.child import Json, serve
from edgecnn.recipe.recipe import ModelSpec, TeacherSpec


def work(job: Json) -> Json:
    """Refuse the first of `models` ([section, fields]) whose family has no model of its name."""
    for section, fields in job["models"]:
        kind = TeacherSpec if section == TeacherSpec.section else ModelSpec
        check_name(kind.model_validate(fields))
    return {}


if __name__ == "__main__":
    serve(work)
