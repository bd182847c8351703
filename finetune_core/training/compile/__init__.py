"""Ahead-of-time compilation of frozen network parts, in a process of its own."""
