import pytest

from finetune_core.work import Step, Work, finish, with_fixed_step, with_phase, with_subject
from tests.drain import drain


def counted(count: int, closed: list[bool] | None = None) -> Work[str]:
    try:
        for done in range(1, count + 1):
            yield Step(done, count)
    finally:
        if closed is not None:
            closed.append(True)
    return "result"


def test_work_is_finished_with_its_result_and_each_step_is_handed_on():
    seen = []
    assert finish(counted(3), seen.append) == "result"
    assert seen == [Step(1, 3), Step(2, 3), Step(3, 3)]
    assert finish(counted(3)) == "result"
    assert finish(counted(0), seen.append) == "result"


@pytest.mark.parametrize("error", [ValueError, StopIteration, KeyboardInterrupt])
def test_whoever_takes_the_steps_can_end_the_work_which_is_closed(error):
    closed, seen = [], []

    def on_step(step):
        seen.append(step)
        if step.done == 2:
            raise error

    work = counted(3, closed)
    with pytest.raises(error):
        finish(work, on_step)
    assert closed == [True]
    assert [step.done for step in seen] == [1, 2]


def test_what_the_work_raises_is_raised():
    def broken():
        yield Step(0, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        finish(with_phase("index", broken()))


def test_steps_without_a_phase_get_one_and_the_others_keep_theirs():
    def work():
        yield Step(1, 2)
        yield Step(1, None, "probe")
        return "result"

    assert drain(with_phase("index", work())) == (
        [Step(1, 2, "index"), Step(1, None, "probe")],
        "result",
    )


def test_a_part_of_a_phase_counts_on_from_what_was_done_before():
    def both():
        first = yield from with_phase("features", counted(2), 0, 5)
        second = yield from with_phase("features", counted(3), 2, 5)
        return first, second

    steps, result = drain(both())
    assert steps == [Step(done, 5, "features") for done in range(1, 6)]
    assert result == ("result", "result")


def test_work_in_a_phase_that_is_given_up_is_closed():
    closed = []
    inner = counted(3, closed)  # held, so that garbage collection does not close it
    work = with_phase("index", inner)
    next(work)
    work.close()
    assert closed == [True]


def test_work_on_one_of_several_things_says_on_which():
    seen, closed = [], []
    assert finish(with_subject("b", with_phase("probe", counted(2))), seen.append) == "result"
    assert finish(with_phase("probe", with_subject("b", counted(1))), seen.append) == "result"
    assert seen == [Step(1, 2, "probe", "b"), Step(2, 2, "probe", "b"), Step(1, 1, "probe", "b")]
    work = with_subject("b", counted(2, closed))
    next(work)
    work.close()
    assert closed == [True]


def test_a_part_of_longer_work_is_at_one_step():
    seen = []
    assert finish(with_fixed_step(Step(1, 4, "probe"), counted(3)), seen.append) == "result"
    assert seen == [Step(1, 4, "probe")] * 3
