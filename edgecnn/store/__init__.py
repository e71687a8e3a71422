"""Finished stages, keyed by content."""
