"""EgoClip's table of Ego4D: egoclip.csv.

EgoMCQ's questions are in questions.py, EgoMQ's moments in moments.py, EgoNLQ's questions in language_queries.py. A clip
is a dict with the columns of EgoClip; its times are seconds in the full video.
"""
from pathlib import Path

from egokit.runs.files import write_text
from egokit.toy.schedule import ToyVideo, generator
from egokit.toy.words import ego4d_narration

COLUMNS = ("clip_idx", "video_uid", "video_dur", "narration_source", "narration_ind", "narration_time",
           "clip_start", "clip_end", "clip_text", "tag_verb", "tag_noun")


def clips(seed: int, videos: list[ToyVideo], first: int = 0) -> list[dict]:
    """Return one clip per action, numbered from `first`, with a little of the gaps around it."""
    rows: list[dict] = []
    for video in videos:
        random = generator(seed, "narration", video.uid)
        for i, action in enumerate(video.actions):
            colour = action.thing.colour if random.random() < 0.8 else None
            hand = {1: "right", -1: "left"}[action.motion.side] if random.random() < 0.2 else None
            style = int(random.choice(4, p=(0.85, 0.05, 0.05, 0.05)))
            # a clip never reaches the far half of a gap, where another object lies on the table
            start = action.start - random.uniform(0, 0.45) * action.gap_before
            stop = action.stop + random.uniform(0, 0.45) * action.gap_after
            rows.append({
                "clip_idx": first + len(rows), "video_uid": video.uid, "video_dur": float(video.seconds),
                "narration_source": f"narration_pass_{1 + i % 2}", "narration_ind": i,
                "narration_time": round(random.uniform(action.start, action.stop), 4),
                "clip_start": round(start, 4), "clip_end": round(stop, 4),
                "clip_text": ego4d_narration(action.verb, action.thing.noun, colour, hand, style),
                "tag_verb": [action.verb], "tag_noun": [action.thing.noun],
                # not a column: questions.py finds clips of the same object with it
                "colour": action.thing.colour,
            })
    return rows


def write_egoclip(path: Path, rows: list[dict]) -> int:
    """Write egoclip.csv, tab-separated, with five malformed rows among the good ones.

    Returns:
        The number of malformed rows.
    """
    lines = ["\t".join(str(row[column]) for column in COLUMNS) for row in rows]
    for i, malformed in enumerate(_malformed_rows(rows)):  # spread over the table, the first not at its top
        lines.insert((i + 1) * len(lines) // 7 + i, malformed)
    write_text(path, "\n".join(["\t".join(COLUMNS), *lines]) + "\n")
    return len(lines) - len(rows)


def _malformed_rows(rows: list[dict]) -> list[str]:
    """Return a malformed row of each kind.

    They have too few fields, too many fields, an open quote, a word as a time, and swapped times.
    """
    def fields(row: dict, **changed) -> list[str]:
        return [str({**row, **changed}[column]) for column in COLUMNS]
    last = rows[-1]["clip_idx"]
    few, many, quote, word, swapped = ({**rows[i], "clip_idx": last + 1 + i} for i in range(5))
    return [
        "\t".join(fields(few)[:6]),
        "\t".join([*fields(many), "narration_pass_2", "[3]"]),
        "\t".join(fields(quote, clip_text='"#C C picks up the')[:9]),
        "\t".join(fields(word, clip_start="unknown")),
        "\t".join(fields(swapped, clip_start=swapped["clip_end"], clip_end=swapped["clip_start"])),
    ]
