"""One change to a data set: an image is excluded, moved, relabelled, or added with a label."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LONGEST_PATH = 4096  # characters
LONGEST_NAME = 1000  # characters of a class name


class Edit(BaseModel):
    """One change to a data set.

    Attributes:
        action: ``label`` adds an image of another folder to the training images, ``label_test`` to
            the test images; ``ignore`` leaves images as they are.
        paths: ids of the images.
        to: the new class or split of the images.
        kind: kind of the finding that the change answers, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["exclude", "move", "relabel", "ignore", "label", "label_test"]
    paths: tuple[Annotated[str, Field(max_length=LONGEST_PATH)], ...]
    to: str = Field("", max_length=LONGEST_NAME)
    kind: str = Field("", max_length=100)
