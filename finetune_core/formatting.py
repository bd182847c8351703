"""Formatting of numbers, splits and phases of a run for people."""

SPLIT_TITLES = {"train": "Training", "val": "Validation", "test": "Test", "shifted": "Shifted"}
PHASE_TITLES = {
    "device": "Waiting for the device, which is in use",
    "prepare": "Preparing the network",
    "index": "Scanning images",
    "download": "Downloading the pretrained weights",
    "unpack": "Unpacking",
    "name": "Classifying images",
    "decode": "Decoding images",
    "copies": "Looking for copies of training images",
    "features": "Computing features",
    "probe": "Probing each layer",
    "labels": "Looking for label errors",
    "shift": "Comparing the splits",
    "outliers": "Looking for outliers",
    "map": "Computing the map",
    "trunk": "Computing the frozen stages (once)",
    "gather": "Exchanging what the machines have computed",
    "choose": "Cross-validating",
    "fit": "Fitting the classifier",
    "average": "Averaging weights",
    "rates": "Trying learning rates",
    "timing": "Timing a few training steps",
    "validate": "Validating",
    "export": "Exporting the network",
    "measure": "Evaluating the exported file",
    "evaluate": "Evaluating the best epoch in fp32",
    "test": "Testing the best epoch",  # in logs of earlier versions
}


def format_percent(share: float, digits: int = 1) -> str:
    """Format 0.9312 as ``93.1 %``, never rounded up to a perfect 100 or down to 0."""
    text = f"{share * 100:.{digits}f}"
    if float(text) == 100 and share < 1:
        text = f"{100 - 10**-digits:.{digits}f}"
    if float(text) == 0 and share > 0:
        text = f"{10**-digits:.{digits}f}"
    return f"{text} %"


def format_interval(low: float, high: float) -> str:
    """Format the ends of an interval of a share: 0.961, 0.986 as ``96.1 % to 98.6 %``."""
    return f"{format_percent(low)} to {format_percent(high)}"


def accuracy_name(split: str) -> str:
    """Return the name of the accuracy on a split: ``test`` as ``Test accuracy``."""
    return f"{SPLIT_TITLES[split]} accuracy"


def format_points(difference: float) -> str:
    """Format a difference of shares in percentage points: 0.021 as ``2.1``."""
    return f"{difference * 100:z.1f}".replace("-", "−")


def format_memory(host: float, device: float | None) -> str:
    """Format an amount of memory as ``1.2 GB``.

    Where a GPU trains, its memory stands apart: ``3.1 GB of GPU memory, 400.0 MB of memory``.
    """
    return (
        format_bytes(host)
        if device is None
        else f"{format_bytes(device)} of GPU memory, {format_bytes(host)} of memory"
    )


def format_number(count: float) -> str:
    """Format 1234 as ``1,234``, and 11689512 as ``11.7 million``."""
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} million"
    return f"{count:,.0f}"


def format_short_number(count: float) -> str:
    """Format 8393728 as ``8.4 M``, and 9408 as ``9.4 k``, for drawings."""
    if count >= 999_950:
        return f"{count / 1e6:.1f} M"
    return f"{count / 1e3:.1f} k" if count >= 1_000 else f"{count:.0f}"


def pluralize(count: int, one: str, many: str | None = None) -> str:
    """Format a count with its noun: ``1 image``, ``1,234 images``."""
    return f"{format_number(count)} {one if count == 1 else many or one + 's'}"


def lower_first(title: str) -> str:
    """Return a title as it stands within a sentence, with a lower-case first letter.

    ``Linear probe, then full (LP-FT)`` becomes ``linear probe, then full (LP-FT)``. Names such as
    LoRA and WiSE-FT stay unchanged.
    """
    first = title.split(" ", 1)[0]
    return title if first[1:] != first[1:].lower() else title[:1].lower() + title[1:]


def format_duration(seconds: float) -> str:
    """Format 0.42 as ``0.4 s``, 130 as ``2 min 10 s``, and 7300 as ``2 h 2 min``."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def format_rough_duration(seconds: float) -> str:
    """Format a forecast duration at its own accuracy: ``3 s``, ``25 s``, ``16 min``, ``2.5 h``."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 57.5:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 59.5 * 60:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def format_time_left(seconds: float) -> str:
    """Format 0.02 as ``almost done``, and 130 as ``about 2 min 10 s left``."""
    return "almost done" if seconds < 0.05 else f"about {format_duration(seconds)} left"


def format_bytes(count: float) -> str:
    """Format bytes in powers of ten: 1536 as ``1.5 kB``, and 25769803776 as ``25.8 GB``."""
    for unit in ("B", "kB", "MB"):
        if count < 999.95:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def format_learning_rate(value: float) -> str:
    """Format a learning rate: 0.0001 as ``0.0001``, and 0.000012 as ``1.2e-05``."""
    return f"{value:g}"
