"""The command line. `main` runs it and ends the process."""

from edgecnn.cli.app import main

__all__ = ["main"]
