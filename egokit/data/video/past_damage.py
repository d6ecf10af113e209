"""Reading what there is: past damage, with the frames counted that it concerns.

A frame counts as damaged if it can't be decoded, or was decoded after damage and before the next keyframe, because it
may refer to what was damaged. Decoders show such a frame grey, torn, or as a repetition of another.
"""
import collections
from collections.abc import Iterator

import av
import numpy as np

from egokit.data.video.timeline import VideoError, advice

DELAY = 16  # a frame may refer to one that is shown up to 16 frames later, and is damaged if that one is
SKIPPING = {"h264", "hevc"}  # decoders that can skip a frame when its packet arrives


class Damage:
    """The frames that damage concerns, found while packets are sent to the decoder in decoding order."""

    def __init__(self, damaged_numbers: set[int]):
        self.numbers = damaged_numbers  # grows
        self.sent: collections.deque = collections.deque(maxlen=1000)  # (number, stretch from one keyframe to the next)
        self.stretch, self.keyframe, self.broken = 0, float("inf"), -1

    def send(self, number: float, is_keyframe: bool) -> None:
        """Note a packet that is about to be decoded."""
        if is_keyframe:
            self.stretch, self.keyframe = self.stretch + 1, number
        elif not self.stretch:
            self.broken = 0  # the file begins between keyframes
        self.sent.append((number, self.stretch))
        if self._is_concerned(number, self.stretch):
            self.numbers.add(number)

    def _is_concerned(self, number: float, stretch: int) -> bool:
        # frames shown before a keyframe and sent after it may refer to the stretch before
        return stretch == self.broken or (stretch == self.broken + 1 and number < self.keyframe)

    def found(self, number: float) -> None:
        """Note that this frame is damaged, and with it what was sent after it."""
        self.numbers.add(number)
        later = False
        for sent, stretch in list(self.sent):
            if sent == number:
                later, self.broken = True, max(self.broken, stretch)
            if later and self._is_concerned(sent, stretch):
                self.numbers.add(sent)


def readable(reader, wanted: list[int]) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield (number, picture) for each of `wanted`, which is ascending; None in place of a damaged picture."""
    wanted_numbers, unsent, waiting = frozenset(wanted), set(wanted), collections.deque(wanted)
    packets, damage, latest = reader.seek(wanted[0]), Damage(reader.damaged_numbers), float("-inf")
    context = reader.stream.codec_context
    held: collections.deque = collections.deque()  # decoded frames, until no later damage can concern them

    def decode(packet) -> None:
        nonlocal latest
        try:
            frames = context.decode(packet)
        except (av.error.FFmpegError, OSError):
            if packet is not None and packet.pts is not None:
                damage.found(reader.number_of(packet.pts))
            return
        for frame in frames:
            number = reader.number_of(frame.pts) if frame.pts is not None else latest
            if frame.is_corrupt or number <= latest:
                damage.found(number)
            if number > latest:
                latest = number
                held.append((number, reader.rgb(frame).copy() if number in wanted_numbers else None))

    def release(keep: int) -> Iterator[tuple[int, np.ndarray | None]]:
        while len(held) > keep:
            number, pixels = held.popleft()
            while waiting and waiting[0] < number:  # never decoded
                damage.numbers.add(waiting[0])
                yield waiting.popleft(), None
            if waiting and waiting[0] == number:
                yield waiting.popleft(), None if number in damage.numbers else pixels

    for packet in packets:
        if packet.pts is None:
            break
        number = reader.number_of(packet.pts)
        if packet.is_keyframe and not unsent and number > wanted[-1]:
            break
        damage.send(number, packet.is_keyframe)
        # a frame that no other refers to is decoded only if wanted; the decoder's state doesn't depend on it
        if context.name in SKIPPING:
            context.skip_frame = "DEFAULT" if number in unsent else "NONREF"
        unsent.discard(number)
        decode(packet)
        yield from release(DELAY)
        if not unsent and latest >= wanted[-1] + DELAY:
            break
    context.skip_frame = "DEFAULT"
    decode(None)
    yield from release(0)
    for number in waiting:
        damage.numbers.add(number)
        yield number, None


def filled(reader, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, picture) for each of `wanted`; a damaged one is given as the readable one before it.

    Raises:
        VideoError: none of them can be read.
    """
    latest, before = None, []
    for number, pixels in readable(reader, wanted):
        latest = latest if pixels is None else pixels
        if latest is None:
            before.append(number)
            continue
        for earlier in before:
            yield earlier, latest
        before = []
        yield number, latest
    if latest is None and wanted:
        raise VideoError(f"{reader.path}: nothing can be read between {float(reader.time_of(wanted[0])):.2f} and "
                         f"{float(reader.time_of(wanted[-1])):.2f} s; {advice(reader.path)}")
