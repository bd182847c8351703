"""Strategies, the loop and its events, checkpoints, predictions. Calls config, data and models."""
