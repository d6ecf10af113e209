"""From packets to frames: no more is decoded than wanted frames need, and damaged ones are told from good ones.

A frame counts as damaged if it can't be decoded, or was decoded after damage and before the next keyframe, because it
may refer to what was damaged. Decoders show such a frame grey, torn, or as a repetition of another, often without a
word.
"""
import collections
import heapq
from collections.abc import Iterator

import av

from egokit.data.video.container import decoding_reason
from egokit.data.video.media_file import IrregularTimes

DELAY = 16  # a frame may refer to one that is shown up to 16 frames later, and is damaged if that one is
ZEROS = bytes(16)  # in what these codecs write there is no such run: it is a hole in a disk, or half a download
NEVER_ZEROS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"}
SKIPPING = {"h264", "hevc"}  # decoders that can skip a frame when its packet arrives
LEFT_OUT = "the decoder leaves it out"
JOINT = 8  # packets before a joint of streams that may be called incomplete
HEALED = 300  # frames after which a tolerant reader trusts a decoder again, where no keyframe comes (intra refresh)
HIDING = {"vp8"}  # codecs with packets that are never shown


class Damage:
    """The frames that damage concerns, found while packets are sent to the decoder in decoding order.

    Args:
        healed: frames after damage from which on the decoder is trusted again; by default only from a keyframe on.

    Attributes:
        numbers: the frames found so far; it may be shared, and only grows.
        reasons: of each frame that is damaged itself, what was noticed.
    """

    def __init__(self, numbers: set[int], healed: float = float("inf")):
        self.numbers, self.reasons, self.healed, self.since = numbers, {}, healed, 0
        # (number, stretch from one keyframe to the next, number of its keyframe)
        self.sent: collections.deque = collections.deque(maxlen=1000)
        self.due: list[int] = []  # frames that were sent to be shown, and are not shown yet: a heap
        self.stretch, self.keyframe, self.broken = 0, float("inf"), -1
        self.incomplete: list[float] = []  # packets since one of which the container says that parts are missing
        self.judged: set[float] = set()    # all such packets

    def send(self, number: float, packet, skipped: bool) -> None:
        """Note a packet that is about to be decoded; one that is skipped need not give a frame."""
        if packet.is_keyframe:
            self.stretch, self.keyframe = self.stretch + 1, number
            self.incomplete = []  # where streams were joined, the last packets before are said to lack parts, and don't
        elif not self.stretch:
            self.broken = 0  # decoding begins between keyframes
        if packet.is_corrupt:
            self.judged.add(number)
        if packet.is_corrupt or self.incomplete:
            self.incomplete.append(number)
        if len(self.incomplete) > JOINT:
            self.found(self.incomplete[0], "parts of it are missing")
            self.incomplete = []
        self.since += 1
        self.sent.append((number, self.stretch, self.keyframe))
        if self.broken >= 0 and self._is_concerned(number, self.stretch):
            self._add(number)
        elif (not skipped and number == int(number) and number not in self.due
              and not (self.stretch == 1 and number < self.keyframe)):
            heapq.heappush(self.due, int(number))

    def show(self, number: float) -> None:
        """Note a frame that the decoder gives; what was due before it is left out."""
        while self.due and self.due[0] < number:
            self.found(heapq.heappop(self.due), LEFT_OUT)
        if self.due and self.due[0] == number:
            heapq.heappop(self.due)

    def found(self, number: float, reason: str) -> None:
        """Note that this frame is damaged, and with it what was sent after it."""
        self.since = 0
        self.reasons.setdefault(number, reason)
        self._add(number)
        later = leading = False
        for sent, stretch, keyframe in list(self.sent):
            if sent == number:
                # a leading picture that refers to what is lost: only others of its kind refer to it
                later, leading = True, number < keyframe and reason == LEFT_OUT
                if not leading:
                    self.broken = max(self.broken, stretch)
            if later and (sent < keyframe if leading else self._is_concerned(sent, stretch)):
                self._add(sent)

    def _is_concerned(self, number: float, stretch: int) -> bool:
        # frames shown before a keyframe and sent after it may refer to the stretch before
        leading = stretch == self.broken + 1 and number < self.keyframe
        return leading or (stretch == self.broken and self.since <= self.healed)

    def _add(self, number: float) -> None:
        if number == int(number):  # others are not shown: they lie before the start of an edit list
            self.numbers.add(int(number))


