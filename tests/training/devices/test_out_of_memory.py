"""Tests of memory that runs out: for real in a limited process, and at chosen moments here."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from finetune_core.data.rowcache import CACHE
from finetune_core.errors import TrainingError, is_out_of_memory
from finetune_core.training import evaluation, events, job
from finetune_core.training.data_pipeline.batches import prefetch, split_batches
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.out_of_memory import run_halving, run_in_parts, split_parts
from finetune_core.training.loop import fit
from finetune_core.training.prepare import prepare
from finetune_core.training.step import movement
from finetune_core.training.step.compute import StepRule, train_step
from tests.drain import drain
from tests.factories import image_folder, tiny_config

CPU = Device("cpu", "CPU", "fp32")
LINUX = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 205520896 bytes. Error code 12 (Cannot allocate memory)"
)

LIMITED = """
import json, resource, sys
import psutil, torch
from torch import nn
from finetune_core.training.step.compute import StepRule, train_step
from finetune_core.training.devices.device import Device
from finetune_core.training.evaluation import compute_logits_in_parts

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(64, 3),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
images, labels = torch.randn(64, 3, 64, 64), torch.arange(64) % 3
device = Device("cpu", "", "fp32")
# Make the allocations that happen once before the limit is set.
train_step(model, images[:2], labels[:2], optimizer, device, 0)
model[1].reset_running_stats()
seen = []
model[0].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
most = psutil.Process().memory_info().vms + (50 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
size, tries = None, []
for step in range(3):
    rule = StepRule(micro_batch=size)
    size = train_step(model, images, labels, optimizer, device, step, rule).micro_batch
    tries.append(list(seen))
    seen.clear()
tracked = model[1].num_batches_tracked.item()
model.eval()
logits, evaluated = compute_logits_in_parts(model, images, device, 64)
found = {"size": size, "tries": tries, "tracked": tracked, "evaluated": evaluated}
print(json.dumps(found | {"logits": len(logits)}))
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
def test_under_a_limit_of_the_system_smaller_parts_go_through():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    size = found["size"]
    assert 1 < size < 64
    first, *later = found["tries"]
    assert first[0] == 64
    assert later == [[size] * (64 // size)] * 2  # what failed is not tried again
    # nor does a failed pass count in BatchNorm's statistics
    assert found["tracked"] == 3 * 64 // size
    assert size <= found["evaluated"] < 64
    assert found["logits"] == 64


UNDER_A_LIMIT = """
import resource, sys
import psutil
import finetune_core.__main__ as command, torch
# Import before the limit is set.
import finetune_core.evaluation.advice.advise, finetune_core.inspection.deep
from finetune_core.training.devices import turn as device_turn

usual = device_turn.run_on_idle_device

def limited(*arguments):
    most = psutil.Process().memory_info().vms + (20 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    return usual(*arguments)

from finetune_core.inspection import features
features.run_on_idle_device = limited
sys.argv = ["thaw", *sys.argv[1:]]
command.main()
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")
@pytest.mark.parametrize(
    "command",
    [["inspect", "--deep"], pytest.param(["advise"], marks=pytest.mark.exhaustive)],
    ids=" ".join,
)
def test_an_inspection_without_memory_says_so_and_leaves_the_data(command, tmp_path):
    data = image_folder(tmp_path / "images", {"red": 12, "blue": 12}, size=(256, 256))
    before = sorted(data.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, command[0], data, *command[1:]],
        capture_output=True,
        text=True,
    )
    assert "There is not enough memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2)
    assert sorted(data.rglob("*")) == before


WITHOUT_MEMORY_FOR_IMPORTS = """
import builtins, sys
import finetune_core.__main__ as command

usual = builtins.__import__

def limited(name, *arguments):
    if name not in sys.modules:
        raise MemoryError
    return usual(name, *arguments)

builtins.__import__ = limited
sys.argv = ["thaw", "advise", "digits"]
command.main()
"""


@pytest.mark.processes
def test_a_command_without_memory_for_its_imports_says_so():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY_FOR_IMPORTS], capture_output=True, text=True
    )
    assert done.stderr.startswith("There is not enough memory")
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(LINUX),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you "
            "tried to allocate 9 bytes."
        ),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB, max "
            "allowed: 9.07 GB)."
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_python.so: failed to map segment from shared object"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        np._core._exceptions._ArrayMemoryError((1,), np.dtype(float)),
    ],
    ids=lambda error: str(error)[:40],
)
def test_it_is_known_by_the_words_of_every_device(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.fixture
def config():
    return lambda **settings: tiny_config(**{"batch_size": 10} | settings)


class Hungry(nn.Module):
    """Module that is out of memory for too many images, after its BatchNorm has seen them."""

    def __init__(self, most, features=6):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.inner, self.most, self.seen = (
            nn.BatchNorm1d(features),
            nn.Linear(features, 3),
            most,
            [],
        )

    def forward(self, inputs):
        self.seen.append(len(inputs))
        inputs = self.norm(inputs)
        if len(inputs) > self.most:
            raise RuntimeError(LINUX)
        return self.inner(inputs)


def steps_on(model, images, micro=None, steps=1):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    inputs, labels = torch.randn(images, 6), torch.arange(images) % 3
    for step in range(steps):
        done = train_step(model, inputs, labels, optimizer, CPU, step, StepRule(micro_batch=micro))
    return done


def test_the_step_is_that_of_smaller_parts_and_a_failed_pass_leaves_no_trace():
    limited, wanted = Hungry(3), Hungry(99)
    done = steps_on(limited, 8)
    steps_on(wanted, 8, micro=done.micro_batch)
    assert (done.micro_batch, limited.seen) == (2, [8, 4, 2, 2, 2, 2])
    for (name, tensor), other in zip(
        limited.state_dict().items(), wanted.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name


def test_a_batch_is_cut_evenly_so_that_batchnorm_never_sees_a_single_image():
    model = Hungry(99)
    steps_on(model, 33, micro=32)
    assert model.seen == [17, 16]
    assert [len(part) for part in split_parts(torch.zeros(10), 4)] == [4, 3, 3]
    assert [len(part) for part in split_parts(torch.zeros(0), 4)] == [0]


def test_not_even_one_image_fits():
    with pytest.raises(TrainingError, match="not enough memory for a single image"):
        run_in_parts(Hungry(0).eval(), torch.zeros(5, 6), 4)


def test_other_errors_stay_what_they_are():
    seen = failing("shapes differ", RuntimeError)
    assert seen == [8]


def test_onednn_without_memory_for_a_single_image_says_what_to_do():
    seen = failing("could not create a primitive", TrainingError)
    assert seen == [8, 4, 2, 1]


def failing(message, expected):
    """Return the sizes that are tried of work that always fails with this message."""
    seen = []

    def fail(size):
        seen.append(size)
        raise RuntimeError(message)

    with pytest.raises(
        expected, match="for a single image" if expected is TrainingError else message
    ):
        run_halving(fail, 8)
    return seen


def test_outputs_of_parts_are_those_of_the_whole():
    model = Hungry(4).eval()
    inputs = torch.randn(10, 6)
    outputs, size = run_in_parts(model, inputs, 32)
    assert (size, model.seen) == (3, [10, 5, 3, 3, 2, 2])
    torch.testing.assert_close(outputs, model.inner(model.norm(inputs)))


@pytest.mark.parametrize(
    ("failing", "ahead", "expected"),
    [
        (1, 1, [0, 1, 1, 2, 3, 4]),
        (3, 1, [0, 1, 2, 3, 3, 4]),
        (1, 2, [0, 1, 2, 1, 2, 3, 4]),
        (3, 2, [0, 1, 2, 3, 4, 3, 4]),
    ],
)
def test_a_batch_that_cannot_be_made_beside_the_step_is_made_after_it(failing, ahead, expected):
    tries = []

    def make(rows):
        tries.append(int(rows[0]))
        if tries.count(failing) == 1 and tries[-1] == failing:
            raise RuntimeError(LINUX)
        return int(rows.sum())

    assert [batch for _, batch in prefetch(make, split_batches(np.arange(5), 1), ahead)] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert tries == expected


def test_a_batch_that_cannot_be_made_at_all_says_what_to_do():
    def make(rows):
        raise RuntimeError(LINUX)

    with pytest.raises(TrainingError, match=r"batch of images.*smaller batch size"):
        list(prefetch(make, split_batches(np.arange(5), 1)))


def test_a_run_remembers_what_fits_and_says_it_once(config, tmp_path, monkeypatch):
    seen = limit_tail(monkeypatch, 4)
    found = list(fit(config(strategy="feature_extraction"), tmp_path))
    assert isinstance(found[-1], events.RunFinished)
    short = [event for event in found if isinstance(event, events.MemoryShort)]
    assert [event.micro_batch for event in short] == [3]
    assert {event.micro_batch for event in found if isinstance(event, events.StepEnded)} <= {2, 3}
    assert seen[:2] == [10, 5]
    assert seen.count(10) == 1  # no later step tries as many again


@pytest.mark.train
def test_images_are_evaluated_as_many_at_a_time_as_in_a_step(config, tmp_path, monkeypatch):
    seen, answered = [], evaluation.compute_logits_in_parts

    def counted(model, inputs, device, size):
        seen.append((len(inputs), size))
        return answered(model, inputs, device, size)

    monkeypatch.setattr(evaluation, "compute_logits_in_parts", counted)
    list(fit(config(micro_batch=2), tmp_path))
    assert set(seen) == {(2, 2)}


class Limited(nn.Module):
    def __init__(self, inner, most, seen):
        super().__init__()
        self.inner, self.most, self.seen = inner, most, seen

    def forward(self, inputs):
        self.seen.append(len(inputs))
        if len(inputs) > self.most:
            raise RuntimeError(LINUX)
        return self.inner(inputs)


def limit_tail(monkeypatch, most):
    """Let at most ``most`` images go through a network or tail at a time.

    Returns:
        The sizes that are tried.
    """
    seen = []
    forward = job.Job.forward.fget
    monkeypatch.setattr(
        job.Job, "forward", property(lambda self: Limited(forward(self), most, seen))
    )
    return seen


@pytest.mark.train
def test_an_optimizer_without_room_ends_the_run_in_words_and_keeps_its_checkpoint(
    config, tmp_path, monkeypatch
):
    stepped = torch.optim.SGD.step
    calls = []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return stepped(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", failing)
    with pytest.raises(TrainingError, match=r"optimizer's step.*resume"):
        list(fit(config(optimizer="sgd", epochs=3), tmp_path))
    monkeypatch.setattr(torch.optim.SGD, "step", stepped)
    assert isinstance(
        list(fit(config(optimizer="sgd", epochs=3), tmp_path, resume=True))[-1], events.RunFinished
    )


def test_a_measurement_without_room_is_left_out(monkeypatch):
    class Full:
        def __init__(self, params):
            self.param_groups = [{"params": params}]

    parameter = nn.Parameter(torch.zeros(2))
    monkeypatch.setattr(
        torch.Tensor, "clone", lambda self: (_ for _ in ()).throw(RuntimeError(LINUX))
    )
    assert movement.copy_parameters(Full([parameter])) is None


@pytest.mark.train
def test_augmented_versions_are_the_same_with_and_without_room(config, tmp_path, monkeypatch):
    """Images that a run trains on follow from its settings, never from the free memory."""
    settings = config(augmentation="flips", epochs=5)  # two versions, chosen by the epochs

    def trained_on():
        _, made = drain(prepare(settings))
        return made.report.where, [labelled(made, epoch) for epoch in (1, 2, 3)]

    def labelled(made, epoch):
        given = made.training_inputs(made.training_batches(1), epoch)
        return torch.cat([made.forward.eval()(inputs) for _, inputs in given]).detach()

    where, roomy = trained_on()
    assert where in ("memory", "disk")
    monkeypatch.setenv("THAW_CACHE_MEMORY_GB", "0")
    monkeypatch.setenv("THAW_CACHE_DISK_GB", "0")
    CACHE.clear()
    where, tight = trained_on()
    assert where == "off"
    settings = settings.model_copy(update={"cache": "off"})
    _, off = trained_on()
    for one, two, three in zip(roomy, tight, off, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert torch.equal(two, three)
    assert torch.equal(tight[0], tight[2])  # the first version again
    assert not torch.equal(tight[0], tight[1])
