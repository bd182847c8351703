"""Widgets for runs: their choice, their progress, and their actions."""
