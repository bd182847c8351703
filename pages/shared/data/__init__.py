"""Widgets about the data set: which one is chosen, where it comes from, what was found in it."""
