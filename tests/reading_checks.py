"""Checks of one file of the reading campaign: what the reader gives, against what ffmpeg shows."""
import re
from pathlib import Path

import numpy as np
import torch
from reading_studio import Case, number_in
from reading_truth import TICK, Truth, alike, difference

from egokit.data.video import clips, open_video, transforms


def several(numbers) -> str:
    """Return '5 (first 17)' for the numbers of frames."""
    return f"{len(numbers)} (first {numbers[0]})"


def check_whole(path: Path, video, shown: Truth, say) -> None:
    """Compare a whole file's pictures and times."""
    if abs(video.width / video.height / shown.aspect - 1) > 0.03:
        say(f"shape {video.width} x {video.height}, but a player shows {shown.aspect:.3f}:1")
    if video.length != len(shown.times):
        say(f"{video.length} frames, ffmpeg shows {len(shown.times)}")
    count = min(video.length, len(shown.times))
    pictures = video.read(range(count))
    wrong = [n for n in range(count) if not alike(pictures[n], shown.pictures[n], shown.limits)]
    if wrong:
        mean, most = difference(pictures[wrong[0]], shown.pictures[wrong[0]])
        say(f"another picture at {several(wrong)} of {count} frames (by {mean:.1f} levels, {most:.0f} at most)")
    streamed = video.stream_frames(range(0, count, 7))
    first = next(iter(streamed)).copy()
    if not alike(first, shown.pictures[0], shown.limits) or sum(1 for _ in streamed) != len(range(0, count, 7)) - 1:
        say("stream_frames gives other frames than read")
    times = np.asarray(video.time_of(np.arange(count)))
    late = np.flatnonzero(np.abs(times - shown.times[:count]) > shown.tick)
    if len(late):
        say(f"another time at {several(late)} of {count} frames: {times[late[0]]:.4f} s, ffmpeg "
            f"{shown.times[late[0]]:.4f} s")
    if abs(video.start - shown.times[0]) > TICK:
        say(f"starts at {video.start:.4f} s, ffmpeg at {shown.times[0]:.4f} s")
    ends = np.append(shown.times[1:], shown.times[-1] + np.median(np.diff(shown.times)) if count > 1 else 1.0)
    if not shown.times[-1] + 0.0005 < video.seconds < ends[-1] + 3.5:
        say(f"ends at {video.seconds:.3f} s, its last picture is shown from {shown.times[-1]:.3f} s")
    asked = np.concatenate([shown.times + (ends - shown.times) * share for share in (0.12, 0.5, 0.88)])
    asked = asked[np.abs(asked[:, None] - shown.times).min(1) > TICK]     # the reader rounds by 1 ms
    right = np.array([shown.at(time) for time in asked])
    missed = np.flatnonzero(np.asarray(video.frame_at(asked)) != right)
    if len(missed) and shown.tick == TICK:
        say(f"another frame at {len(missed)} of {len(asked)} times: at {asked[missed[0]]:.4f} s "
            f"{video.frame_at(float(asked[missed[0]]))}, ffmpeg {right[missed[0]]}")
    if (np.asarray(video.frame_at(times)) != np.arange(count)).any() and shown.tick == TICK:
        say("frame_at(time_of(n)) is not n")
    if int(video.frame_at(-100.0)) != 0 or int(video.frame_at(1e6)) != video.length - 1:
        say("times outside the video don't give its first and last frame")
    check_clips(path, video, shown, say)


