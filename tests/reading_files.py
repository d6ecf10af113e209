"""Small video files of every kind, made with ffmpeg, for the reading campaign (reading_campaign.py).

A picture carries its number: eight black or white fields below a coloured pattern that has no symmetry. Kinds are the
rows of the table in docs/reading.md.
"""
import os
import shlex
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import damage
import numpy as np

from egokit.prep.video import ffmpeg

WIDTH, HEIGHT, FRAMES, GOP = 96, 72, 90, 20
BITS, FIELD = 8, 12

X264 = f"-c:v libx264 -preset ultrafast -crf 20 -g {GOP} -keyint_min {GOP} -sc_threshold 0 -threads 1 -pix_fmt yuv420p"
X265 = ("-c:v libx265 -preset ultrafast -tag:v hvc1 "
        f"-x265-params log-level=none:keyint={GOP}:min-keyint={GOP}:bframes=3:pools=1")
CODECS = {
    "h264": f"{X264} -bf 3 -b_strategy 0",
    "h264 open GOP": f"{X264} -bf 3 -b_strategy 0 -x264-params open-gop=1:b-pyramid=normal",
    "h264 no B": f"{X264} -bf 0",
    "h264 10 bit": f"{X264} -pix_fmt yuv420p10le -bf 2",
    "h264 4:4:4": f"{X264} -pix_fmt yuv444p -bf 2",
    "h264 tagged": f"{X264} -bf 3 -b_strategy 0 -color_range tv -colorspace smpte170m",
    "h264 full range": f"{X264} -bf 2 -vf scale=out_range=full -pix_fmt yuvj420p -color_range pc -colorspace smpte170m",
    "h264 BT.709": f"{X264} -bf 2 -vf scale=out_color_matrix=bt709 -color_range tv -colorspace bt709 "
                   "-color_primaries bt709 -color_trc bt709",
    "h264 RGB": f"-c:v libx264rgb -preset ultrafast -crf 10 -g {GOP} -pix_fmt rgb24",
    "h264 interlaced": f"{X264} -flags +ildct+ilme -bf 2",
    "hevc": f"{X265} -pix_fmt yuv420p",
    "hevc 10 bit": f"{X265} -pix_fmt yuv420p10le",
    "mpeg4": f"-c:v mpeg4 -q:v 3 -bf 2 -g {GOP} -pix_fmt yuv420p",
    "mpeg4 no B": f"-c:v mpeg4 -q:v 3 -g {GOP} -pix_fmt yuv420p",
    "msmpeg4": f"-c:v msmpeg4 -q:v 3 -g {GOP} -pix_fmt yuv420p",
    "mpeg1": f"-c:v mpeg1video -q:v 3 -bf 2 -g {GOP} -pix_fmt yuv420p",
    "mpeg2": f"-c:v mpeg2video -q:v 3 -bf 2 -g {GOP} -pix_fmt yuv420p",
    "vp8": f"-c:v libvpx -deadline realtime -cpu-used 8 -b:v 2M -g {GOP} -auto-alt-ref 1 -lag-in-frames 10",
    "vp9": f"-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 2M -g {GOP} -pix_fmt yuv420p",
    "vp9 10 bit": f"-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 2M -g {GOP} -pix_fmt yuv420p10le",
    "av1": f"-c:v libsvtav1 -preset 12 -svtav1-params keyint={GOP}:lp=1 -pix_fmt yuv420p",
    "mjpeg": "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p",
    "prores": "-c:v prores_ks -profile:v 1 -pix_fmt yuv422p10le",
    "dnxhd": "-c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p -vf scale=256:144",
    "wmv1": f"-c:v wmv1 -q:v 3 -g {GOP} -pix_fmt yuv420p",
    "wmv2": f"-c:v wmv2 -q:v 3 -g {GOP} -pix_fmt yuv420p",
    "theora": f"-c:v libtheora -q:v 8 -g {GOP} -pix_fmt yuv420p",
    "flv1": f"-c:v flv -q:v 3 -g {GOP} -pix_fmt yuv420p",
    "ffv1": "-c:v ffv1 -pix_fmt yuv420p",
    "huffyuv": "-c:v huffyuv -pix_fmt yuv422p",
    "png": "-c:v png -pix_fmt rgb24",
    "raw pictures": "-c:v rawvideo -pix_fmt yuv420p",
    "gif": "-c:v gif",
    "vp9 hidden frames": f"-c:v libvpx-vp9 -deadline good -cpu-used 8 -b:v 2M -g {GOP} -auto-alt-ref 6 "
                         "-lag-in-frames 25 -pix_fmt yuv420p -threads 1",
    "xvid": f"-c:v libxvid -q:v 3 -bf 2 -g {GOP}",
    "mpeg2 interlaced": f"-c:v mpeg2video -q:v 3 -bf 2 -g {GOP} -pix_fmt yuv420p -flags +ildct+ilme",
    "h264 4:2:2 10 bit": f"{X264} -pix_fmt yuv422p10le",
    "hevc BT.2020": f"{X265}:colormatrix=bt2020nc:transfer=smpte2084:colorprim=bt2020 -pix_fmt yuv420p10le "
                    "-vf scale=out_color_matrix=bt2020",
    "vp9 4:4:4": f"-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 2M -g {GOP} -pix_fmt yuv444p",
    "vp9 alpha": f"-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 2M -g {GOP} -pix_fmt yuva420p",
    "prores 4444": "-c:v prores_ks -profile:v 4 -pix_fmt yuva444p10le",
    "png alpha": "-c:v png -pix_fmt rgba",
    "ffv1 grey": "-c:v ffv1 -pix_fmt gray",
    "ffv1 RGB 10 bit": "-c:v ffv1 -pix_fmt gbrp10le",
    "ffv1 16 bit": "-c:v ffv1 -pix_fmt yuv420p16le",
    "qtrle": "-c:v qtrle -pix_fmt rgb24",
    "utvideo": "-c:v utvideo -pix_fmt yuv422p",
    "raw RGB": "-c:v rawvideo -pix_fmt bgr24",
    "cinepak": "-c:v cinepak",
}
COLOURS = {".mkv": ["h264 4:2:2 10 bit", "ffv1 grey", "ffv1 RGB 10 bit", "ffv1 16 bit", "vp9 4:4:4", "utvideo"],
           ".mp4": ["hevc BT.2020", "vp9 hidden frames", "h264 tagged"], ".webm": ["vp9 alpha", "vp9 hidden frames"],
           ".mov": ["prores 4444", "png alpha", "qtrle", "h264 full range"], ".avi": ["xvid", "raw RGB", "cinepak"],
           ".ts": ["mpeg2 interlaced", "h264 interlaced"]}
