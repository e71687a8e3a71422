"""What a network is for: labels, scores and figures of each task."""
