"""What a search gives: moments of videos, best first, and lines to show with them."""
from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Hit:
    """A moment of a video that answers a query."""
    video: str           # its path in the folder, for display
    start: float         # seconds on the player's clock
    stop: float
    cosine: float
    match: float | None  # the fusion encoder's matching probability; None where it was not used
    path: Path
    damaged: bool = False  # whether a damaged part of the video lies in it
    error: str = ""      # why the fusion encoder could not read it
    best: tuple[float, float] | None = None  # start and stop of the clip that scores, where it is a part of the hit

    @property
    def time(self) -> str:
        """Start and stop for display: '1:02:03–1:02:07'."""
        return f"{timecode(self.start)}–{timecode(self.stop)}"

    @property
    def place(self) -> str:
        """Its place, as `like` takes it, to the same effect as the hit: 'inner/one.mp4@1:02:03-1:02:07'.

        Of a merged moment it names the best clip and the moment: 'inner/one.mp4@1:02:03-1:02:07 in 1:01:55-1:02:11'.
        """
        start, stop = map(timecode, self.scored)
        within = f" in {timecode(self.start)}-{timecode(self.stop)}" if self.best else ""
        return f"{self.video}@{start}-{stop}{within}"

    @property
    def scored(self) -> tuple[float, float]:
        """Start and stop of the clip that the scores are of."""
        return self.best or (self.start, self.stop)

    @property
    def scores(self) -> str:
        """Its scores for display."""
        return f"cosine {self.cosine:.2f}" + ("" if self.match is None else f" · match {self.match:.2f}")

    @property
    def note(self) -> str:
        """Mark for display: 'can't be read', 'damaged part' or ''."""
        return "can't be read" if self.error else "damaged part" if self.damaged else ""


class Answer(list):
    """The hits of a query, best first.

    Attributes:
        notes: Lines to show with them: what was searched, whose model ranks, and which hits could not be re-ranked.
    """

    def __init__(self, hits: list[Hit], notes: list[str]):
        super().__init__(hits)
        self.notes = notes


def timecode(seconds: float) -> str:
    """Return a time in tenths of a second as '1:02:03.5' or '2:03'."""
    tenths = round(10 * seconds)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + \
        f":{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
