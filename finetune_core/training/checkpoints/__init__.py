"""Checkpoints of runs, and the networks that are built from them."""