FRAGMENTS = "-movflags frag_keyframe+empty_moov+default_base_moof"
# file name's end -> codecs, each with 30 frames per second
CONTAINERS = {
    ".mp4": ["h264", "h264 open GOP", "h264 no B", "h264 interlaced", "h264 4:4:4", "h264 BT.709", "hevc", "mpeg4",
             "av1", "vp9", "mjpeg", "mpeg2"],
    ".mov": ["h264", "hevc 10 bit", "prores", "mjpeg", "dnxhd", "png"],
    ".m4v": ["h264", "mpeg4"],
    ".mkv": ["h264", "h264 open GOP", "h264 10 bit", "h264 full range", "h264 RGB", "hevc", "mpeg4", "mpeg2", "vp8",
             "vp9 10 bit", "av1", "ffv1", "theora", "raw pictures"],
    ".webm": ["vp8", "vp9", "av1"],
    ".avi": ["h264", "h264 no B", "mpeg4", "mpeg4 no B", "msmpeg4", "mjpeg", "huffyuv", "raw pictures"],
    ".ts": ["h264", "h264 open GOP", "hevc", "mpeg2"],
    ".mts": ["h264"],
    ".mpg": ["mpeg1", "mpeg2"],
    ".vob": ["mpeg2"],
    ".flv": ["flv1", "h264"],
    ".wmv": ["wmv1", "wmv2"],
    ".asf": ["msmpeg4"],
    ".ogv": ["theora"],
    ".3gp": ["h264", "mpeg4 no B"],
    ".mxf": ["mpeg2"],
    ".nut": ["h264", "ffv1"],
    ".h264": ["h264", "h264 no B"],
    ".hevc": ["hevc"],
    ".mjpeg": ["mjpeg"],
    ".m2v": ["mpeg2"],
    ".ivf": ["vp9"],
    ".gif": ["gif"],
}
KINDS = {"mp4, mov, m4v, 3gp": (".mp4", ".mov", ".m4v", ".3gp"), "mkv, webm": (".mkv", ".webm"), "avi": (".avi",),
         "ts, mts, mpg, vob": (".ts", ".mts", ".mpg", ".vob"), "flv": (".flv",),
         "wmv, asf, ogv, mxf, nut, ivf, gif": (".wmv", ".asf", ".ogv", ".mxf", ".nut", ".ivf", ".gif"),
         "raw streams: h264, hevc, mjpeg, m2v": (".h264", ".hevc", ".mjpeg", ".m2v")}
