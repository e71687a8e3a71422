"""Classification: its metrics."""
