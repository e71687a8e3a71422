"""What every process of edgecnn stands on: its errors, children, progress, disk and start. Standard library alone."""
