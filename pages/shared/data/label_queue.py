"""Queue of images to label in a session, ranked in the background."""

from functools import partial
from typing import Any

from finetune_core.data.splits import TEST
from finetune_core.data.threads import map_in_threads
from finetune_core.formatting import format_percent
from finetune_core.jobs import Job
from finetune_core.labelling.session import Labelling, Labels, Probe, Ranking
from pages.shared.images import make_thumbnail, serve_picture
from pages.shared.jobs import jobs

_AHEAD = 160  # images that a browser holds: half a minute at five keys a second
_MADE_AT_ONCE = 32  # thumbnails; the others follow when the browser asks again
_SIDE = 400  # pixels of a thumbnail
_PLACES = 600  # addresses of thumbnails
_REFIT = 5  # labels between two fits of the linear probe


class SessionQueue:
    """Images that a session is shown for labelling, in the latest order.

    Attributes:
        labelling: the labelling that the images belong to.
    """

    def __init__(self, labelling: Labelling) -> None:
        self.labelling = labelling
        self._ranking: Ranking | None = None
        self._job: Job | None = None  # computes the next ranking
        self._wanted_order = ("", "")  # order of the next ranking
        self._thumbnails: dict[int, tuple[str, bytes]] = {}  # row -> place, JPEG
        self._num_made = 0

    @property
    def probe(self) -> Probe:
        """Linear probe of the latest ranking."""
        return self._latest.probe

    def rank(self, labels: Labels, order: str, of: str) -> None:
        """Start a new ranking every few labels, and take the latest complete one.

        Only the first ranking, and the first in another order, is waited for.

        Args:
            labels: labels so far.
            order: key of ``ORDERS``.
            of: image or class that the order refers to.

        Raises:
            DataError: if images cannot be ranked in that order.
        """
        self._take()
        latest = self._ranking
        is_same_order = latest is not None and (latest.order, latest.of) == (order, of)
        if self._job is not None and self._wanted_order != (order, of):
            # The job ends by itself, and its result is ignored.
            self._job = None
        if self._job is None and not (is_same_order and _is_recent(self._latest.labels, labels)):
            key = f"rank:{id(self.labelling)}:{labels.count}:{labels.waiting.sum()}:{order}:{of}"
            work = partial(self.labelling.rank, labels, order, of)
            self._job, self._wanted_order = (
                jobs().start(key, "Ordering the images", work),
                (order, of),
            )
        if self._job is not None and not is_same_order:
            self._job.wait()
            self._take()

    def next_images(self, labels: Labels) -> dict[str, Any]:
        """Return the next images in the form that the browser needs.

        Returns:
            ``images``, without unreadable ones, and ``more``: whether more thumbnails have to be
            made, or a new ranking is on its way.
        """
        rows = self._latest.rows
        rows = rows[labels.waiting[rows]][:_AHEAD].tolist()
        missing = [row for row in rows if row not in self._thumbnails]
        thumbnails = dict(map_in_threads(self._make_thumbnail, missing[:_MADE_AT_ONCE]))
        for row, picture in thumbnails.items():
            self._thumbnails[row] = (f"label-{self._num_made % _PLACES}", picture)
            self._num_made += 1
        self._thumbnails = {row: self._thumbnails[row] for row in rows if row in self._thumbnails}
        ready = [row for row, (_, picture) in self._thumbnails.items() if picture]
        names, shares = self.labelling.propose_labels(self.probe, ready)
        images = [
            self._describe_image(row, name, share)
            for row, name, share in zip(ready, names, shares, strict=True)
        ]
        return {"images": images, "more": len(missing) > len(thumbnails) or self._job is not None}

    @property
    def _latest(self) -> Ranking:
        assert self._ranking is not None, "rank comes first"
        return self._ranking

    def _take(self) -> None:
        if self._job is None or self._job.is_running:
            return
        job, self._job = self._job, None
        if job.error:
            raise job.error.with_traceback(None)
        self._ranking = job.result or self._ranking

    def _make_thumbnail(self, row: int) -> bytes:
        """Return the thumbnail of an image; empty if the image cannot be read."""
        thumbnail = make_thumbnail(
            self.labelling.root / str(self.labelling.pool["id"].iat[row]), _SIDE
        )
        return thumbnail if isinstance(thumbnail, bytes) else b""

    def _describe_image(self, row: int, name: str | None, share: float | None) -> dict[str, str]:
        sample = str(self.labelling.pool["id"].iat[row])
        is_test = self.labelling.pool["split"].iat[row] == TEST
        note = "Test image, drawn at random: there is no proposal." if is_test else ""
        if name is not None and share is not None:
            note = f"Proposed: {name}, {format_percent(share, 0)}"
        return {
            "id": sample,
            "src": serve_picture(self._thumbnails[row][1], self._thumbnails[row][0]),
            "alt": sample.rpartition("/")[2],
            "note": note,
            "proposal": name or "",
        }


def _is_recent(before: Labels, now: Labels) -> bool:
    """Return whether few labels are new, and no passed-over image waits again."""
    return abs(now.count - before.count) < _REFIT and not (now.waiting & ~before.waiting).any()
