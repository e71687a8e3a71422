"""What runs on a board: a guard, which listens for the host, and a worker, which does one job. Packed by `pack`.

Everything here but `pack` needs Python 3.10, the standard library and, for engines, the board's numpy. A job is one
JSON file; what the agent answers are JSON lines on its stdout, as a child's of `edgecnn.process.child`, the last one
with `result` or with `error`, `hint` and `kind`.
"""