RATES = ("30000/1001", "25", "60000/1001", "12", "24000/1001")
RATE_FILES = {".mp4": "h264", ".mkv": "h264", ".ts": "h264", ".avi": "mpeg4 no B", ".webm": "vp8", ".mpg": "mpeg2"}
# seconds at which frame N is shown
TIMES = {
    "a gap in the middle": "N/30+gt(N,44)*4",
    "a gap at the start": "N/30+gt(N,0)*3",
    "a gap at the end": "N/30+gte(N,89)*3",
    "two gaps": "N/30+gt(N,20)*1.5+gt(N,60)*5.25",
    "bursts": "N/30+floor(N/15)*0.7",
    "a screen recording": "N/60+floor(N/7)*0.4+gt(N,50)*6.1",
    "a phone's jitter": "N/30+0.009*sin(N*7)",
    "two rates": "if(lt(N,45),N/30,1.5+(N-45)/10)",
    "a rate that drifts": "N/30+N*N/4000",
}
VARIABLE = "variable rate: gaps, bursts, screen recordings, jitter, two rates, a drift"
TIMED = {".mp4": ("h264", ""), ".mkv": ("h264 open GOP", ""), ".webm": ("vp9", ""), ".ts": ("h264", ""),
         " in fragments.mp4": ("h264 no B", FRAGMENTS), ".flv": ("flv1", ""), ".mov": ("hevc", "")}
SIZES = "in mid-file, another size or shape"
OTHERWISE = "in mid-file, another pixel format, aspect, rate, profile, colour range or matrix"
SOUND = "-f lavfi -i sine=frequency=300:sample_rate=16000:duration=4"
# rows (a, b), (c, d) of a display matrix
ORIENTATIONS = {"upright": (1, 0, 0, 1), "a quarter turn": (0, 1, -1, 0), "half a turn": (-1, 0, 0, -1),
                "three quarter turns": (0, -1, 1, 0), "mirrored": (-1, 0, 0, 1), "upside down": (1, 0, 0, -1),
                "mirrored and turned": (0, 1, 1, 0), "mirrored and turned back": (0, -1, -1, 0)}
PIXELS = ("4/3", "16/11", "2/1", "1/2", "10/11")


