"""Forecasts before a run starts: its time and memory, and a learning rate."""
