"""Helpers that train, by ``fit`` or as recorded runs, for tests that look into a training."""

from finetune_core.runs.record import create_run, execute
from finetune_core.training import events
from finetune_core.training.loop import StopRequested, fit


def fit_all(config, folder, **options):
    """Train to the end and return the events."""
    folder.mkdir(parents=True, exist_ok=True)
    return list(fit(config, folder, **options))


def fit_until(config, folder, is_last):
    """Train until ``is_last(event)`` and pause there.

    Returns:
        The events so far, and the training, which can go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training, seen = fit(config, folder), []
    for event in training:
        seen.append(event)
        if is_last(event):
            return seen, training
    raise AssertionError("the training ended first")


def stop_and_resume(config, folder, is_last):
    """Stop after the event that ``is_last`` accepts, resume to the end, and return its events."""
    _, training = fit_until(config, folder, is_last)
    assert isinstance(training.throw(StopRequested()), events.RunStopped)
    return list(fit(config, folder, resume=True))


def ends_epoch(epoch=1):
    return lambda event: isinstance(event, events.EpochEnded) and event.epoch == epoch


def ends_step(epoch, step):
    return lambda event: (
        isinstance(event, events.StepEnded) and (event.epoch, event.step) == (epoch, step)
    )


def only(kind, found):
    return [event for event in found if isinstance(event, kind)]


def record_run(config, runs_dir):
    """Train a recorded run and return its directory and its events."""
    reservation = create_run(config, runs_dir)
    return reservation.run_dir, list(execute(reservation))