@dataclass(frozen=True)
class Case:
    """A file to be made and read.

    Attributes:
        kind: the row of the table.
        name: its file name.
        make: writes the file to a path.
        film: which of its video streams players show.
        refused: a word of the error that is right for it, if nothing in it can be read.
        original: for a damaged file, returns the path of the same file before the damage.
        lost: how many frames the damage may cost, at most.
        shifted: whether the damage moves the file's start.
        silent: whether the damage is valid data, so that no decoder notices.
        joined: whether the file's clock restarts, so that only ffmpeg's own clock goes on.
    """
    kind: str
    name: str
    make: Callable[[Path], None]
    film: int = 0
    refused: str = ""
    original: Callable[[], Path] | None = None
    lost: int = 0
    shifted: bool = False
    silent: bool = False
    joined: bool = False


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return picture `number`, uint8 (height, width, 3): a coloured pattern above eight fields, its digits."""
    y, x = np.mgrid[:HEIGHT - FIELD, :WIDTH]
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    out[:-FIELD] = np.stack([40 + 150 * x / WIDTH, 60 + 130 * y / HEIGHT, 200 - 120 * (x + y) / (WIDTH + HEIGHT)], -1)
    out[4:22, 6:30] = (220, 40, 40)
    out[30:42, 60:84] = (30, 180, 60)
    left = number * 2 % (WIDTH - 12)
    out[44:56, left:left + 12] = (235, 235, 90)
    for bit in range(BITS):
        out[-FIELD:, bit * FIELD:(bit + 1) * FIELD] = 235 * (number >> bit & 1)
    return out


def number_in(pixels: np.ndarray) -> int:
    """Return the number in a picture of the original size; -1 if its fields are neither black nor white."""
    fields = pixels[-FIELD + 3:-3].reshape(FIELD - 6, BITS, FIELD, 3)[:, :, 3:-3].mean((0, 2, 3))
    if ((fields > 70) & (fields < 170)).any():
        return -1
    return int(((fields > 120) << np.arange(BITS)).sum())


class Studio:
    """Makes files in a folder; encodings that several files need are made once."""

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, threading.Lock()
        (folder / "base.rgb").write_bytes(b"".join(picture(number).tobytes() for number in range(FRAMES)))
        (folder / "other.rgb").write_bytes(b"".join(picture(number)[::-1].tobytes() for number in range(FRAMES)))

    def ffmpeg(self, *arguments) -> None:
        """Run ffmpeg; strings are split as a shell does, paths are not."""
        words = [word for part in arguments for word in (shlex.split(part) if isinstance(part, str) else [str(part)])]
        subprocess.run([ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *words], check=True,
                       stderr=subprocess.PIPE)

    def source(self, rate: str = "30", name: str = "base") -> str:
        """Return the options that read the pictures."""
        return (f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -framerate {rate} "
                f"-i {shlex.quote(str(self.folder / name))}.rgb")

    def encode(self, path: Path, codec: str, rate: str = "30", times: str = "", more: str = "", frames: int = FRAMES,
               source: str = "base") -> None:
        """Encode the pictures: at a constant rate, or at `times`, an expression of the frame's number N."""
        words = shlex.split(f"{CODECS[codec]} {more}")
        filters = [f"settb=1/90000,setpts='round(({times})*90000)'"] if times else []
        while "-vf" in words:                   # ffmpeg would take the last one alone
            at = words.index("-vf")
            filters += words[at + 1:at + 2]
            del words[at:at + 2]
        chain = ["-vf", ",".join(filters)] if filters else []
        self.ffmpeg(self.source(rate, source), f"-frames:v {frames}", shlex.join(words + chain),
                    "-fps_mode passthrough -enc_time_base 1:10000" if times else "", path)

    def cached(self, codec: str, end: str, **options) -> Path:
        """Return the path of an encoding, which is made at its first use."""
        label = "".join(c if c.isalnum() else "_" for c in f"{codec} {sorted(options.items())}")
        path = self.folder / f"{label}{end}"
        if not path.exists():
            part = self.folder / f"{threading.get_ident()}{label[:100]}{end}"
            self.encode(part, codec, **options)
            os.replace(part, path)
        return path

    def copy(self, path: Path, source: Path, before: str = "", after: str = "") -> None:
        """Copy the packets of a file into another."""
        self.ffmpeg(before, "-i", source, "-map 0 -c copy", after, path)


