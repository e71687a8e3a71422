"""What an ONNX file of anyone must be before it is used: nothing damaged or hostile gets past here."""

from __future__ import annotations

from pathlib import Path


def check_onnx(path: Path) -> None:
    """Refuse a file that the quantizer cannot take.

    Raises:
        EdgeError: not readable; external data missing; opset of ai.onnx outside 11..23; fails the onnx checker; already
            quantized; an input or a tensor of dynamic rank.
    """
    from edgecnn.onnx_file.check import check_onnx as check

    check(path)


def check_readable(path: Path) -> None:
    """Refuse a damaged or hostile ONNX file, whatever it is for.

    Raises:
        EdgeError: not readable; its tensors or its wiring are not what they say; no input of a known rank.
    """
    from edgecnn.onnx_file.check import check_readable as check

    check(path)
