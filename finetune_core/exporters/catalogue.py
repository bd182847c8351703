"""The formats that a run can be exported to, and what each is for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A form of export.

    Attributes:
        help: what it is for, in one or two sentences.
        events: whether it is made of the run's events, which may be going on; else of its network and settings.
        network: whether it holds the network, so that a card and an example go with it.
        apart: whether it is made in a process of its own when the app asks: tracing changes torch's global state.
    """

    title: str
    help: str
    events: bool = False
    network: bool = True
    apart: bool = False


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        "Weights",
        "All weights as safetensors, which cannot run code, with classes and preprocessing beside them. Thaw reads it back.",
    ),
    "onnx": Format(
        "ONNX",
        "The network as a program that runs nearly everywhere without PyTorch; checked against the original in onnxruntime.",
        apart=True,
    ),
    "torch_export": Format(
        "torch.export",
        "The network as a PyTorch program that needs no model code; checked against the original.",
        apart=True,
    ),
    "script": Format(
        "Training script",
        "One plain PyTorch file that repeats this run without Thaw, with the split beside it. Good to read, to learn from, and to "
        "change.",
        network=False,
    ),
    "card": Format(
        "Model card",
        "What a reader has to know: data, recipe, results with intervals, limits, licences. In Hugging Face's format.",
        network=False,
    ),
    "tensorboard": Format(
        "TensorBoard",
        "This run's curves by step, epoch and stage, as event files. To look at them: tensorboard --logdir FOLDER.",
        events=True,
        network=False,
    ),
}
