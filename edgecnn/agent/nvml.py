"""A desktop GPU's clocks, heat, power and throttling, asked of the driver's own library by ctypes."""

from __future__ import annotations

import ctypes

from edgecnn.agent.protocol import Json

LIBRARY = "libnvidia-ml.so.1"
GRAPHICS, MEMORY = 0, 2  # nvmlClockType_t
# nvmlClocksEventReasons that slow a GPU down against its clocks' setting; a power cap by software is how it works.
SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
             0x80: "power brake slowdown"}  # fmt: skip


class Nvml:
    """The first GPU of the driver.

    Raises:
        OSError: there is no driver, or it has no GPU.
    """

    def __init__(self) -> None:
        self.library = ctypes.CDLL(LIBRARY)
        if self.library.nvmlInit_v2() != 0:
            raise OSError("the NVIDIA driver does not answer")
        self.gpu = ctypes.c_void_p()
        if self.library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.gpu)) != 0:
            raise OSError("the NVIDIA driver has no GPU")

    def read(self) -> Json:
        """One sample; what this GPU doesn't tell is left out."""
        found: Json = {}
        for key, kind in (("gpu_mhz", GRAPHICS), ("emc_mhz", MEMORY)):
            if (value := self._ask("nvmlDeviceGetClockInfo", kind)) is not None:
                found[key] = float(value)
        if (value := self._ask("nvmlDeviceGetTemperature", 0)) is not None:
            found["temperature_c"] = {"gpu": float(value)}
        if (value := self._ask("nvmlDeviceGetPowerUsage")) is not None:
            found["mw"] = {"GPU": float(value)}
        reasons = self._reasons()
        found["throttle"] = [name for bit, name in SLOWDOWNS.items() if reasons & bit]
        return found

    def _ask(self, function: str, *arguments: int) -> int | None:
        value = ctypes.c_uint()
        status = getattr(self.library, function)(self.gpu, *arguments, ctypes.byref(value))
        return value.value if status == 0 else None

    def _reasons(self) -> int:
        value = ctypes.c_ulonglong()
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            function = getattr(self.library, name, None)  # the first since driver 535
            if function is not None and function(self.gpu, ctypes.byref(value)) == 0:
                return value.value
        return 0
