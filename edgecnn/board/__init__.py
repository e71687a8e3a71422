"""The host's side of a board: the link to it (SSH), files to and from it, jobs on it."""
