"""A processor that is treated like a GPU: batches are finished where a GPU would, rows are held where a GPU would hold them."""

from finetune_core.training.device import Device


class PretendedGPU(Device):
    """Its tensors, arithmetic and random numbers are the processor's, so that its results must be the processor's, too."""

    @property
    def is_gpu(self) -> bool:
        return True


GPU = PretendedGPU("cpu", "a processor in disguise", "fp32")
