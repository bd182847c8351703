"""Tests that runs draw random numbers without waiting, and disturb no run on another device."""

import threading

import pytest
import torch
from torch import nn

from finetune_core.randomness import make_generator, step_seed, use_generator, use_seed
from finetune_core.training.devices.device import Device
from finetune_core.training.step import compute
from finetune_core.training.step.compute import StepRule, train_step

CPU, CUDA = (Device(kind, "a device", "fp32") for kind in ("cpu", "cuda"))
PATIENCE = 60  # seconds


class GeneratorOfAGPU:
    """A generator that pretends to be a GPU's and draws on the processor."""

    device = torch.device("cuda")

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.get_state, self.set_state = generator.get_state, generator.set_state


@pytest.fixture
def gpu(monkeypatch):
    """Return the generator that torch would draw from if there were a GPU."""
    own = GeneratorOfAGPU(7)
    monkeypatch.setattr(torch.cuda, "default_generators", (own,))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        compute,
        "make_generator",
        lambda seed, kind="cpu": GeneratorOfAGPU(seed) if kind == "cuda" else make_generator(seed),
    )
    return own


def network():
    with use_seed(1):
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))


def step_weights(device, model=None, rule=None):
    """Return the weights of a network with dropout after a step."""
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    train_step(
        model,
        torch.ones(6, 4),
        torch.tensor([0, 1] * 3),
        optimizer,
        device,
        seed=5,
        rule=rule or StepRule(),
    )
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def beside(held, work):
    """Return ``work()`` while another thread is within ``held``, or None if it does not end."""
    entered, leave, found = threading.Event(), threading.Event(), []

    def hold():
        with held:
            entered.set()
            leave.wait()

    holding = threading.Thread(target=hold)
    working = threading.Thread(target=lambda: found.append(work()), daemon=True)
    holding.start()
    entered.wait()
    working.start()
    working.join(PATIENCE)
    leave.set()
    holding.join()
    return found[0] if found else None


def test_a_step_on_the_processor_does_not_wait_for_one_on_a_gpu(gpu):
    alone = step_weights(CPU)
    assert torch.equal(beside(use_generator(GeneratorOfAGPU()), lambda: step_weights(CPU)), alone)


def test_a_step_on_a_gpu_does_not_wait_for_one_on_the_processor(gpu):
    model = network()
    assert beside(use_seed(3), lambda: step_weights(CUDA, model)) is not None


def test_other_threads_can_draw_while_a_step_goes_backward(gpu):
    model, drawn = network(), []

    def draw():
        with use_seed(2):
            drawn.append(torch.rand(3))

    def backward(_):
        other = threading.Thread(target=draw, daemon=True)
        other.start()
        other.join(PATIENCE)
        assert drawn, "it waits"

    model[0].weight.register_hook(backward)
    alone = step_weights(CPU)
    assert torch.equal(step_weights(CPU, model), alone)
    with use_seed(2):
        assert torch.equal(drawn[0], torch.rand(3))


@pytest.mark.parametrize("size", [2, 6])
def test_a_step_draws_what_one_seeded_block_draws(size):
    model, expected = network(), network()
    with use_seed(5):
        order = torch.randperm(6)
        for some in torch.ones(6, 4)[order].tensor_split(6 // size):
            (
                nn.functional.cross_entropy(
                    expected(some), torch.tensor([0, 1] * (size // 2)), reduction="sum"
                )
                / 6
            ).backward()
    torch.optim.SGD(expected.parameters(), 0.1).step()
    rule = StepRule(
        micro_batch=size, mix=lambda images, labels: (images[torch.randperm(6)], labels)
    )
    found = step_weights(CPU, model, rule)
    assert torch.allclose(
        found,
        torch.cat([parameter.detach().flatten() for parameter in expected.parameters()]),
        atol=1e-6,
    )


def test_a_step_leaves_the_states_of_both_devices_as_they_were(gpu):
    plain = nn.Linear(4, 2)  # dropout would be drawn on the processor, for want of a GPU
    states = [one.get_state() for one in (torch.default_generator, gpu)]
    rule = StepRule(mix=lambda images, labels: (images + torch.rand(()), labels))
    step_weights(CPU, rule=rule)
    step_weights(CUDA, plain, rule)
    assert all(
        torch.equal(one.get_state(), state)
        for one, state in zip((torch.default_generator, gpu), states, strict=True)
    )


def test_a_block_goes_on_where_the_last_one_stopped(gpu):
    numbers, found = GeneratorOfAGPU(4), []
    for _ in range(2):
        with use_generator(numbers):
            found.append(torch.rand(2, generator=torch.Generator().set_state(gpu.get_state())))
            gpu.set_state(torch.Generator().manual_seed(9).get_state())
    assert torch.equal(found[0], torch.rand(2, generator=make_generator(4)))
    assert torch.equal(found[1], torch.rand(2, generator=make_generator(9)))


def test_each_seed_and_step_of_a_run_drops_other_units():
    masks = []
    for seed in (0, 1, 2**31 - 1):
        for step in (0, 1, 100_000):
            with use_seed(step_seed(seed, step)):
                masks.append(tuple(nn.functional.dropout(torch.ones(64), 0.5).tolist()))
    assert len(set(masks)) == 9
