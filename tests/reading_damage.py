"""Damaged files of the reading campaign."""
from pathlib import Path

import av
from reading_studio import FRAMES, GOP, Case, Studio


def packets(path: Path) -> list[tuple[bool, int, int, float]]:
    """Return (keyframe, place in the file, bytes) of every video packet, in the file's order."""
    data, rows, end = path.read_bytes(), [], 0
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                at = data.find(bytes(packet)[:64], end)     # the position that is stated may be of what contains it
                at = end if at < 0 else at
                rows.append((packet.is_keyframe, at, packet.size))
                end = at + packet.size
    return rows


def hurt(path: Path, source: Path, how: str) -> None:
    """Write a damaged copy of a file whose keyframes are every GOP frames."""
    data, rows = bytearray(source.read_bytes()), packets(source)
    at = [place for _, place, _ in rows]

    def zero(number: int, share: float = 1.0) -> None:
        start, size = rows[number][1], rows[number][2]
        data[start + 4:start + int(size * share)] = bytes(int(size * share) - 4)

    key = next(i for i, row in enumerate(rows) if i > GOP + 5 and row[0])
    late = min(range(key + 3, key + 9), key=lambda i: rows[i][2])       # the smallest is one that nothing refers to
    if how == "a packet of zeros":
        zero(key + 7)
    elif how == "a keyframe of zeros":
        zero(key)
    elif how == "a B-frame of zeros":
        zero(late)
    elif how == "the first packet of zeros":
        zero(0)
    elif how == "the last packet of zeros":
        zero(len(rows) - 1)
    elif how == "several glitches":
        for number in (7, key + 2, key + GOP + 9):
            zero(number)
    elif how == "half a packet of zeros":
        start, size = rows[key + 4][1:3]
        data[start + size // 2:start + size] = bytes(size - size // 2)
    elif how == "flipped bytes":
        start, size = rows[key + 5][1:3]
        for place in range(start + 4 + size // 4, start + size):
            data[place] ^= 0xA5
    elif how == "a hole":
        del data[at[key + 3]:at[key + 9]]
    elif how == "a hole of whole packets":
        start = at[key + 3] // 188 * 188
        del data[start:start + 188 * 12]
    elif how == "the tail missing":
        del data[at[len(rows) * 2 // 3] + 5:]
    elif how == "the start missing":
        del data[:at[5] // 188 * 188]
    path.write_bytes(data)


def damaged(studio: Studio):
    """Yield damaged files."""
    one = GOP + 6                               # what a damaged packet may cost: its GOP, and frames around it
    zeros = {"a packet of zeros": one, "a keyframe of zeros": one + 4, "a B-frame of zeros": one,
             "several glitches": 3 * one, "half a packet of zeros": one, "the first packet of zeros": one,
             "the last packet of zeros": one}
    ways = {(".mp4", "h264"): list(zeros), (".mkv", "h264 open GOP"): list(zeros)[:4],
            (".mp4", "hevc"): list(zeros)[:4], (".webm", "vp9"): list(zeros)[:2],
            (".avi", "mpeg4 no B"): list(zeros)[:2],
            (".mkv", "av1"): ["a packet of zeros"], (".mov", "mpeg4"): ["a packet of zeros", "several glitches"],
            (".avi", "mjpeg"): ["several glitches"], (".mp4", "h264 no B"): ["several glitches"],
            (".mkv", "vp8"): ["a keyframe of zeros"], (".webm", "vp8"): ["a packet of zeros"]}
    for (end, codec), hows in ways.items():
        for how in hows:
            yield _hurt(studio, "damage: packets of zeros", codec, end, how, zeros[how])
    for end, codec, how in ((".mp4", "h264", "flipped bytes"), (".mkv", "h264 open GOP", "flipped bytes"),
                            (".ts", "h264", "several glitches"), (".mp4", "hevc", "flipped bytes")):
        yield _hurt(studio, "damage: bytes that are wrong, but valid", codec, end, how, zeros.get(how, one),
                    silent=True)
    for end, codec, how in ((".ts", "h264", "a hole of whole packets"), (".ts", "mpeg2", "a hole of whole packets"),
                            (".ts", "h264", "a hole"), (".mkv", "h264", "a hole"), (".mpg", "mpeg2", "a hole")):
        yield _hurt(studio, "damage: a hole", codec, end, how, 2 * GOP, torn=end == ".ts")
    for end, codec in ((".ts", "h264"), (".mkv", "h264"), (".webm", "vp9"), (".flv", "h264"), (".avi", "mpeg4 no B"),
                       (".mpg", "mpeg2")):
        yield _hurt(studio, "damage: the tail missing", codec, end, "the tail missing", FRAMES // 3 + 8)
    for end, codec in ((".mp4", "h264"), (".mov", "hevc"), (".mp4", "vp9")):
        yield _hurt(studio, "damage: an mp4's tail missing, its table first", codec, end, "the tail missing",
                    FRAMES // 3 + 8, strict="cut off", more="-movflags faststart")
    for end, codec in ((".mp4", "h264"), (".mov", "hevc")):
        yield _hurt(studio, "damage: an mp4's tail and table missing", codec, end, "the tail missing", 0,
                    refused="opened")
    for codec in ("h264", "h264 open GOP", "hevc", "mpeg2"):
        yield _hurt(studio, "damage: begins between keyframes", codec, ".ts", "the start missing", GOP + 8,
                    shifted=True)


def _hurt(studio: Studio, kind: str, codec: str, end: str, how: str, lost: int, more: str = "", refused: str = "",
          **about) -> Case:
    """Return a case of a damaged encoding."""
    def original() -> Path:
        return studio.cached(codec, end, more=more) if more else studio.cached(codec, end)
    return Case(kind, f"{codec}, {how}{', table first' * bool(more)}{end}", lambda path: hurt(path, original(), how),
                refused=refused, lost=lost, original=None if refused else original, **about)