def check_clips(path: Path, video, shown: Truth, say) -> None:
    """Compare `read_clip` at the start, the middle and the end of a file, and in its longest gap."""
    if len(shown.times) < 9:
        return
    step, size = float(np.median(np.diff(shown.times))), min(video.width, video.height)
    gap = int(np.argmax(np.diff(shown.times)))
    begin, end = shown.times[0], shown.times[-1]
    spans = [(begin + 0.01, begin + 0.5), (begin + 0.4 * (end - begin), begin + 0.6 * (end - begin)), (end - 0.4, end)]
    if shown.times[gap + 1] - shown.times[gap] > 4 * step:
        spans.append((shown.times[gap] + step, shown.times[gap + 1] - step))
    for start, stop in spans:
        stop = min(stop, end)
        if start < 0 or stop - start < 1e-3:
            continue
        try:
            clip = clips.read_clip(path, start, stop, frames=4, size=size, resize=size)
        except (ValueError, RuntimeError) as error:
            say(f"read_clip {start:.2f}-{stop:.2f} s: {str(error).splitlines()[-1][-160:]}")
            continue
        for place, pixels in enumerate(clip):
            time = start + (place + 0.5) / 4 * (stop - start)
            near = range(shown.at(time - 2.1 * step), shown.at(time + 2.1 * step) + 1)  # spans are cut to frames
            pictures = transforms.normalise(transforms.evaluation(shown.pictures[near[0]:near[-1] + 1], size, size))
            if not any(close(pixels, expected, shown.limits) for expected in pictures):
                say(f"read_clip {start:.2f}-{stop:.2f} s: another picture at {time:.2f} s")
                break


def close(a: torch.Tensor, b: torch.Tensor, limits: tuple[float, float]) -> bool:
    """Return whether two normalised pictures (3, H, W) are alike."""
    mean, std = (np.array(part, np.float32) for part in (transforms.MEAN, transforms.STD))
    a, b = (np.asarray(part.permute(1, 2, 0)) * std * 255 + mean * 255 for part in (a, b))
    return alike(a, b, limits)


def check_damaged(path: Path, case: Case, before: Truth, say) -> None:
    """Compare what is left of a damaged file with the pictures before the damage, in both policies."""
    numbers = {number_in(pixels): n for n, pixels in enumerate(before.pictures)}

    def origin(pixels) -> int | None:
        """Return which picture of the undamaged file this one is, or None."""
        n = numbers.get(number_in(pixels))
        return n if n is not None and alike(pixels, before.pictures[n]) else None

    video = open_video.open_video(path, tolerant=True)
    pictures = video.read(range(video.length))
    times = np.asarray(video.time_of(np.arange(video.length)))
    origins = [origin(pixels) for pixels in pictures]
    made_up = [n for n, source in enumerate(origins) if source is None]
    if made_up and not case.silent:
        say(f"what there is: a picture that the film doesn't have at {several(made_up)} of {video.length} frames")
    found = [n for n, source in enumerate(origins) if source is not None]
    shift = np.median([times[n] - before.times[origins[n]] for n in found]) if case.shifted else 0.0
    reported = [n for n in range(video.length) if any(start - TICK <= times[n] < stop for start, stop in video.damaged)]
    moved = [n for n in found if abs(times[n] - before.times[origins[n]] - shift) > TICK and n not in reported]
    if moved and not case.silent:
        say(f"what there is: the picture of another time, unreported, at {several(moved)} of {video.length} frames")
    exact = {origins[n] for n in found if abs(times[n] - before.times[origins[n]] - shift) <= TICK}
    if len(before.times) - len(exact) > case.lost:                # of silent damage, too
        say(f"what there is: {len(before.times) - len(exact)} of {len(before.times)} frames lost, {case.lost} expected")
    if len(reported) > case.lost:
        say(f"what there is: {len(reported)} frames reported as damaged, {case.lost} expected")
    open_video.forget(path)

    refused, wrong = [], []
    try:
        strict = open_video.open_video(path)
    except open_video.VideoError as error:
        if not case.strict or case.strict not in str(error) or str(path) not in str(error):
            say(f"strict: not opened: {error}")
        return
    for n in range(strict.length):
        try:
            strict = open_video.open_video(path)
            pixels = strict.read([n])[0]
        except open_video.VideoError as error:
            open_video.forget(path)             # as `clips` does: a decoder that failed is not used again
            refused.append(n)
            if str(path) not in str(error) or not re.search(r"\d s\b", str(error)):
                say(f"strict: the error names no file and time: {error}")
            continue
        source = origin(pixels)
        if source is None or abs(float(strict.time_of(n)) - before.times[source] - shift) > TICK:
            wrong.append(n)
    if wrong and not case.silent:
        say(f"strict: another picture, without an error, at {several(wrong)} of {strict.length} frames")
    if len(refused) > case.lost:
        say(f"strict: {len(refused)} of {strict.length} frames refused, {case.lost} expected")
