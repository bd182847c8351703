"""Another program of the same machine, in a process of its own."""

import os

from finetune_core.training.device_turn import work_in_turn
from finetune_core.work import Step, finish


def use_device(line, home, kind):
    """Say ``taken`` once it is this one's turn, and use the device until there is an answer."""
    os.environ["THAW_HOME"] = home  # where the lock is

    def use():
        line.send("taken")
        line.poll(300)
        yield Step(1, 1)

    finish(work_in_turn(use(), kind))
