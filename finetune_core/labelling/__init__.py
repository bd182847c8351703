"""Images without labels: the order in which a person is asked for them, and what becomes of the answers."""
