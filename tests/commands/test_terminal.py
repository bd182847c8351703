from finetune_core.commands.terminal import progress_bar, show_work
from finetune_core.formatting import PHASE_WORDS
from finetune_core.work import Step


def test_every_phase_of_work_has_a_bar_and_its_result_is_handed_on():
    def work():
        yield Step(1, 2)
        yield Step(0, None, "export")
        yield Step(2, 3, "probe")
        yield Step(3, 3, "probe")
        return "result"

    bar = progress_bar()
    assert show_work(bar, work(), "Counting") == "result"
    assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
        ("Counting", 1, 2),
        (PHASE_WORDS["export"], 0, None),
        (PHASE_WORDS["probe"], 3, 3),
    ]
