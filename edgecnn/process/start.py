"""The first thing that a process of edgecnn does: modules are not looked up in the working directory.

A user's recipe may lie beside a `torch.py` of their own. Python puts the working directory first where it runs a module
with -m, and wherever PYTHONPATH has an empty part. Nothing may be imported here but what Python has imported already.
"""

import os
import sys

HOME = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))  # the folder that edgecnn is imported from


def leave_out_working_directory() -> None:
    """Take it off the search path, unless PYTHONPATH names it; edgecnn itself stays to be found."""
    try:
        here = os.getcwd()
    except OSError:
        return  # gone: told by the command
    parts = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(parts)  # for the children
    named = [os.path.abspath(part) for part in parts]
    if here not in named:
        sys.path[:] = [part for part in sys.path if part and os.path.abspath(part) != here]
    if HOME not in sys.path:  # run from a checkout that is not installed
        sys.path.append(HOME)


def command_of(module: str) -> list[str]:
    """This Python running a module, as -m does, with such a search path."""
    first = f"import sys; sys.path.insert(0, {HOME!r}); from edgecnn.process.start import run; run({module!r})"
    return [sys.executable, "-c", first]


def run(module: str) -> None:
    """Run a module as the main one; what `command_of` starts with."""
    sys.path.remove(HOME)
    leave_out_working_directory()
    import runpy

    runpy.run_module(module, run_name="__main__", alter_sys=True)
