"""Encodings by size, quality and clips/s, and readers by clips/s, in one run on one core.

    pip install opencv-python-headless torchcodec   # other readers; the table says which are not installed
    python benchmarks/decode.py FOLDER              # makes its files there, once: about 10 minutes and 0.6 GB

A clip is what EgoClip's training reads: four random frames, one from each quarter of 1 to 3 s of a ten-minute video of
454 x 256 at 30 frames per second, cropped at random and resized to 224. Every reader gets the same clips. The file is
opened for each clip, because in training the next clip is from another video. Times are the process's CPU time, so that
other work on the machine doesn't count. The tables that it printed are at the end of this file.
"""
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ["OPENCV_FFMPEG_THREADS"] = "1"
os.sched_setaffinity(0, {0})
import numpy as np  # noqa: E402  (after the core is chosen, as libraries start threads when they are imported)
import torch  # noqa: E402

from egokit.data.video import open_video, transforms  # noqa: E402
from egokit.prep import video as prep  # noqa: E402

torch.set_num_threads(1)
FPS, SECONDS, EXCERPT, CLIPS, ROUNDS = 30, 600, 60, 60, 5


def still(path: Path) -> None:
    """Save an image with a natural spectrum and sharp edges, larger than the camera's view."""
    from PIL import Image, ImageDraw
    rng, height, width = np.random.default_rng(0), 1000, 1600

    def noise(power: float) -> np.ndarray:
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
        spectrum = (rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)) / frequency**power
        field = np.fft.irfft2(spectrum, (height, width))
        return (field - field.mean()) / field.std()
    base = noise(1.4)
    colours = np.stack([128 + 45 * base + 18 * noise(1.6) for _ in range(3)], -1)
    picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(100):
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 20, 20), (width, height, 200, 200)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([x, y, x + w, y + h], fill=tuple(rng.integers(0, 255, 3).tolist()))
    textured = np.asarray(picture) + 6 * noise(0.6)[..., None]
    Image.fromarray(textured.clip(0, 255).astype(np.uint8)).save(path)


def ffmpeg(*arguments) -> None:
    """Run ffmpeg."""
    subprocess.run([prep.ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *map(str, arguments)],
                   check=True)


def make_source(folder: Path) -> Path:
    """Make ten minutes of head-mounted video of the still image.

    The camera walks, sways and shakes; a hand passes; the sensor is noisy.
    """
    path = folder / "source.mp4"
    if not path.exists():
        still(folder / "still.png")
        camera = ("[1]loop=-1:1,format=yuv420p,crop=780:460:x='400+300*sin(t*0.37)+45*sin(t*2.3)+6*sin(t*11)'"
                  ":y='270+200*sin(t*0.29+1)+32*sin(t*2.9)+4*sin(t*13)'"
                  ",rotate=a='0.12*sin(t*0.8)+0.03*sin(t*3.7)':ow=640:oh=360[room]")
        hand = "[room][0]overlay=x='240+180*sin(t*1.9)':y='210+65*sin(t*2.7)':shortest=1,noise=c0s=5:c0f=t[out]"
        ffmpeg("-f", "lavfi", "-i", f"color=c=0xc89078:s=155x112:r={FPS},format=yuv420p", "-framerate", FPS,
               "-i", folder / "still.png", "-t", SECONDS, "-filter_complex", f"{camera};{hand}", "-map", "[out]",
               "-c:v", "libx264", "-preset", "superfast", "-crf", "20", folder / "part.mp4")
        os.replace(folder / "part.mp4", path)
    return path


def encode(source: Path, target: Path, encoding: list[str], seconds: float = SECONDS) -> float:
    """Encode a file and return the CPU seconds that took; 0 if the file exists."""
    if target.exists():
        return 0.0
    before = os.times()
    part = target.with_suffix(".part.mp4")
    ffmpeg("-t", seconds, "-i", source, "-vf", "scale=-2:256", *encoding, part)
    os.replace(part, target)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


# readers: (file or folder, frame numbers) -> uint8 (T, H, W, 3); each opens its file

