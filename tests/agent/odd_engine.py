"""An engine in place of onnxruntime's, which does to its process what the model file says."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def version() -> str:
    return "odd engine 1.0"


class OnnxRuntime:
    def version(self) -> str:
        return version()

    def load(self, model: Path, **_: Any) -> Any:
        print("the engine loads", file=sys.stderr, flush=True)
        match model.read_text().split():
            case ["segfault"]:
                ctypes.string_at(0)
            case ["killed"]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["memory"]:
                raise MemoryError
            case ["raises"]:
                raise LookupError("nobody foresaw this")
            case ["exits"]:
                os._exit(3)
            case ["sleeps"]:
                time.sleep(600)
            case ["deaf"]:  # native code that holds the interpreter and heeds no SIGTERM
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                say("deaf")
                ctypes.PyDLL(None).sleep(600)
            case ["parent"]:
                child = subprocess.Popen(["sleep", "600"])
                say(str(child.pid))
                child.wait()
            case ["talks", lines]:
                from edgecnn.process import progress

                with progress.current().task("talking", None) as task:
                    for number in range(int(lines)):
                        task.update(number, "x" * 200)
        return self


def say(text: str) -> None:
    from edgecnn.process import progress

    progress.current().note(text)
