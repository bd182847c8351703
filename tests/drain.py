"""Work done to its end, for tests that look at its steps too."""

from finetune_core.work import finish


def drained(work):
    """(steps, result)."""
    steps = []
    result = finish(work, steps.append)
    return steps, result
