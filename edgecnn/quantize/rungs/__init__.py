"""The recovery ladder's rungs that need no torch: one file each, one function `(Candidate, Tools) -> Candidate`."""
