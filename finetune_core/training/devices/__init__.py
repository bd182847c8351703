"""Devices of this machine: their memory, their speed, turns on them, and the ranks of a run."""
