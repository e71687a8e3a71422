"""edgecnn: a CNN, a dataset and the name of a device become an INT8 model proved on that device."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecnn.api import Built, Summary, bench, build, check, plan
    from edgecnn.process.errors import EdgeError
    from edgecnn.recipe.recipe import Recipe
    from edgecnn.report import Report, read_report

__version__ = "0.1.0"

# What libraries would tell about their use stays here (onnxruntime sends it to Microsoft, and keeps a number of the
# device in the home folder), as does what they ask for on import. Every process of edgecnn starts with this.
os.environ.update(
    ORT_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_TELEMETRY="1", NO_ALBUMENTATIONS_UPDATE="1", DO_NOT_TRACK="1"
)

# What a program uses, by the module that it comes from: nothing is imported before it is asked for.
_API = {
    **dict.fromkeys(("bench", "build", "check", "plan", "Built", "Summary"), "edgecnn.api"),
    "EdgeError": "edgecnn.process.errors", "Recipe": "edgecnn.recipe.recipe", "Report": "edgecnn.report",
    "read_report": "edgecnn.report",
}  # fmt: skip
__all__ = ["Built", "EdgeError", "Recipe", "Report", "Summary", "bench", "build", "check", "plan", "read_report"]


def __getattr__(name: str) -> object:
    if name not in _API:
        raise AttributeError(f"module `edgecnn` has no attribute `{name}`")
    from importlib import import_module

    return getattr(import_module(_API[name]), name)
