"""Widgets about runs: which one is chosen, how it goes, and what can be done with it."""
