"""Calibration images into histograms, and histograms into ranges."""
