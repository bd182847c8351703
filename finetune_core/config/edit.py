"""One change to a data set: an image excluded, moved, relabelled, or added with a label."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

LONGEST_PATH = 4096  # letters
LONGEST_NAME = 1000  # of a class, letters


class Edit(BaseModel):
    """One change to a data set.

    Attributes:
        action: ``label`` adds an image of another folder to the training images, ``label_test`` to
            the test images; ``ignore`` leaves images as they are.
        paths: ids of the images.
        to: the class or split that they get.
        kind: of the finding that it answers, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["exclude", "move", "relabel", "ignore", "label", "label_test"]
    paths: tuple[Annotated[str, Field(max_length=LONGEST_PATH)], ...]
    to: str = Field("", max_length=LONGEST_NAME)
    kind: str = Field("", max_length=100)
