"""Rarer files of the reading campaign: rare formats, live recordings, joined files, and changes in mid-file."""
import subprocess

from reading_studio import CODECS, TIMES, Case, Studio, fraction

from egokit.prep.video import ffmpeg

COLOURS = {".mkv": ["h264 4:2:2 10 bit", "ffv1 grey", "ffv1 RGB 10 bit", "ffv1 16 bit", "vp9 4:4:4", "utvideo"],
           ".mp4": ["hevc BT.2020", "vp9 hidden frames", "h264 tagged"], ".webm": ["vp9 alpha", "vp9 hidden frames"],
           ".mov": ["prores 4444", "png alpha", "qtrle", "h264 full range"], ".avi": ["xvid", "raw RGB", "cinepak"],
           ".ts": ["mpeg2 interlaced", "h264 interlaced"]}
SIZES = "in mid-file, another size or shape"
OTHERWISE = "in mid-file, another pixel format, aspect, rate, profile, colour range or matrix"


def changes(studio: Studio):
    """Yield files in which something changes in the middle."""
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


def rare(studio: Studio):
    """Yield files of rare formats and origins."""
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
                yield Case("slow and fast rates", f"{fraction(rate)} a second{end}",
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
