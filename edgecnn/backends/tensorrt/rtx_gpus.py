"""Which GPUs TensorRT for RTX compiles for, known without loading it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgecnn.process.errors import EdgeError

# The members of ComputeCapability in this release.
RELEASE = (1, 7)
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def unknown(name: str, capabilities: Sequence[str], version: str | None) -> tuple[str, ...]:
    """Those that the backend is known not to compile for: TensorRT for RTX up to the release whose list is here.

    Args:
        version: as `1.7.1.116`, with or without a title; None: not installed. A newer release decides by itself.
    """
    release = re.search(r"(\d+)\.(\d+)", version or "")
    if name != "tensorrt-rtx" or (release and (int(release[1]), int(release[2])) > RELEASE):
        return ()
    return tuple(one for one in capabilities if one not in CAPABILITIES)


def refuse(name: str, capabilities: Sequence[str], version: str | None) -> None:
    """Refuse such a device before anything is made for it.

    Raises:
        EdgeError: TensorRT for RTX does not compile for one of its compute capabilities.
    """
    if found := unknown(name, capabilities, version):
        raise EdgeError(
            f"TensorRT for RTX does not compile for compute capability {', '.join(found)}",
            f"it knows {', '.join(CAPABILITIES)}; data centre GPUs want a device file with `backend: tensorrt`",
        )
