"""Verify what was made of a video: its length, its cuts, and what it shows."""
import threading
from pathlib import Path

from egokit.prep.measure import Film, scan
from egokit.prep.pictures import Comparison


def verify(source: Film, resized: Path, pieces: list[Path], chunk_seconds: float,
           stop: threading.Event | None = None) -> tuple[dict, list[dict]]:
    """Decode the outputs, look at them, and return their facts, with "status", and "reason" for a failed one.

    The resized video must be as long as the source, to a frame; if the source has a constant rate, it must have the
    same number of frames. The pieces must end at multiples of `chunk_seconds`, to a frame, and together hold every
    frame. All must show what the source shows at the same time, in the same shape.
    """
    early, late = source.plan()

    def look(path: Path, first: int) -> tuple[dict, str]:
        comparison = Comparison(source.pictures, early[first:], late[first:],
                                source.damaged[early[first:]] | source.damaged[late[first:]], float(source.rate),
                                min(source.canvas))
        facts = scan(path, stop, comparison.add).facts
        return facts, comparison.finish() or squeezed(source.facts, facts)

    facts, seen = look(resized, 0)
    judge(facts, check_length(source.facts, facts) or seen)
    lines, end = [], 0
    for number, path in enumerate(pieces, 1):
        line, seen = look(path, end)
        end += line["frames"]
        due = facts["frames"] if number == len(pieces) else number * chunk_seconds * facts["fps"]
        judge(line, check_cut(line, end, due, number == len(pieces)) or seen)
        lines.append(line)
    return facts, lines


def judge(output: dict, reason: str) -> None:
    """Give an output its "status", and its "reason" if it has failed."""
    output |= {"status": "failed", "reason": reason} if reason else {"status": "ok"}


def check_length(source: dict, resized: dict) -> str:
    """Return what is wrong with the resized video's length or rate, or ""."""
    if source["constant_rate"] and resized["frames"] != source["frames"]:
        return f"{source['frames']} frames became {resized['frames']}"
    if abs(resized["seconds"] - source["seconds"]) > 1.01 / resized["fps"]:
        return f"{source['seconds']:.3f} s became {resized['seconds']:.3f} s"
    return "" if resized["constant_rate"] else "its frame rate is not constant"


def check_cut(piece: dict, end: int, due: float, is_last: bool) -> str:
    """Return what is wrong with a piece that ends with frame `end` of the video, or ""."""
    if abs(end - due) > (0 if is_last else 1):
        return f"ends with frame {end} of the video, expected {due:.0f}"
    return "" if piece["constant_rate"] else "its frame rate is not constant"


def squeezed(source: dict, output: dict) -> str:
    """Return that the output's picture has another shape than the source's, or ""; even sides round it."""
    due = output["height"] * source["width"] / source["height"]
    if abs(output["width"] - due) <= 2 * max(1, source["width"] / source["height"]):
        return ""
    return (f"it is shown {output['width']} x {output['height']}, which squeezes the source's "
            f"{source['width']} x {source['height']}")
