import pytest
import torch

from finetune_core.errors import ConfigError
from finetune_core.formatting import pluralize
from finetune_core.training.devices import device as device_module
from finetune_core.training.devices.device import choose_device, describe_machine, read_numerics


@pytest.fixture
def machine(monkeypatch):
    """Pretend that this machine has these accelerators, and a processor with these capabilities."""

    def pretend(*accelerators, capabilities=(), cuda_bf16=True, cuda_capability=(9, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in accelerators)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in accelerators)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Imaginary")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: cuda_capability)
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: cuda_bf16 or including_emulation,
        )
        monkeypatch.setattr(
            torch.cpu,
            "get_capabilities",
            lambda: {"cpu_name": "Imaginary CPU"} | dict.fromkeys(capabilities, True),
        )

    return pretend


@pytest.mark.parametrize(
    ("accelerators", "kind"),
    [(("cuda", "mps"), "cuda"), (("mps",), "mps"), ((), "cpu"), (("cuda",), "cuda")],
)
def test_cuda_then_apple_then_the_processor(machine, accelerators, kind):
    machine(*accelerators)
    assert choose_device().kind == kind


def test_a_device_that_is_there_can_be_asked_for(machine):
    machine("cuda", "mps")
    for kind in ("cpu", "mps", "cuda"):
        assert choose_device(kind).kind == kind


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine, kind):
    machine()
    with pytest.raises(ConfigError) as caught:
        choose_device(kind)
    assert caught.value.problems == {"device": f"there is no {kind} here; this machine has cpu"}


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ((), "fp32"),
        (("avx2", "avx512_f"), "fp32"),
        (("avx512_bf16",), "bf16"),
        (("amx_bf16",), "bf16"),
        (("bf16",), "bf16"),
    ],
)
def test_auto_takes_bf16_only_where_the_processor_has_it(machine, capabilities, precision):
    machine(capabilities=capabilities)
    assert choose_device("cpu").precision == precision


@pytest.mark.parametrize(
    ("native", "capability", "precision"),
    [
        (True, (8, 0), "bf16"),
        (False, (7, 5), "fp16"),
        (False, (7, 0), "fp16"),
        (False, (6, 1), "fp32"),
    ],
)
def test_auto_does_not_take_an_emulated_bf16_on_cuda_but_fp16_where_that_is_fast(
    machine, native, capability, precision
):
    machine("cuda", cuda_bf16=native, cuda_capability=capability)
    assert choose_device("cuda").precision == precision


def test_auto_stays_with_fp32_on_apples_gpu(machine):
    machine("mps", capabilities=("bf16",))
    assert choose_device("mps").precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_asked_for_is_taken(machine, precision):
    machine("cuda", capabilities=("avx512_bf16",))
    for kind in ("cuda", "cpu"):
        assert choose_device(kind, precision).precision == precision


@pytest.mark.parametrize(
    ("kind", "label"),
    [("cuda", "NVIDIA Imaginary"), ("mps", "Apple GPU"), ("cpu", "Imaginary CPU")],
)
def test_bf16_is_refused_where_it_would_be_emulated(machine, kind, label):
    machine(
        "cuda", "mps", capabilities=("avx2", "avx512_f"), cuda_bf16=False, cuda_capability=(6, 1)
    )
    with pytest.raises(ConfigError) as caught:
        choose_device(kind, "bf16")
    assert list(caught.value.problems) == ["precision"]
    assert caught.value.problems["precision"].startswith(f"bf16 would be emulated on {label}")
    assert choose_device(kind, "fp32").precision == choose_device(kind).precision == "fp32"


@pytest.mark.parametrize(("kind", "label"), [("mps", "Apple GPU"), ("cpu", "Imaginary CPU")])
def test_fp16_is_refused_where_there_is_no_nvidia_gpu_for_it(machine, kind, label):
    machine("cuda", "mps", cuda_bf16=False, cuda_capability=(6, 1))
    with pytest.raises(ConfigError) as caught:
        choose_device(kind, "fp16")
    assert list(caught.value.problems) == ["precision"]
    assert caught.value.problems["precision"].startswith(
        f"fp16 is for NVIDIA GPUs, not for {label}"
    )
    assert choose_device("cuda", "fp16").precision == "fp16"


def test_labels_are_for_people(machine):
    machine("cuda", "mps")
    assert choose_device("cuda").label == "NVIDIA Imaginary"
    assert choose_device("mps").label == "Apple GPU"
    assert choose_device("cpu").label.endswith(pluralize(torch.get_num_threads(), "thread"))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_computes_in_the_precision(native_bf16, precision, dtype):
    chosen = choose_device("cpu", precision)
    assert chosen.torch_device == torch.device("cpu")
    with chosen.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_fp32_on_an_nvidia_gpu_is_fp32_and_algorithms_are_not_timed():
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision in ("ieee", "none")
    assert read_numerics() == {"tf32": False, "cudnn_benchmark": False}


@pytest.mark.parametrize("operations", [torch.backends.cuda.matmul, torch.backends.cudnn.conv])
def test_numerics_are_those_that_hold(monkeypatch, operations):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = operations.fp32_precision
    operations.fp32_precision = "tf32"
    found = read_numerics()
    operations.fp32_precision = before
    assert found == {"tf32": True, "cudnn_benchmark": True}


def test_the_machine_is_described():
    machine = describe_machine()
    assert machine.cores >= 1
    assert 0 < machine.free_memory <= machine.memory
    assert machine.device == choose_device()
    assert machine.device.kind in device_module._list_devices()
