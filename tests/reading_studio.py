"""Makes the small video files of the reading campaign with ffmpeg.

A picture carries its number: eight black or white fields below a coloured pattern that has no symmetry.
"""
import os
import shlex
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
SOUND = "-f lavfi -i sine=frequency=300:sample_rate=16000:duration=4"


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
        strict: for a damaged file, a word of the error if the strict policy doesn't open it.
        lost: how many frames the damage may cost, at most.
        shifted: whether the damage moves the file's start.
        silent: whether the damage is valid data, so that no decoder notices.
        torn: whether preparation shows pictures that are torn after the damage, until the next keyframe.
        joined: whether the file's clock restarts, so that only ffmpeg's own clock goes on.
    """
    kind: str
    name: str
    make: Callable[[Path], None]
    film: int = 0
    refused: str = ""
    original: Callable[[], Path] | None = None
    strict: str = ""
    lost: int = 0
    shifted: bool = False
    silent: bool = False
    torn: bool = False
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

    def made(self, name: str, make: Callable[[Path], None], end: str) -> Path:
        """Return the path of an intermediate file, which is made at its first use."""
        path = self.folder / f"intermediate {name}{end}"
        with self.lock:
            if not path.exists():
                make(path)
        return path

    def copy(self, path: Path, source: Path, before: str = "", after: str = "") -> None:
        """Copy the packets of a file into another."""
        self.ffmpeg(before, "-i", source, "-map 0 -c copy", after, path)


def fraction(text: str) -> float:
    """Return the value of '30000/1001' or '25'."""
    above, _, below = text.partition("/")
    return int(above) / int(below or 1)
