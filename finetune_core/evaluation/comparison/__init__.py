"""Comparison of several runs: arms, pairs, verdicts, costs, and what training changed."""
