"""A processor that is treated like a GPU: it finishes batches and holds rows where a GPU would."""

from finetune_core.training.device import Device


class PretendedGPU(Device):
    """Its tensors, arithmetic and random numbers are the processor's, and so are its results."""

    @property
    def is_gpu(self) -> bool:
        return True


GPU = PretendedGPU("cpu", "a processor in disguise", "fp32")
