"""An opened file: its film, and which frame each presentation time belongs to."""
import collections
import contextlib
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.format import Flags as FormatFlags

from egokit.config.access import explain
from egokit.data.video.container import open_film
from egokit.data.video.timeline import (
    Refused,
    Timeline,
    Untimed,
    VideoError,
    advice,
    check_gaps,
    continued,
    is_prepared,
    usual_rate,
)

REWOUND = {"mov", "matroska", "avi"}  # containers in which a seek to an early time leads to the start
LEADING = 16  # at most so many frames that are shown before a keyframe are sent after it
TIMED = {"mov"}  # containers in which every frame has a time of its own, and the first is a keyframe


class IrregularTimes(Exception):
    """The file's times are not number / rate, although its header says so."""


def demux(container, stream, tolerant: bool) -> Iterator:
    """Yield a stream's packets that follow; if tolerant, go on after those that can't be read."""
    failures = 0
    while failures < 100:
        try:
            yield from container.demux(stream)
            return
        except IndexError:  # PyAV's, where another stream begins in mid-file
            failures += 1
        except av.error.FFmpegError:
            failures += 1
            if not tolerant:
                raise


class MediaFile(Timeline):
    """The film of a file that PyAV opens, and its timeline.

    A frame's number is its place in presentation order. In a file of constant frame rate that is its presentation time
    times the rate; any other file is numbered from a table of its packets' times, which costs a pass over the file.

    Attributes:
        container, stream: PyAV's.
        tolerant: whether to read past damage.
        status: the file's facts, if the caller has asked for them.
        aspect: width / height of a stored pixel; None or 0 if not stated.
        times: None at a constant frame rate, else all frames' presentation times, sorted, in the stream's time base.
    """

    def __init__(self, path: Path, tolerant: bool = False, status: os.stat_result | None = None):
        self.path, self.tolerant, self.status = path, tolerant, status
        self.times, self.cut_off, self.origin = None, False, 0
        try:
            self._open()
            self._number_frames()
            if self.length < 1:
                raise Refused("no frame in it")
        except (Refused, av.error.FFmpegError, OSError) as error:
            if isinstance(error, Untimed):
                raise
            if isinstance(error, PermissionError):
                raise VideoError(explain(path)) from None
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(f"{path}: not a video that can be opened ({reason}); {advice(path)}") from None

    def _open(self) -> None:
        self.container, self.stream = open_film(self.path, is_file=self.status is not None)
        self.stream.codec_context.thread_count = 1
        self.aspect = self.stream.sample_aspect_ratio

    def _number_frames(self) -> None:
        """Set the timeline, and what gives each presentation time its frame's number."""
        container = self.container.format
        if container.name == "avi" or container.flags & FormatFlags.no_timestamps.value:
            raise Untimed(f"{container.long_name} doesn't say when a frame is shown")
        constant = self._has_constant_rate()
        rate = self.stream.base_rate if constant else self.stream.average_rate or self.stream.guessed_rate
        self.length, self.origin = self.stream.frames, self.stream.start_time or 0
        if constant:
            self._set_rate(rate)
        else:
            self.list_times(rate)

    def _set_rate(self, rate: Fraction | None) -> None:
        """Set the frame rate, and the time of the first frame."""
        if not rate:
            raise Refused("the file states no frame rate")
        self.rate = Fraction(rate)
        self.step = float(1 / (rate * self.stream.time_base))  # time base units per frame
        self.start = max(0.0, float(self.origin * self.stream.time_base) - self.zero())

    def zero(self) -> float:
        """Return the player's zero in the file's own time, seconds: the start of the earliest of its streams."""
        start = self.container.start_time
        return start / av.time_base if start is not None else float(self.origin * self.stream.time_base)

    def _has_constant_rate(self) -> bool:
        """Return whether all frames have the same duration.

        The header and some entries of the index decide, the last one included, because a gap anywhere moves it. A file
        without an index counts as one of variable rate. `number_of` notices what was missed.
        """
        stream, entries = self.stream, self.stream.index_entries
        if not (stream.frames and stream.base_rate and stream.duration and len(entries) == stream.frames
                and abs(stream.duration * stream.time_base * stream.base_rate - stream.frames) < 0.75):
            return False
        final = len(entries) - 1
        end, size = entries[final].pos + entries[final].size, (self.status or self.path.stat()).st_size
        if end > size:
            if self.tolerant:
                self.cut_off = True
                return False
            raise Refused(f"cut off: its frames would fill {end:,} bytes, the file has {size:,}")
        if not is_prepared(self.path) and self._has_gap_at_end(entries[final].timestamp):
            return False
        step, first = 1 / (stream.base_rate * stream.time_base), entries[0].timestamp
        return all(abs(entries[i].timestamp - first - i * step) < 0.2 * step
                   for i in (*range(0, final, final // 8 or 1), final))

    def _has_gap_at_end(self, last: int) -> bool:
        """Return whether the last frame is not shown where the number of frames would put it.

        An index has decoding times, which don't tell; so the last packets are read. (Prepared files were verified.)
        """
        with contextlib.suppress(av.error.FFmpegError):
            self.container.seek(last, stream=self.stream, backward=True)
            end = max((packet.pts for packet in self.container.demux(self.stream) if packet.pts is not None), default=0)
            step = 1 / (self.stream.base_rate * self.stream.time_base)
            return abs(end - (self.stream.start_time or 0) - (self.stream.frames - 1) * step) > 0.2 * step
        return False

    def rewind(self) -> None:
        """Go to the start of the file, which may lie before its time 0; where no seek leads there, open it again."""
        if REWOUND & set(self.container.format.name.split(",")):
            with contextlib.suppress(av.error.FFmpegError):
                return self.container.seek(min(0, (self.container.start_time or 0) - av.time_base))
        self.container.close()
        self._open()

    def packets(self) -> Iterator:
        """Yield the packets that follow; a tolerant reader goes on after those that can't be read."""
        return demux(self.container, self.stream, self.tolerant)

    def list_times(self, rate: Fraction | None) -> None:
        """List the presentation times of all frames, for files whose times aren't number / rate."""
        self.rewind()
        tick = self.stream.time_base
        # keys: places of keyframes; hidden: times of frames that an edit list leaves out
        shown, keys, untimed, hidden, places, order = [], [], 0, [], [], []
        for packet in self.packets():
            if packet.size and packet.is_discard:
                hidden.append(packet.pts)
            elif packet.size:
                keys += [len(shown)] * packet.is_keyframe
                shown.append((packet.pts, packet.duration))
                untimed += packet.pts is None and len(keys) == 1
                places.append(packet.pos or 0)
                order.append(packet.dts)
        in_table = bool(TIMED & set(self.container.format.name.split(",")))
        if in_table and None not in hidden and shown:
            within = [pts for pts in hidden if min(shown)[0] <= pts <= max(shown)[0]]
            if within or (np.diff(places) < 0).any():
                raise Untimed("an edit list of several parts")
        if not in_table and None not in order and continued(order, float(tick), self.is_broadcast()) is not None:
            raise Untimed("its clock restarts in mid-file")
        if 0 < untimed <= LEADING and shown[keys[0]][0] is not None:  # they refer to what was cut off
            shown = [frame for frame in shown if frame[0] is not None]
        if not shown or any(pts is None for pts, _ in shown):
            raise Untimed("frames without a time of their own")
        if keys and not untimed:
            left_out = self._left_out([pts for pts, _ in shown[:keys[0] + 1 + LEADING]], keys[0])
            shown = [frame for place, frame in enumerate(shown) if place not in left_out]
        shown.sort(key=lambda frame: frame[0])
        self.times = np.array([pts for pts, _ in shown])
        if (np.diff(self.times) == 0).any():
            if not self.tolerant and in_table:
                raise Refused("its table of times is damaged: several frames have the same time")
            raise Untimed("frames without a time of their own")
        self.missing = max(0, self.stream.frames - len(shown)) if self.cut_off else 0
        self.length, self.origin = len(shown), shown[0][0]
        self._set_rate(usual_rate(rate, self.times * float(tick)))
        self.shown = self.times * float(tick) - self.zero()
        check_gaps(self.shown)
        self.start = float(self.shown[0])
        self.last = float((shown[-1][1] or 0) * tick)

    def is_broadcast(self) -> bool:
        """Whether the container's clock may restart or jump at any time."""
        return bool(self.container.format.flags & FormatFlags.ts_discont.value)

    def _left_out(self, first: list[int], key: int) -> set[int]:
        """Return which of the first packets are never shown, where a video was cut without encoding.

        These are what stands before the first keyframe, and what follows it at once and refers to what was cut off.

        Args:
            first: the packets' times, in decoding order.
            key: place of the first keyframe among them.
        """
        gaps = np.diff(sorted(first[key:]))
        if not key and min(first) == first[0] and not (gaps < 0.5 * np.median(gaps)).any():
            return set()
        given: collections.Counter = collections.Counter()
        self.rewind()
        for packet in itertools.islice(self.packets(), key + 1 + 2 * LEADING):
            with contextlib.suppress(av.error.FFmpegError):
                frames = self.stream.codec_context.decode(packet if packet.size else None)
                given.update(frame.pts for frame in frames if frame.pts is not None and not frame.is_corrupt)
        if not given[first[key]]:
            return set()  # the keyframe itself is damaged
        given[first[key]] -= 1
        after = itertools.takewhile(lambda place: not given[first[place]], range(key + 1, len(first)))
        before = () if TIMED & set(self.container.format.name.split(",")) else range(key)  # MP4 begins with a keyframe
        return {place for place in before if not given[first[place]]} | set(after)

    def number_of(self, pts: int) -> float:
        """Return the number of the frame shown at `pts`.

        A frame that is not shown (before the start of an edit list) has a place between two numbers.
        """
        if self.times is not None:
            place = int(np.searchsorted(self.times, pts))
            return place if place < self.length and self.times[place] == pts else place - 0.5
        exact = (pts - self.origin) / self.step
        number = round(exact)
        if abs(exact - number) > 0.2:
            raise IrregularTimes
        return number

    def seek(self, index: int):
        """Return an iterator of packets that begins with a keyframe at or before a frame."""
        time, back = self.origin + round(index * self.step) if self.times is None else int(self.times[index]), 0
        while True:
            if time - back > self.origin:
                self.container.seek(time - back, stream=self.stream, backward=True)
            else:
                self.rewind()
            packets = self.packets()
            head = next(packets, None)
            if head is None:
                return iter(())
            if time - back <= self.origin or (head.is_keyframe and head.pts is not None
                                              and self.number_of(head.pts) <= index):
                return itertools.chain([head], packets)
            # the seek led beyond the frame, as some containers seek by decoding order: go further back
            back = 2 * back or round(self.step)

    def close(self) -> None:
        """Close the file."""
        self.container.close()