def set_matrix(path: Path, turn: tuple[int, int, int, int]) -> None:
    """Overwrite the display matrix of an MP4's or MOV's first track."""
    data, (a, b, c, d) = bytearray(path.read_bytes()), turn
    at = damage.where(bytes(data), "moov", "trak", "tkhd")[0] + 8 + 40
    data[at:at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def packets(path: Path) -> list[tuple[bool, int, int, float]]:
    """Return (keyframe, place in the file, bytes) of every video packet, in the file's order."""
    data, rows, after = path.read_bytes(), [], 0
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                at = data.find(bytes(packet)[:64], after)     # the position that is stated may be of what contains it
                after = after + packet.size if at < 0 else at
                rows.append((packet.is_keyframe, after, packet.size))
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


def cases(studio: Studio) -> list[Case]:
    """Return every file of the campaign; nothing is made yet."""
    made = [*_containers(studio), *_rates(studio), *_orientations(studio), *_starts(studio), *_streams(studio),
            *_changes(studio), *_rare(studio), *_damaged(studio)]
    assert len({case.name for case in made}) == len(made)
    return made


def _containers(studio: Studio):
    for end, codecs in CONTAINERS.items():
        for codec in codecs:
            yield Case(next(kind for kind, ends in KINDS.items() if end in ends), f"{codec.replace(':', '')}{end}",
                       lambda path, codec=codec: studio.encode(path, codec, frames=60))
    for codec in ("h264", "h264 open GOP", "hevc", "av1"):
        yield Case("mp4 in fragments, or of other writers", f"{codec} in fragments.mp4",
                   lambda path, codec=codec: studio.encode(path, codec, more=FRAGMENTS, frames=60))


def _rates(studio: Studio):
    for rate in RATES:
        for end, codec in RATE_FILES.items():
            if end != ".mpg" or rate != "12":   # MPEG-2 has no such rate
                yield Case("constant rates", f"{float(_fraction(rate)):.2f} a second{end}",
                           lambda path, codec=codec, rate=rate: studio.encode(path, codec, rate, frames=60))
    for name, times in TIMES.items():
        for end, (codec, more) in TIMED.items():
            yield Case(VARIABLE, f"{name}{end}",
                       lambda path, codec=codec, times=times, more=more: studio.encode(path, codec, "30", times, more))


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return int(above) / int(below or 1)


def _orientations(studio: Studio):
    def turned(path, codec, turn, **options):
        studio.encode(path, codec, frames=40, **options)
        set_matrix(path, turn)
    for name, turn in ORIENTATIONS.items():
        for end, codec in ((".mp4", "h264"), (".mov", "hevc")):
            yield Case("eight orientations", f"{name}{end}",
                       lambda path, codec=codec, turn=turn: turned(path, codec, turn))
    for flag in ("-display_rotation 90", "-display_rotation 270", "-display_rotation 180", "-display_hflip"):
        yield Case("eight orientations", f"{flag[1:]}.mkv", lambda path, flag=flag: studio.copy(
            path, studio.cached("h264", ".mp4", frames=40), flag))
    for pixels in PIXELS:
        for end, codec in ((".mp4", "h264"), (".mkv", "vp9"), (".ts", "h264")):
            yield Case("pixels that are not square", f"pixels of {pixels.replace('/', ' by ')}{end}",
                       lambda path, codec=codec, pixels=pixels: studio.encode(
                           path, codec, frames=40, more=f"-vf setsar={pixels}"))
    for name in ("a quarter turn", "mirrored and turned"):
        yield Case("pixels that are not square", f"{name}, pixels of 2 by 1.mp4",
                   lambda path, name=name: turned(path, "h264", ORIENTATIONS[name], more="-vf setsar=2/1"))


def _starts(studio: Studio):
    def sound(path, codec, before="", after="", first=0.0, audio="aac"):
        film = studio.cached(codec, ".mp4" if codec.startswith("h264") else ".mkv")
        studio.ffmpeg(SOUND, before, f"-itsoffset {first}", "-i", film, "-map 1:v -map 0:a -c:v copy",
                      f"-c:a {audio} {after}", path)
    for end, codec, audio in ((".mp4", "h264", "aac"), (".mov", "h264 no B", "aac"), (".mkv", "h264", "libopus"),
                              (".webm", "vp8", "libopus"), (".ts", "h264", "aac"), (".flv", "h264", "aac"),
                              (".mpg", "mpeg2", "mp2"), (".avi", "mpeg4 no B", "mp3")):
        yield Case("with sound, which begins before, with or after the pictures", f"with sound{end}",
                   lambda path, codec=codec, audio=audio: sound(path, codec, audio=audio))
        if end != ".avi":                       # which can't say so
            yield Case("with sound, which begins before, with or after the pictures", f"sound first{end}",
                       lambda path, codec=codec, audio=audio: sound(path, codec, first=0.7, audio=audio))
    for end in (".mp4", ".mkv", ".ts"):
        yield Case("with sound, which begins before, with or after the pictures", f"pictures first{end}",
                   lambda path: studio.ffmpeg("-i", studio.cached("h264", ".mp4"), "-itsoffset 0.8", SOUND,
                                              "-map 0 -map 1 -c:v copy -c:a aac", path))
    for end in (".mp4", ".mov", ".mkv", ".ts"):
        yield Case("cut without encoding", f"cut{end}", lambda path: studio.copy(
            path, studio.cached("h264", ".mp4"), "-ss 1.1"))
    yield Case("cut without encoding", "cut with sound.mp4", lambda path: studio.copy(
        path, _made(studio, "sound", lambda other: sound(other, "h264"), ".mp4"), "-ss 1.1"))
    for offset in (10, 1000.25):
        for end in (".mp4", ".mkv", ".ts", ".flv"):
            yield Case("a late start", f"starts at {offset} s{end}", lambda path, offset=offset: studio.copy(
                path, studio.cached("h264", ".mp4"), "", f"-output_ts_offset {offset}"))
    for end, codec in ((".ts", "h264"), (".mpg", "mpeg2")):
        for offset in (95441, 95441.9, 95443.5):
            yield Case("a clock that wraps in mid-file", f"starts at {offset} s{end}",
                       lambda path, offset=offset, codec=codec: studio.copy(
                           path, studio.cached(codec, ".mkv"), "", f"-output_ts_offset {offset}"))
    for end, flags in ((".mp4", "-movflags negative_cts_offsets"), (".mov", "-use_editlist 0")):
        yield Case("a negative start", f"starts before zero{end}", lambda path, flags=flags: studio.copy(
            path, studio.cached("h264", ".mp4"), "", f"-output_ts_offset -0.5 -avoid_negative_ts disabled {flags}"))


def _made(studio: Studio, name: str, make, end: str) -> Path:
    """Return the path of an intermediate file, made at its first use."""
    path = studio.folder / f"intermediate {name}{end}"
    with studio.lock:
        if not path.exists():
            make(path)
    return path


def _streams(studio: Studio):
    def film(end=".mp4"):
        return studio.cached("h264", end)

    def other():
        return studio.cached("h264 no B", ".mp4", source="other", rate="25")

    def cover():
        return _made(studio, "cover", lambda path: studio.ffmpeg(
            studio.source(name="other"), "-frames:v 1 -vf scale=192:144 -c:v png", path), ".png")

    def cover_first(path):
        """Put the box with the cover picture before the tracks: the film is the second stream."""
        part = path.with_name(f"part {path.name}")
        studio.ffmpeg("-i", film(), "-i", cover(), "-map 0 -map 1 -c copy -disposition:v:1 attached_pic", part)
        data = part.read_bytes()
        start, stop = damage.where(data, "moov")
        inner = {name: data[a:b] for name, (a, b) in damage.boxes(data, start + 8, stop).items()}
        order = ["mvhd", "udta", "trak", *(name for name in inner if name not in ("mvhd", "udta", "trak"))]
        path.write_bytes(data[:start + 8] + b"".join(inner[name] for name in order) + data[stop:])
    kind = "a cover picture"
    yield Case(kind, "cover first.mp4", cover_first, film=1)
    yield Case(kind, "cover.mp4", lambda path: studio.ffmpeg(
        "-i", film(), "-i", cover(), "-map 0 -map 1 -c copy -disposition:v:1 attached_pic", path))
    yield Case(kind, "cover.mkv", lambda path: studio.ffmpeg(
        "-i", film(), "-attach", cover(), "-map 0 -c copy -metadata:s:t mimetype=image/png", path))
    kind = "two films, the second is the default"
    for end in (".mkv", ".mp4", ".mov"):
        yield Case(kind, f"two films{end}", lambda path: studio.ffmpeg(
            "-i", other(), "-i", film(), "-map 0 -map 1 -c copy -disposition:v:0 0 -disposition:v:1 default", path),
            film=1)
    for end, codec in ((".mkv", "srt"), (".mp4", "mov_text")):
        yield Case("with subtitles or a time code", f"subtitles{end}", lambda path, codec=codec: studio.ffmpeg(
            "-i", film(), "-i", _made(studio, "words", lambda path: path.write_text(
                "1\n00:00:00,500 --> 00:00:01,000\nhello\n\n2\n00:00:01,500 --> 00:00:09,000\nworld\n"), ".srt"),
            f"-map 0 -map 1 -c:v copy -c:s {codec}", path))
    yield Case("with subtitles or a time code", "time code.mov", lambda path: studio.copy(
        path, film(), "", "-timecode 01:00:00:00"))
    for end, codec in ((".mp4", "aac"), (".mkv", "libopus"), (".wav", "pcm_s16le"), (".mp3", "mp3")):
        yield Case("sound alone", f"sound alone{end}", lambda path, codec=codec: studio.ffmpeg(
            SOUND, f"-c:a {codec}", path), refused="no video")
    yield Case("sound alone", "sound with a cover.mp3", lambda path: studio.ffmpeg(
        SOUND, "-i", cover(), "-map 0 -map 1 -c:a mp3 -c:v copy -disposition:v attached_pic", path), refused="no video")


def _changes(studio: Studio):
    parts = {
        "size": ("h264", "-vf scale=144:108"), "shape": ("h264", "-vf scale=64:96"),
        "size, smaller": ("h264 no B", "-vf scale=48:36"),
        "pixel format": ("h264 4:4:4", ""), "colour range": ("h264 full range", ""), "pixel aspect": (
            "h264", "-vf setsar=2/1"), "colour matrix": ("h264 BT.709", ""), "frame rate": ("h264", ""),
        "codec profile": ("h264 open GOP", "")}
    for name, (codec, more) in parts.items():
        def joined(path, name=name, codec=codec, more=more):
            rate = "12" if name == "frame rate" else "30"
            both = path.with_name(f"both {path.name}.ts")
            second = path.with_name(f"second {path.name}.ts")
            studio.encode(second, codec, rate, frames=30, more=f"{more} -output_ts_offset 2.1")
            first = studio.cached("h264 tagged", ".ts", frames=60)
            both.write_bytes(first.read_bytes() + second.read_bytes())
            studio.copy(path, both)
        for end in (".mp4", ".mkv", ".ts") if name.startswith(("size", "shape", "colour range")) else (".mkv", ".ts"):
            yield Case(SIZES if name.startswith(("size", "shape")) else OTHERWISE, f"another {name}{end}", joined)
    for end in (".mkv", ".mp4"):
        def gap(path):
            """A recording of variable rate whose size changes."""
            first = studio.cached("h264", ".ts", times=TIMES["two gaps"], frames=60)
            second = studio.cached("h264", ".ts", times="9+N/30+floor(N/7)*0.3", more="-vf scale=144:108", frames=30)
            both = path.with_name(f"both {path.name}.ts")
            both.write_bytes(first.read_bytes() + second.read_bytes())
            studio.copy(path, both)
        yield Case(SIZES, f"variable rate, another size{end}", gap)


def _rare(studio: Studio):
    for end, codecs in COLOURS.items():
        for codec in codecs:
            yield Case("other codecs and pixel formats", f"{codec.replace(':', '')}, rare{end}",
                       lambda path, codec=codec: studio.encode(path, codec, frames=60))
    for count in (1, 2, 5):
        for end, codec in ((".mp4", "h264"), (".mkv", "vp9"), (".avi", "mpeg4"), (".ts", "h264")):
            yield Case("few frames", f"{count} frames{end}",
                       lambda path, codec=codec, count=count: studio.encode(path, codec, frames=count))
    for rate in ("1/2", "1", "5", "240", "1000"):
        for end, codec in ((".mp4", "h264"), (".mkv", "vp8"), (".ts", "h264"), (".avi", "mjpeg")):
            if rate not in ("1/2", "1000") or end in (".mp4", ".avi"):
                yield Case("slow and fast rates", f"{_fraction(rate)} a second{end}",
                           lambda path, codec=codec, rate=rate: studio.encode(path, codec, rate, frames=40))

    def live(path, codec, times, form):
        """Write to a pipe: nothing can be filled in afterwards, so there is no duration and no index."""
        whole = studio.cached(codec, ".mkv", times=times) if times else studio.cached(codec, ".mkv")
        path.write_bytes(subprocess.run(
            [ffmpeg(), "-loglevel", "error", "-i", str(whole), "-c", "copy", "-f", *form.split(), "pipe:1"],
            check=True, capture_output=True).stdout)
    forms = ((".webm", "vp8", "webm -live 1"), (".mkv", "h264", "matroska"), (".flv", "h264", "flv"),
             (".mp4", "h264", "mp4 -movflags empty_moov+frag_every_frame"), (".avi", "mjpeg", "avi"))
    for name, times in (("a live recording", ""), ("a live recording of variable rate", TIMES["a screen recording"])):
        for end, codec, form in forms:
            if end != ".avi" or not times:
                yield Case("written to a pipe: no duration, no index", f"{name}{end}",
                           lambda path, codec=codec, times=times, form=form: live(path, codec, times, form))
    for name in ("a gap in the middle", "bursts"):
        yield Case("empty packets in place of gaps", f"{name}.avi", lambda path, name=name: studio.ffmpeg(
            studio.source(), CODECS["mjpeg"], f"""-vf "settb=1/30,setpts='floor(({TIMES[name]})*30+0.5)'" """,
            "-fps_mode vfr", path))
    for end, codec in ((".ts", "h264"), (".ts", "h264 open GOP"), (".vob", "mpeg2")):
        yield Case("joined by cat: the clock restarts", f"{codec} joined{end}",
                   lambda path, codec=codec, end=end: path.write_bytes(
                       studio.cached(codec, end, frames=40).read_bytes() * 2), joined=True)

    def overlap(path):
        both = path.with_name(f"both {path.name}.ts")
        second = path.with_name(f"second {path.name}.ts")
        studio.encode(second, "h264 open GOP", frames=30, more="-output_ts_offset 2")
        both.write_bytes(studio.cached("h264 tagged", ".ts", frames=60).read_bytes() + second.read_bytes())
        studio.copy(path, both)
    for end in (".ts", ".mkv"):
        yield Case("two frames at one time", f"overlapping{end}", overlap)
    film = studio.cached
    for end in (".mp4", ".mov"):
        yield Case("cropped, and odd sizes", f"cropped{end}", lambda path: studio.copy(
            path, film("h264", ".mp4", frames=40), "", "-bsf:v h264_metadata=crop_left=8:crop_top=12:crop_right=4"))
    for end in (".mp4", ".mkv", ".mov"):
        yield Case("pixels that are not square", f"pixels by the container alone{end}", lambda path: studio.copy(
            path, film("h264", ".mp4", frames=40), "", "-aspect 16:9"))
    yield Case("pixels that are not square", "pixels by the stream alone.ts", lambda path: studio.copy(
        path, film("h264", ".mp4", frames=40), "", "-bsf:v h264_metadata=sample_aspect_ratio=4/3"))
    for name, codec, more in (("no edit list.mp4", "h264", "-use_editlist 0"), ("dash.mp4", "h264", "-movflags dash"),
                              ("hybrid.mp4", "h264", "-movflags hybrid_fragmented"),
                              ("index first.mp4", "hevc", "-movflags faststart")):
        yield Case("mp4 in fragments, or of other writers", name, lambda path, codec=codec, more=more: studio.encode(
            path, codec, more=more, frames=60))
    for end, codec in ((".mkv", "h264 4:4:4"), (".webm", "vp9"), (".mov", "mjpeg")):
        yield Case("cropped, and odd sizes", f"odd{end}", lambda path, codec=codec: studio.encode(
            path, codec, more="-vf crop=95:71", frames=40))


def _damaged(studio: Studio):
    one = GOP + 6                               # what a damaged packet may cost: its GOP, and frames around it
    zeros = {"a packet of zeros": one, "a keyframe of zeros": one + 4, "a B-frame of zeros": one,
             "several glitches": 3 * one, "half a packet of zeros": one, "the first packet of zeros": one,
             "the last packet of zeros": one}
    ways = {(".mp4", "h264"): list(zeros), (".mkv", "h264 open GOP"): list(zeros)[:4],
            (".mp4", "hevc"): list(zeros)[:4], (".webm", "vp9"): list(zeros)[:2],
            (".avi", "mpeg4 no B"): list(zeros)[:2],
            (".mkv", "av1"): ["a packet of zeros"], (".mov", "mpeg4"): ["a packet of zeros", "several glitches"],
            (".avi", "mjpeg"): ["several glitches"], (".mp4", "h264 no B"): ["several glitches"],
            (".mkv", "vp8"): ["a keyframe of zeros"], (".ts", "h264"): ["several glitches"]}
    for (end, codec), hows in ways.items():
        for how in hows:
            yield _hurt(studio, "damage: packets of zeros", codec, end, how, zeros[how])
    for end, codec, how in ((".mp4", "h264", "flipped bytes"), (".mkv", "h264 open GOP", "flipped bytes"),
                            (".webm", "vp8", "a packet of zeros"), (".mp4", "hevc", "flipped bytes")):
        yield _hurt(studio, "damage: bytes that are wrong, but valid", codec, end, how, one, silent=True)
    for end, codec, how in ((".ts", "h264", "a hole of whole packets"), (".ts", "mpeg2", "a hole of whole packets"),
                            (".ts", "h264", "a hole"), (".mkv", "h264", "a hole"), (".mpg", "mpeg2", "a hole")):
        yield _hurt(studio, "damage: a hole", codec, end, how, 2 * GOP)
    for end, codec in ((".ts", "h264"), (".mkv", "h264"), (".webm", "vp9"), (".flv", "h264"), (".avi", "mpeg4 no B"),
                       (".mpg", "mpeg2")):
        yield _hurt(studio, "damage: the tail missing", codec, end, "the tail missing", FRAMES // 3 + 8)
    for end, codec in ((".mp4", "h264"), (".mov", "hevc")):
        yield _hurt(studio, "damage: an mp4's tail and table missing", codec, end, "the tail missing", 0, "opened")
    for codec in ("h264", "h264 open GOP", "hevc", "mpeg2"):
        yield _hurt(studio, "damage: begins between keyframes", codec, ".ts", "the start missing", GOP + 8,
                    shifted=True)


def _hurt(studio: Studio, kind: str, codec: str, end: str, how: str, lost: int, refused: str = "", **more) -> Case:
    """Return a case of a damaged encoding."""
    def make(path):
        hurt(path, studio.cached(codec, end), how)
    return Case(kind, f"{codec}, {how}{end}", make, refused=refused, lost=lost,
                original=None if refused else lambda: studio.cached(codec, end), **more)
