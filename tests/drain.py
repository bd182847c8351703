"""Running of work to its end, for tests that look at its steps."""

from finetune_core.work import finish


def drain(work):
    """Run work to its end and return (steps, result)."""
    steps = []
    result = finish(work, steps.append)
    return steps, result
