"""Validation of the frames that a browser's camera sends.

Anybody may send anything, so nothing in a message is trusted.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_core.data.decode import read_header, read_image
from finetune_core.errors import DataError, ImageError
from finetune_core.formatting import format_bytes, format_number

MOST_FRAMES = 16  # per message
_MOST_BYTES = 2_000_000  # per frame; a frame of 320 pixels takes about 30,000
_MOST_SIDE = 2048  # pixels
_MOST_NUMBER = 99_999  # largest number of a frame within its press
_ID = re.compile(r"[0-9a-z]{1,32}")


@dataclass(frozen=True)
class Batch:
    """Consecutive frames.

    Attributes:
        batch_id: the browser's name for the batch, by which it learns that the batch has arrived.
        press: id of the press of the record button; empty if nothing is recorded.
        first: number of the first frame within its press.
        frames: JPEGs, each of which was decoded once to its last row.
        recording: name of the data set, unchecked.
        class_name: name of the class that was shown, unchecked.
    """

    batch_id: str
    press: str
    first: int
    frames: tuple[bytes, ...]
    recording: str
    class_name: str


def read_batch(sent: Any) -> Batch:
    """Validate a message from the browser.

    Args:
        sent: ``{id, press, first, frames: [base64 of a JPEG, …], recording, class}``, or anything
            else.

    Raises:
        DataError: if the message is anything else, or too large.
    """
    if not isinstance(sent, Mapping):
        raise _refusal("it is no record")
    texts = [sent.get(name, "") for name in ("id", "press", "recording", "class")]
    if not all(isinstance(text, str) for text in texts):
        raise _refusal("a name in it is no text")
    batch_id, press, recording, class_name = texts
    first, frames = sent.get("first", 0), sent.get("frames")
    if not _ID.fullmatch(batch_id) or (press and not _ID.fullmatch(press)):
        raise _refusal("its id is none that a camera gives")
    if (
        not isinstance(first, int)
        or isinstance(first, bool)
        or not 0 <= first <= _MOST_NUMBER - MOST_FRAMES
    ):
        raise _refusal(
            "the number of its first frame is not between 0 and "
            f"{format_number(_MOST_NUMBER - MOST_FRAMES)}"
        )
    if not isinstance(frames, list) or not 1 <= len(frames) <= MOST_FRAMES:
        raise _refusal(f"it does not hold between 1 and {MOST_FRAMES} frames")
    return Batch(batch_id, press, first, tuple(map(_decode_jpeg, frames)), recording, class_name)


def _decode_jpeg(text: Any) -> bytes:
    """Decode a JPEG from base64, and check that it can be decoded.

    Raises:
        DataError: if there is none.
    """
    if not isinstance(text, str):
        raise _refusal("a frame in it is no text")
    if len(text) > _MOST_BYTES * 4 // 3 + 4:
        raise _refusal(f"a frame in it is larger than {format_bytes(_MOST_BYTES)}")
    try:
        content = base64.b64decode(text, validate=True)
        header = read_header(content)
        if header.format != "JPEG" or max(header.width, header.height) > _MOST_SIDE:
            raise _refusal(
                f"a frame in it is no JPEG of at most {format_number(_MOST_SIDE)} pixels on a side"
            )
        read_image(content)
    except (binascii.Error, ValueError):  # letters outside ASCII are a ValueError
        raise _refusal("a frame in it is not base64") from None
    except ImageError as error:
        raise _refusal(f"a frame in it cannot be decoded: {error}") from None
    return content


def _refusal(reason: str) -> DataError:
    return DataError(
        f"What the camera sent was not taken: {reason}. Reload the page, then try again."
    )
