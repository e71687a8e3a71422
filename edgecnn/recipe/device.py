"""Devices: what a person wrote about one (DeviceProfile), and what it answered about itself (DeviceFacts)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from edgecnn.backends import BackendName
from edgecnn.process.errors import EdgeError
from edgecnn.recipe.spec import FILE_NAME, Spec

Precision = Literal["fp32", "fp16", "bf16", "fp8", "int8"]


class Scheme(Spec):
    """Number types and granularity of a device's quantization; `placement` names the rules of where Q/DQ goes."""

    section: ClassVar[str] = "scheme"
    activations: Literal["int8-symmetric", "int8-asymmetric", "uint8-asymmetric"]
    """Number type of activations."""
    weights: Literal["int8-per-channel", "int8-per-channel-7bit"] = "int8-per-channel"
    """Number type of weights."""
    weight_bits: Annotated[int, Field(ge=2, le=8)] = 8
    """Fewer bits than the INT8 that holds them: a stress test in float simulation, for no engine."""
    activation_bits: Annotated[int, Field(ge=2, le=8)] = 8
    """As `weight_bits`, of activations."""
    bias: Literal["float", "int32"] = "float"
    """Number type of biases."""
    islands: Literal["float16", "float32"] = "float32"
    """Number type of what stays float between INT8 layers."""
    placement: Literal["tensorrt", "onnxruntime", "openvino"]
    """Whose rules decide where QuantizeLinear and DequantizeLinear stand."""
    costs: Literal["x86-vnni", "x86", "arm64"] | None = None
    """With whose measured costs onnxruntime's islands are weighed: one that INT8 makes slower there stays float. Left
    out: every layer and operator that has an INT8 kernel gets it."""


class DeviceProfile(Spec):
    """A device file: facts with their source, safe to commit. No host name, no secret."""

    section: ClassVar[str] = "device"
    name: Annotated[str, Field(pattern=FILE_NAME)]
    """Names folders and engines."""
    backend: BackendName
    """Engine that runs the model there."""
    architecture: Literal["x86_64", "aarch64"]
    """CPU architecture."""
    compute_capability: str | None = None
    """CUDA, as "8.7"; several, as "8.6, 8.9", where one engine of TensorRT for RTX is to serve cards of all of them."""
    memory_mb: int | None = None
    """Memory in MB that the GPU can use."""
    precisions: tuple[Precision, ...]
    """Number types that the device computes in."""
    unverified: tuple[Precision, ...] = ()
    """Precisions that are built and parsed, never given a speed until measured."""
    tensorrt_rules: Literal["10.3"] | None = None
    """Table of rules that its TensorRT is held to."""
    scheme: Scheme
    """How models are quantized for it."""
    source: str
    """Where these facts come from."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Its compute capabilities one by one; empty for a CPU."""
        return tuple(one.strip() for one in (self.compute_capability or "").split(",") if one.strip())

    def require_int8(self) -> None:
        """Refuse INT8 on a device whose file does not list it.

        Raises:
            EdgeError: always then; it names the device's precisions.
        """
        if "int8" not in self.precisions:
            raise EdgeError(
                f"INT8 is asked for, but device `{self.name}` lists only {', '.join(self.precisions)}",
                "pick a device that lists int8: `edgecnn devices list`",
            )

    def require_nms(self, nms: str) -> None:
        """Refuse a suppression inside the graph that nothing on this device runs.

        Raises:
            EdgeError: always then; it says what does run there.
        """
        match nms, self.backend:
            case ("none", _) | ("onnx", "onnxruntime" | "openvino") | ("tensorrt", "tensorrt"):
                return
            case "onnx", "tensorrt":
                why = "its INT8 engines take no NonMaxSuppression, whose outputs have data-dependent shapes"
            case "onnx", _:
                why = "TensorRT for RTX parses NonMaxSuppression and then has no kernel for it"
            case _, "tensorrt-rtx":
                why = "TensorRT for RTX has no plugins, and EfficientNMS_TRT is one"
            case _:
                why = f"EfficientNMS_TRT is a plugin of TensorRT, and this device runs {self.backend}"
        fits = {"onnxruntime": "none or onnx", "openvino": "none or onnx", "tensorrt": "none or tensorrt"}
        raise EdgeError(
            f"`export.nms: {nms}` does not work with device `{self.name}`: {why}",
            f"write `export.nms: {fits.get(self.backend, 'none')}`; with `none` boxes are suppressed in numpy, after"
            " the engine",
        )

    @field_validator("compute_capability", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, float) else value  # YAML reads 8.7 without quotes as a number


class DeviceFacts(Spec):
    """What the device answered; part of the key of everything made for it, so only what lasts stands here."""

    section: ClassVar[str] = "facts"
    reachable: bool  # False: no board or GPU here; engines may be compiled or parser-checked, never run
    backend_version: str  # "onnxruntime 1.32.0", "TensorRT for RTX 1.7.1 (parser and compiler only)"
    hardware: str  # CPU model or GPU name
    driver: str = ""
    power_mode: str = ""
    board: str = ""  # over SSH: the hosts asked, as they were given
    vnni: bool | None = None  # x86: 8-bit dot products that don't saturate at 16 bits


def resolve(scheme: Scheme, facts: DeviceFacts) -> Scheme:
    """The effective scheme: without VNNI, x86 kernels saturate 16-bit sums of U8S8 products, so weights get 7 bits."""
    if scheme.placement == "tensorrt" or facts.vnni is not False:
        return scheme
    costs = "x86" if scheme.costs == "x86-vnni" else scheme.costs
    return scheme.model_copy(update={"weights": "int8-per-channel-7bit", "costs": costs})


def kernels(scheme: Scheme, facts: DeviceFacts) -> str:
    """The CPU whose own INT8 kernels onnxruntime runs here for this scheme; '' where the float simulation must do.

    A board is judged by the kernels of this machine where its CPU is the same.
    """
    from edgecnn.backends.cpu import read_cpu

    own = facts.reachable and scheme.placement == "onnxruntime" and facts.hardware == read_cpu().name
    return facts.hardware if own else ""
