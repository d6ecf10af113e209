"""A hundred damaged videos, made from a toy video, and how each reader behaves on them.

They are read in processes that may crash or hang.

    python tests/damage.py READER SECONDS PIECE PATH...   # prints a line of JSON before and one after each file
"""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np

TABLES = ("moov", "trak", "mdia", "minf", "stbl")     # the boxes around a track's tables
# files that begin with a later frame: without the keyframe, the seven B-frames that follow the eighth frame in the file
# are lost as well
FIRST = {"no-first-keyframe": 8, "no-keyframes": 8}


def boxes(data: bytes, at: int = 0, stop: int | None = None) -> dict[str, tuple[int, int]]:
    """Return the MP4 boxes in a stretch of bytes: name -> (start, stop), header included."""
    places = {}
    stop = len(data) if stop is None else stop
    while at + 8 <= stop:
        size, name = struct.unpack(">I4s", data[at:at + 8])
        places[name.decode("latin-1")] = at, at + size
        at += size
    return places


def where(data: bytes, *path: str) -> tuple[int, int]:
    """Return (start, stop) of a box inside others."""
    at, stop = 0, len(data)
    for name in path:
        at, stop = boxes(data, at, stop)[name]
        at += 8
    return at - 8, stop


def changed(data: bytes, path: tuple[str, ...], change) -> bytes:
    """Return the file with a box's body replaced by change(body).

    The sizes of all boxes around it are corrected. The result is right if moov comes last.
    """
    name, *rest = path
    at, stop = boxes(data)[name]
    body = changed(data[at + 8:stop], tuple(rest), change) if rest else change(data[at + 8:stop])
    return data[:at] + struct.pack(">I4s", len(body) + 8, name.encode()) + body + data[stop:]


def overreporting(data: bytes, more: int, tables: tuple[str, ...]) -> bytes:
    """Return a container (moov last) that promises `more` frames in some of its tables.

    The tables are times (stts), sizes (stsz) and chunks (stsc).
    """
    def stts(body):  # version, number of entries, then (frames, duration) each; one entry if the rate is constant
        count, frames, step = struct.unpack(">III", body[4:16])
        return body[:4] + struct.pack(">III", count, frames + more, step) + body[16:]

    def stsz(body):
        frames, = struct.unpack(">I", body[8:12])
        return body[:8] + struct.pack(">I", frames + more) + body[12:] + struct.pack(">I", 700) * min(more, 10**5)

    def stsc(body):  # (first chunk, frames in each, kind): make the last chunk longer
        frames, = struct.unpack(">I", body[-8:-4])
        return body[:-8] + struct.pack(">I", frames + more) + body[-4:]

    for name in tables:
        data = changed(data, (*TABLES, name), {"stts": stts, "stsz": stsz, "stsc": stsc}[name])
    return data


def flipped(data: bytes, bits: int, seed: int, start: int = 0, stop: int | None = None) -> bytes:
    """Return the file with `bits` bits flipped at random places of [start, stop)."""
    out, rng = bytearray(data), np.random.default_rng(seed)
    for at in rng.integers(start, len(data) if stop is None else stop, bits).tolist():
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def zeroed(data: bytes, start: int, count: int) -> bytes:
    return data[:start] + bytes(len(data[start:start + count])) + data[start + count:]


def remuxed(source: Path, target: Path, keep=lambda number, key: True, **options) -> bytes:
    """Copy the packets for which `keep(number, keyframe)` is true into another container.

    The suffix of `target` chooses the container.
    """
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        for number, packet in enumerate(old.demux(stream)):
            if packet.size and keep(number, packet.is_keyframe):
                packet.stream = copy
                new.mux(packet)
    return target.read_bytes()


def audio(path: Path) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def picture(path: Path) -> bytes:
    from PIL import Image
    Image.new("RGB", (96, 72), "red").save(path)
    return path.read_bytes()