def opencv(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Read as the original does: seek to every frame."""
    import cv2
    video, out = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    for index in wanted:
        video.set(cv2.CAP_PROP_POS_FRAMES, int(index))
        success, picture = video.read()
        assert success
        out.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    video.release()
    return np.stack(out)


def decord(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Read with decord."""
    import decord
    return decord.VideoReader(str(path), num_threads=1).get_batch(wanted.tolist()).asnumpy()


def decord_pieces(folder: Path, wanted: np.ndarray) -> np.ndarray:
    """Read as AVION does: with decord, from chunks of 15 s."""
    length = 15 * FPS
    pieces = wanted // length
    return np.concatenate([decord(folder / f"{piece}.mp4", wanted[pieces == piece] - piece * length)
                           for piece in np.unique(pieces)])


def torchcodec(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Read with torchcodec, without a scan of the file."""
    from torchcodec.decoders import VideoDecoder
    decoder = VideoDecoder(str(path), seek_mode="approximate", num_ffmpeg_threads=1, dimension_order="NHWC")
    return decoder.get_frames_at(wanted.tolist()).data.numpy()


def pyav_straight(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Read with one seek, decoding every frame from there on."""
    import av
    out = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = 1 / (stream.average_rate * stream.time_base)
        container.seek(round(wanted[0] * step), stream=stream, backward=True)
        remaining = set(wanted.tolist())
        for frame in container.decode(stream):
            if round(frame.pts / step) in remaining:
                number = round(frame.pts / step)
                out[number] = frame.to_ndarray(format="rgb24")
                remaining.discard(number)
                if not remaining:
                    break
    return np.stack([out[index] for index in wanted.tolist()])


def egokit(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Read with egokit's default reader."""
    reader = open_video.PyAVReader(path)
    out = reader.read(wanted)
    reader.close()
    return out


def clips(seconds: float, count: int) -> list[np.ndarray]:
    """Draw clips from a video: the numbers of four frames each."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(count):
        length = rng.uniform(1, 3) * FPS
        first = rng.uniform(0, seconds * FPS - length - 1)
        edges = np.linspace(first, first + length, 5).astype(int)
        drawn.append(rng.integers(edges[:-1], edges[1:]))
    return drawn


def timed(read, path: Path, wanted: list[np.ndarray], round_: int) -> float:
    """Return clips per second of CPU time for this round's share of the clips."""
    rng, share = np.random.default_rng(round_), wanted[round_::ROUNDS]
    began = time.process_time()
    for indices in share:
        transforms.training(read(path, indices), 224, (0.5, 1.0), True, rng)
    return len(share) / (time.process_time() - began)


def compare(rows: list[tuple], wanted: list[np.ndarray]) -> list[float | None]:
    """Return the median clips/s of each (name, reader, path).

    In every round, all readers take their turn. A reader that is not installed gets None.
    """
    speeds: list[list[float]] = [[] for _ in rows]
    for round_ in range(ROUNDS):
        for (_, read, path), reader_speeds in zip(rows, speeds, strict=True):
            try:
                reader_speeds.append(timed(read, path, wanted, round_))
            except ImportError:
                continue
    return [statistics.median(reader_speeds) if reader_speeds else None for reader_speeds in speeds]


def similarity(path: Path, source: Path) -> str:
    """Return the luma's SSIM against the source at the same size, over the first 20 s."""
    output = subprocess.run([prep.ffmpeg(), "-hide_banner", "-t", "20", "-i", path, "-t", "20", "-i", source, "-lavfi",
                             "[1]scale=-2:256[s];[0][s]ssim", "-f", "null", "-"], capture_output=True, text=True).stderr
    return output.split("SSIM Y:")[1][:5]


def settings_table(folder: Path, source: Path) -> None:
    """Print size, quality, encoding time and clips/s of each encoding."""
    def x264(preset: str, gop: int, unreferenced: int, more: str = "-tune fastdecode", crf: int = 23) -> list[str]:
        return (f"-c:v libx264 -preset {preset} -crf {crf} -pix_fmt yuv420p -g {gop} -keyint_min {gop} "
                f"-sc_threshold 0 -bf {unreferenced} -b_strategy 0 -x264-params b-pyramid=none:open-gop=0 {more} -an "
                "-movflags +faststart").split()
    settings = {"the original's (GOP 250)": prep.ORIGINAL, "every frame a keyframe": x264("faster", 1, 0),
                "GOP 8, no B-frames": x264("veryfast", 8, 0), "GOP 12, no B-frames": x264("veryfast", 12, 0),
                "GOP 25, no B-frames": x264("faster", 25, 0), "GOP 17, 7 B-frames": x264("faster", 17, 7),
                "GOP 25, 7 B-frames: ours": prep.RANDOM_ACCESS, "GOP 25, 7, veryfast": x264("veryfast", 25, 7),
                "GOP 25, 7, deblocking, CABAC": x264("faster", 25, 7, ""), "GOP 33, 7 B-frames": x264("faster", 33, 7),
                "GOP 33, 15 B-frames": x264("faster", 33, 15)}
    wanted, rows = clips(EXCERPT, CLIPS), []
    print(f"\nEncodings of the first {EXCERPT} s (CRF 23), read by egokit: four frames of a clip, with crop and resize")
    print(f"{'':32}{'bytes':>8}{'SSIM':>8}{'encoding, CPU s':>18}{'clips/s':>10}")
    cpu_seconds = {}
    for number, (name, encoding) in enumerate(settings.items()):
        path = folder / f"setting-{number}.mp4"
        path.unlink(missing_ok=True)
        cpu_seconds[name] = encode(source, path, encoding, EXCERPT)
        rows.append((name, egokit, path))
    base = rows[0][2].stat().st_size
    for (name, _, path), speed in zip(rows, compare(rows, wanted), strict=True):
        print(f"{name:32}{path.stat().st_size / base:>6.2f} x{similarity(path, source):>8}"
              f"{cpu_seconds[name]:>18.0f}{speed:>10.0f}", flush=True)


def readers_table(folder: Path, source: Path) -> None:
    """Print size and clips/s of each reader on the original's files and on ours."""
    original, ours, pieces = folder / "original.mp4", folder / "ours.mp4", folder / "pieces"
    encode(source, original, prep.ORIGINAL)
    encode(source, ours, prep.RANDOM_ACCESS)
    if not pieces.exists():
        part = folder / "pieces.part"
        part.mkdir(exist_ok=True)
        ffmpeg("-i", source, "-vf", "scale=-2:256", *prep.ORIGINAL, "-force_key_frames", "expr:gte(t,n_forced*15)",
               "-f", "segment", "-segment_time", "15", "-reset_timestamps", "1", part / "%d.mp4")
        os.replace(part, pieces)
    rows = [("OpenCV seeks, original's files", opencv, original), ("decord, original's files", decord, original),
            ("torchcodec, original's files", torchcodec, original),
            ("PyAV straight, original's files", pyav_straight, original),
            ("egokit, original's files", egokit, original), ("decord, pieces of 15 s (AVION)", decord_pieces, pieces),
            ("OpenCV seeks, our files", opencv, ours), ("decord, our files", decord, ours),
            ("torchcodec, our files", torchcodec, ours),
            ("PyAV straight, our files", pyav_straight, ours), ("egokit, our files", egokit, ours)]
    wanted = clips(SECONDS, CLIPS)
    for name, read, path in rows:  # checks that all read the same frames, and warms every library up
        try:
            expected = egokit(ours if path == ours else original, wanted[0])
            assert np.abs(read(path, wanted[0]).astype(int) - expected).mean() < 3, f"{name}: other frames"
        except ImportError:
            pass
    sizes = {original: original.stat().st_size, ours: ours.stat().st_size,
             pieces: sum(file.stat().st_size for file in pieces.iterdir())}
    print("\nReaders, ten minutes, the file opened for each clip: four frames, with crop and resize")
    print(f"{'':34}{'MB':>6}{'bytes':>8}{'clips/s':>10}{'':>4}of OpenCV's")
    speeds = compare(rows, wanted)
    for (name, _, path), speed in zip(rows, speeds, strict=True):
        result = f"{speed:>10.1f}{speed / speeds[0]:>11.1f} x" if speed and speeds[0] else "   not installed"
        print(f"{name:34}{sizes[path] / 1e6:>6.0f}{sizes[path] / sizes[original]:>6.2f} x{result}")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    film = make_source(place)
    settings_table(place, film)
    readers_table(place, film)

# Printed on a shared machine of 2 cores (AMD EPYC with AVX-512), PyAV 18.1, decord 0.6, OpenCV 5.0, torchcodec 0.17,
# torch 2.15:
#
# Encodings of the first 60 s (CRF 23), read by egokit: four frames of a clip, with crop and resize
#                                    bytes    SSIM   encoding, CPU s   clips/s
# original (GOP 250)                1.00 x   0.953                14        26
# every frame a keyframe            5.23 x   0.904                 9       198
# GOP 8, no B-frames                2.42 x   0.949                 7       109
# GOP 12, no B-frames               2.06 x   0.948                 6        90
# GOP 25, no B-frames               1.72 x   0.948                 9        68
# GOP 17, 7 B-frames                1.72 x   0.954                11       123
# GOP 25, 7 B-frames: ours          1.49 x   0.954                12       116
# GOP 25, 7, veryfast               1.27 x   0.938                 7       121
# GOP 25, 7, deblocking, CABAC      1.39 x   0.953                12        68
# GOP 33, 7 B-frames                1.35 x   0.953                11       115
# GOP 33, 15 B-frames               1.43 x   0.949                11       140
#
# Readers, ten minutes, the file opened for each clip: four frames, with crop and resize
#                                       MB   bytes   clips/s    of OpenCV's
# OpenCV seeks, original's files        23  1.00 x       5.3        1.0 x
# decord, original's files              23  1.00 x       8.4        1.6 x
# torchcodec, original's files          23  1.00 x      16.3        3.1 x
# PyAV straight, original's files       23  1.00 x      16.4        3.1 x
# egokit, original's files              23  1.00 x      24.5        4.6 x
# decord, pieces of 15 s (AVION)        23  1.00 x      16.5        3.1 x
# OpenCV seeks, our files               34  1.49 x      38.1        7.2 x
# decord, our files                     34  1.49 x      13.1        2.5 x
# torchcodec, our files                 34  1.49 x      72.8       13.7 x
# PyAV straight, our files              34  1.49 x      67.6       12.7 x
# egokit, our files                     34  1.49 x     118.7       22.3 x
