"""Widgets about what trained networks are worth, and what they make of images."""
