"""Timing and its statistics, and how a model is fed. numpy alone: a board runs this very code."""
