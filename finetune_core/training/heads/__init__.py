"""Classifier heads that are fitted to frozen features, without epochs."""
