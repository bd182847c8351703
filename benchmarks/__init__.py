"""Measurements of speed, memory and statistics. In the checkout: ``python -m benchmarks.NAME``."""
