"""Published orderings of ways to fine-tune, each a file of data, run as they say and judged by the comparison's own paired verdict."""