def is_whole(data: bytes, codec: str, extradata: bytes | None) -> bool:
    """Whether an H.264 or HEVC packet consists of whole units; a decoder skips others without a word.

    A unit's header has no forbidden bit, and a type (H.264) or temporal layer (HEVC) that exists.

    Args:
        extradata: the stream's; in MP4 and Matroska it says how the units' lengths are written.
    """
    header, bits = (1, 7) if codec == "hevc" else (0, 31)
    if not extradata or extradata[0] != 1:  # units with start codes
        begin = 4 if data[:4] == b"\0\0\0\1" else 3
        return len(data) > begin + 1 and data[begin - 3:begin] == b"\0\0\1" and data[begin] < 128 \
            and bool(data[begin + header] & bits)
    size, at, end = (extradata[21 if codec == "hevc" else 4] & 3) + 1, 0, len(data)
    while at + size + 1 < end:
        begin = at + size
        if data[begin] > 127 or not data[begin + header] & bits:
            return False
        at = begin + int.from_bytes(data[at:begin], "big")
    return at == end


def decode(reader, wanted: list[int], leap: bool) -> Iterator[tuple[int, object]]:
    """Yield (number, PyAV's frame) for each of `wanted`, which is ascending; None in place of a damaged frame.

    Decoding begins at the keyframe before the first of them.

    Args:
        reader: a MediaFile with `damaged_numbers`.
        leap: stop where a seek is the shorter way to the remaining frames; the caller requests these again.

    Raises:
        IrregularTimes: the file's header is wrong about its frames' times.
    """
    unsent, waiting, latest = set(wanted), collections.deque(wanted), float("-inf")
    packets = reader.seek(wanted[0])  # may make another decoder
    damage = Damage(reader.damaged_numbers, HEALED if reader.tolerant else float("inf"))
    reader.reasons, context = damage.reasons, reader.stream.codec_context
    name, extradata = context.name, context.extradata
    skipping, hiding, never_zeros = name in SKIPPING, name in HIDING, name in NEVER_ZEROS
    held: collections.deque = collections.deque()  # decoded frames, until no later damage can concern them

    def feed(packet) -> None:
        nonlocal latest
        try:
            frames = context.decode(packet)
        except (av.error.FFmpegError, OSError) as error:
            if packet is not None:
                damage.found(number, decoding_reason(error))
            return
        for frame in frames:
            shown = reader.number_of(frame.pts) if frame.pts is not None else latest
            if (frame.is_corrupt and shown not in damage.judged) or shown <= latest:
                damage.found(shown, "damaged" if frame.is_corrupt else "its time is not after the frame's before")
            if shown > latest:
                latest = shown
                damage.show(shown)
                held.append((shown, frame))

    def release(keep: int) -> Iterator[tuple[int, object]]:
        while len(held) > keep:
            number, frame = held.popleft()
            while waiting and waiting[0] < number and waiting[0] not in unsent:
                yield give(None)
            if waiting and waiting[0] == number:
                yield give(None if number in damage.numbers else frame)

    def give(frame) -> tuple[int, object]:
        number = waiting.popleft()
        if frame is None:
            damage.numbers.add(number)
        return number, frame

    for packet in packets:
        if not packet.size:
            break
        if packet.pts is None:  # never shown
            continue
        number = reader.number_of(packet.pts)
        if leap and packet.is_keyframe and unsent and len(unsent) < len(wanted) and min(unsent) >= number:
            break
        # a frame that no other refers to is decoded only if wanted; the decoder's state doesn't depend on it
        skipped = skipping and number not in unsent and is_whole(bytes(packet), name, extradata)
        if skipping:
            context.skip_frame = "NONREF" if skipped else "DEFAULT"
        damage.send(number, packet, skipped or hiding)
        if never_zeros and not skipped and ZEROS in bytes(packet):
            damage.found(number, "zeros stand in place of a part of it")
        unsent.discard(number)
        feed(packet)
        yield from release(DELAY)
        if not unsent and not damage.incomplete:
            break
    context.skip_frame = "DEFAULT"
    feed(None)
    damage.show(float("inf"))
    if damage.incomplete:  # the file ends with it
        damage.found(damage.incomplete[0], "parts of it are missing")
    yield from release(0)
    while waiting and not (leap and waiting[0] in unsent and waiting[0] != wanted[0]):
        if waiting[0] in unsent and reader.times is None:
            raise IrregularTimes  # there is no frame at its time
        yield give(None)