def contents(first: bytes, folder: Path):
    """Yield (name, bytes) of every damaged file.

    first: a prepared chunk, whose moov box is before its mdat box.
    """
    whole = folder / "whole.mp4"
    whole.write_bytes(first)
    last = remuxed(whole, folder / "last.mp4")  # PyAV writes moov last by default
    moov, mdat = where(first, "moov"), where(first, "mdat")
    data, header = where(last, "mdat"), where(last, "moov")

    for size in (0, 1, 4, 8, 31, 40, 500, 1500, moov[1] - 1, moov[1], mdat[0] + 108):
        yield f"cut-first-{size}", first[:size]
    for share in (0.3, 0.5, 0.7, 0.9, 0.99):
        yield f"cut-first-{share}", first[:int(share * len(first))]
    yield "cut-first-1-byte-less", first[:-1]
    for size in (data[0] + 8, header[0], header[0] + 8, (header[0] + header[1]) // 2, len(last) - 1):
        yield f"cut-last-{size}", last[:size]
    for share in (0.1, 0.5, 0.9):
        yield f"cut-last-{share}", last[:int(share * len(last))]

    for part, (start, stop), densities, seeds in (
            ("mdat", mdat, (1, 5, 50, 500, 5000), 3), ("moov", moov, (1, 3, 10, 100), 4),
            ("anywhere", (0, len(first)), (10, 100, 1000, 10000), 2)):
        for bits in densities:
            for seed in range(seeds):
                yield f"flipped-{part}-{bits}-{seed}", flipped(first, bits, seed, start, stop)
    for at in (0.1, 0.6):
        for count in (200, 4000, 20000):
            yield f"zeros-mdat-{at}-{count}", zeroed(first, mdat[0] + int(at * (mdat[1] - mdat[0])), count)
    for at, count in ((100, 16), (600, 64), (900, 400)):
        yield f"zeros-moov-{at}", zeroed(first, moov[0] + at, count)
    yield "zeros-start", zeroed(first, 0, 4096)
    yield "zeros-second-half", zeroed(first, len(first) // 2, len(first))
    yield "zeros-all", bytes(len(first))

    yield "text", b"clip_idx\tvideo_uid\n" * 100
    yield "html", b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head></html>" * 20
    yield "audio", audio(folder / "audio.mp4")
    yield "png", picture(folder / "picture.png")
    yield "jpeg", picture(folder / "picture.jpg")
    yield "mkv", remuxed(whole, folder / "whole.mkv")
    yield "h264", remuxed(whole, folder / "whole.h264")

    yield "more-stts-5", overreporting(last, 5, ("stts",))
    yield "more-stts-300", overreporting(last, 300, ("stts",))
    yield "more-stts-2G", overreporting(last, 2**31 - 1000, ("stts",))
    yield "more-stsz-300", overreporting(last, 300, ("stsz",))
    yield "more-stsz-2G", overreporting(last, 2**31 - 1000, ("stsz",))
    yield "more-stsc-300", overreporting(last, 300, ("stsc",))
    yield "more-all-5", overreporting(last, 5, ("stts", "stsz", "stsc"))
    yield "more-all-300", overreporting(last, 300, ("stts", "stsz", "stsc"))
    half = (data[1] - data[0]) // 2  # the tables point beyond it
    yield "half-of-mdat", (last[:data[0]] + struct.pack(">I", half) + last[data[0] + 4:data[0] + half]
                           + last[header[0]:])
    yield "no-first-keyframe", remuxed(whole, folder / "no-first.mp4", lambda number, key: number > 0)
    yield "no-keyframes", remuxed(whole, folder / "none.mp4", lambda number, key: not key)
    yield "no-parameters", changed(last, (*TABLES, "stsd"), lambda body: body.replace(b"avcC", b"free"))
    yield "other-codec", changed(last, (*TABLES, "stsd"), lambda body: body.replace(b"avc1", b"zzzz"))
    yield "sizes-zero", changed(last, (*TABLES, "stsz"), lambda body: body[:12] + bytes(len(body) - 12))
    yield "durations-zero", changed(last, (*TABLES, "stts"), lambda body: body[:12] + bytes(4) + body[16:])
    yield "twice", first + first


def links(folder: Path, whole: bytes):
    """Make what is not a regular file, or can't be opened: name -> path."""
    paths = {name: folder / f"{name}.mp4" for name in ("folder", "pipe", "dangling", "loop", "forbidden")}
    paths["folder"].mkdir()
    os.mkfifo(paths["pipe"])
    paths["dangling"].symlink_to(folder / "gone.mp4")
    paths["loop"].symlink_to(paths["loop"])
    paths["forbidden"].write_bytes(whole)
    paths["forbidden"].chmod(0)
    return paths


def toy_piece(project: Path) -> Path:
    """Return a prepared chunk of 300 frames."""
    return max((project / "outputs/toy/Ego4D_Chunked").glob("*/0.mp4"), key=lambda path: path.stat().st_size)


def make(piece: Path, folder: Path) -> dict[str, Path]:
    """Make every damaged file, by name; always the same files for the same chunk."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    whole = piece.read_bytes()
    paths = {}
    for name, data in contents(whole, scratch):
        paths[name] = folder / f"{name}.mp4"
        paths[name].write_bytes(data)
    shutil.rmtree(scratch)
    return paths | links(folder, whole)


def indices(name: str, length: int) -> list[int]:
    """Return the first, middle and last frame, five at random, and one beyond the end."""
    rng = np.random.default_rng(len(name))
    return [0, length // 2, length - 1, *rng.integers(0, length, 5).tolist(), length]


def examine(path: Path, reader: str, clean: np.ndarray) -> dict:
    """Read some frames of a file: {"length", "frames", "errors": [[index, type, message], …]}.

    A frame is [index, error of the number in the picture (None: illegible), mean difference from the clean frame].
    """
    from egokit.data.video import open_video
    from egokit.toy import read_frame_number
    result = {"length": None, "frames": [], "errors": []}
    try:
        length = result["length"] = open_video.open_video(path, reader).length
        wanted = indices(path.stem, length)
    except Exception as error:
        result["errors"].append([None, type(error).__name__, str(error)])
        return result
    for index in wanted:
        try:
            frame = open_video.open_video(path, reader).read([index])[0]
        except Exception as error:
            open_video.forget(path)
            result["errors"].append([index, type(error).__name__, str(error)])
            continue
        try:
            number = read_frame_number(frame)
        except ValueError:
            number = None
        expected = index + FIRST.get(path.stem, 0)
        same = expected < len(clean) and frame.shape == clean.shape[1:]
        difference = round(float(np.abs(frame - clean[expected].astype(float)).mean()), 2) if same else 255.0
        result["frames"].append([index, number if number is None else number - expected, difference])
    open_video.forget(path)
    return result


def main(reader: str, seconds: str, piece: str, *paths: str) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even while it is inside native code
    av.logging.set_level(None)
    with av.open(piece) as container:
        clean = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    for path in paths:
        print(json.dumps({"at": path}), flush=True)
        signal.setitimer(signal.ITIMER_REAL, float(seconds))
        began = time.monotonic()
        result = examine(Path(path), reader, clean)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(result | {"seconds": round(time.monotonic() - began, 3)}), flush=True)


def probe(paths: dict[str, Path], piece: Path, reader: str, seconds: float, log: Path) -> dict[str, dict]:
    """Examine every file in processes that may die; restart after the file that killed one.

    Returns:
        name -> what `examine` returns, or {"died": the process's exit code at this file}; SIGALRM ends a hang.
    """
    results: dict[str, dict] = {}
    names = list(paths)
    while names:
        with open(log, "w+") as output:
            command = [sys.executable, __file__, reader, str(seconds), str(piece), *map(str, map(paths.get, names))]
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, timeout=60 + seconds * len(names),
                                  text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
            output.seek(0)
            lines = [json.loads(line) for line in output]
        for line in lines:
            if "at" in line:
                current = names.pop(0)
                results[current] = {"died": done.returncode, "stderr": done.stderr[-2000:]}
            else:
                results[current] = line
        if not lines:
            raise RuntimeError(f"no file was reached:\n{done.stderr}")
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
