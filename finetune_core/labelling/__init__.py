"""Labelling of images without labels: the order in which they are shown, and the answers."""
