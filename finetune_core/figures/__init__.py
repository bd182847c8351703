"""Arrays in, figures out. Cold is frozen, warm is training; each split and each run keeps one colour everywhere."""
