"""Benchmarks of speed, memory and statistics: ``python -m benchmarks.NAME`` in a checkout."""
