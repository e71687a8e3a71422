"""The climb: candidates, their judge, and the rules that compare rungs with a budget."""
