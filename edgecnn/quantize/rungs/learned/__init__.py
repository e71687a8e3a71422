"""Rungs that learn from calibration images by gradients: the only part of the quantizer that imports torch."""
