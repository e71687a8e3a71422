"""The canonical float graph, and what runs it."""
