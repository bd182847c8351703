import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune_core.training.data_pipeline.feeding import (
    Feed,
    forward_batch_size,
    load_batches,
    stream_outputs,
)
from finetune_core.training.devices.device import Device
from finetune_core.training.prepare import prepare
from finetune_core.transfers import Transfers
from finetune_core.work import finish as finish_work
from tests.factories import tiny_config
from tests.training.pretended import GPU

CPU, CUDA = Device("cpu", "a processor", "fp32"), Device("cuda", "NVIDIA Imaginary", "fp32")
TABLE = torch.arange(200.0)[:, None] * torch.tensor([1.0, 10.0])
ROWS = np.random.default_rng(0).permutation(200)[:75]


def feed(rows_seen):
    """Load rows of a table. Finishing adds its own number to each, which tells rows apart."""

    def finish(loaded, rows):
        rows_seen.append(rows.tolist())
        return loaded + torch.from_numpy(rows)[:, None]

    return Feed(lambda rows: TABLE[rows], finish)


@pytest.mark.parametrize("device", [CPU, GPU], ids=["processor", "GPU"])
def test_outputs_are_those_of_their_rows_in_order_and_without_gradients(device):
    weight = torch.ones(2, requires_grad=True)
    found = list(stream_outputs(lambda inputs: inputs * weight, device, ROWS, feed([])))
    assert [len(positions) for positions, _ in found] == [32, 32, 11]
    assert np.concatenate([positions for positions, _ in found]).tolist() == list(range(75))
    output = torch.cat([rows for _, rows in found])
    assert torch.equal(output, TABLE[ROWS] + torch.from_numpy(ROWS)[:, None])
    assert not output.requires_grad


@pytest.mark.parametrize("device", [CPU, GPU], ids=["processor", "GPU"])
def test_where_memory_runs_out_fewer_are_finished_and_computed_at_a_time(device):
    seen = []

    def forward(inputs):
        if len(inputs) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return inputs

    output = torch.cat([rows for _, rows in stream_outputs(forward, device, ROWS, feed(seen))])
    assert torch.equal(output, TABLE[ROWS] + torch.from_numpy(ROWS)[:, None])
    # what failed is not tried again
    assert [len(rows) for rows in seen] == [32, 16] + [8] * 8 + [6, 5]


@pytest.mark.parametrize(("device", "ahead"), [(CPU, 1), (GPU, 2)], ids=["processor", "GPU"])
def test_a_gpu_has_two_batches_sent_ahead_and_a_processor_one(device, ahead):
    begun, last = [], threading.Event()

    def load(rows):
        begun.append(int(rows[0]))
        if rows[0] == ahead:
            last.set()
        return rows, TABLE[rows]

    using = load_batches(load, [np.array([row]) for row in range(5)], device)
    next(using)
    assert last.wait(300)
    using.close()
    assert begun == list(range(ahead + 1))


@pytest.mark.parametrize(("device", "computed"), [(CPU, 1), (GPU, 2)], ids=["processor", "GPU"])
def test_an_output_is_copied_from_a_gpu_while_the_next_one_is_computed(device, computed):
    given = []
    coming = stream_outputs(
        lambda inputs: given.append(len(inputs)) or inputs, device, ROWS, feed([])
    )
    positions, _ = next(coming)
    assert positions.tolist() == list(range(32))
    assert given == [32] * computed
    coming.close()


def test_nothing_trains_with_as_many_images_at_a_time_as_the_device_needs():
    assert forward_batch_size(CPU) == 32
    assert 128 <= forward_batch_size(CUDA) <= 256
    job = finish_work(prepare(tiny_config(batch_size=8)))
    assert job.evaluation_batch == 32
    assert replace(job, device=CUDA).evaluation_batch == forward_batch_size(CUDA)
    small = replace(job, config=job.config.model_copy(update={"micro_batch": 4}))
    assert replace(small, device=CUDA).evaluation_batch == 4


def test_what_is_on_the_processor_is_not_brought_back_through_a_gpus_stream(monkeypatch):
    transfers = Transfers(torch.device("cpu"))
    monkeypatch.setattr(transfers, "_stream", object())  # anything that used it would fail
    nothing = torch.empty(0)
    assert transfers.to_cpu(nothing)() is nothing
