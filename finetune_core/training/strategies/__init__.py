"""Strategies: which stages train, how fast, and how that is applied to a network."""
