"""Published orderings of fine-tuning strategies, tested as published.

Each ordering is a data file. Its claims are judged by the paired verdict of a comparison.
"""
