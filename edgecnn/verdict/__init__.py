"""Budgets and baselines into a verdict, and the run folder that holds it."""
