"""Widgets for the evaluation of trained networks, and for their predictions."""
