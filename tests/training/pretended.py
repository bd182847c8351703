"""A processor that is treated like a GPU: it finishes batches and holds rows as a GPU would."""

from finetune_core.training.devices.device import Device


class PretendedGPU(Device):
    """A device that computes with the processor's tensors, arithmetic and random numbers."""

    @property
    def is_gpu(self) -> bool:
        return True


GPU = PretendedGPU("cpu", "a processor in disguise", "fp32")
