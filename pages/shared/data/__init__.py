"""Widgets for the data set: its choice, its sources, and its findings."""
