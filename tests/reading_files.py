"""The whole files of the reading campaign: containers, codecs, rates, orientations, starts and streams."""
import struct
from pathlib import Path

import damage
import reading_damage
import reading_rare
from reading_studio import SOUND, TIMES, Case, Studio, fraction

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
VARIABLE = "variable rate: gaps, bursts, screen recordings, jitter, two rates, a drift"
TIMED = {".mp4": ("h264", ""), ".mkv": ("h264 open GOP", ""), ".webm": ("vp9", ""), ".ts": ("h264", ""),
         " in fragments.mp4": ("h264 no B", FRAGMENTS), ".flv": ("flv1", ""), ".mov": ("hevc", "")}
# rows (a, b), (c, d) of a display matrix
ORIENTATIONS = {"upright": (1, 0, 0, 1), "a quarter turn": (0, 1, -1, 0), "half a turn": (-1, 0, 0, -1),
                "three quarter turns": (0, -1, 1, 0), "mirrored": (-1, 0, 0, 1), "upside down": (1, 0, 0, -1),
                "mirrored and turned": (0, 1, 1, 0), "mirrored and turned back": (0, -1, -1, 0)}
PIXELS = ("4/3", "16/11", "2/1", "1/2", "10/11")


def cases(studio: Studio) -> list[Case]:
    """Return every file of the campaign; nothing is made yet."""
    made = [*_containers(studio), *_rates(studio), *_orientations(studio), *_starts(studio), *_streams(studio),
            *reading_rare.changes(studio), *reading_rare.rare(studio), *reading_damage.damaged(studio)]
    assert len({case.name for case in made}) == len(made)
    return made


def set_matrix(path: Path, turn: tuple[int, int, int, int]) -> None:
    """Overwrite the display matrix of an MP4's or MOV's first track."""
    data, (a, b, c, d) = bytearray(path.read_bytes()), turn
    at = damage.where(bytes(data), "moov", "trak", "tkhd")[0] + 8 + 40
    data[at:at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


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
                yield Case("constant rates", f"{float(fraction(rate)):.2f} a second{end}",
                           lambda path, codec=codec, rate=rate: studio.encode(path, codec, rate, frames=60))
    for name, times in TIMES.items():
        for end, (codec, more) in TIMED.items():
            yield Case(VARIABLE, f"{name}{end}",
                       lambda path, codec=codec, times=times, more=more: studio.encode(path, codec, "30", times, more))


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
    for codec, end in (("hevc", ".mov"), ("h264 open GOP", ".mkv"), ("h264 open GOP", ".mp4"), ("mpeg2", ".mpg")):
        yield Case("cut without encoding, in open GOPs", f"{codec} cut{end}", lambda path, codec=codec: studio.copy(
            path, studio.cached(codec, ".mkv"), "-ss 1.1"))
    yield Case("cut without encoding", "cut with sound.mp4", lambda path: studio.copy(
        path, studio.made("sound", lambda other: sound(other, "h264"), ".mp4"), "-ss 1.1"))
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


def _streams(studio: Studio):
    def film(end=".mp4"):
        return studio.cached("h264", end)

    def other():
        return studio.cached("h264 no B", ".mp4", source="other", rate="25")

    def cover():
        return studio.made("cover", lambda path: studio.ffmpeg(
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
            "-i", film(), "-i", studio.made("words", lambda path: path.write_text(
                "1\n00:00:00,500 --> 00:00:01,000\nhello\n\n2\n00:00:01,500 --> 00:00:09,000\nworld\n"), ".srt"),
            f"-map 0 -map 1 -c:v copy -c:s {codec}", path))
    yield Case("with subtitles or a time code", "time code.mov", lambda path: studio.copy(
        path, film(), "", "-timecode 01:00:00:00"))
    for end, codec in ((".mp4", "aac"), (".mkv", "libopus"), (".wav", "pcm_s16le"), (".mp3", "mp3")):
        yield Case("sound alone", f"sound alone{end}", lambda path, codec=codec: studio.ffmpeg(
            SOUND, f"-c:a {codec}", path), refused="no video")
    yield Case("sound alone", "sound with a cover.mp3", lambda path: studio.ffmpeg(
        SOUND, "-i", cover(), "-map 0 -map 1 -c:a mp3 -c:v copy -disposition:v attached_pic", path), refused="no video")
