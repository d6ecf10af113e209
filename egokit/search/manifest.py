"""The manifest of an index folder: which videos it holds, and how they were read."""
from pathlib import Path

from egokit.config.json_file import COUNT, LARGEST_LIST, read_json
from egokit.config.names import check_name, check_path_within

LINE = {"video": str, "name": str}
CLIPS = range(1 << 40)  # all of an index together can be counted
INDEXED = LINE | {"bytes": COUNT, "modified_ns": int, "clips": CLIPS, "start": float, "seconds": float,
                  "damaged": ({"share": float, "times": [[float]]}, ...)}
MANIFEST = {"videos": [INDEXED], "unreadable": [LINE | {"reason": str}], "dimension": (range(1 << 20), ...),
            "reading": (COUNT, ...)}  # the fields of manifest.json beside the settings


def read_manifest(folder: Path) -> dict:
    """Return the manifest of an index folder, which may be another user's; {} where there is none.

    Raises:
        ValueError: it is damaged, or names something outside of its folder; the message says what to do.
    """
    path, fix = folder / "manifest.json", f"move {folder} away: the index is made again"
    manifest = read_json(path, MANIFEST, fix, LARGEST_LIST) or {}
    if manifest.get("videos") and "dimension" not in manifest:
        raise ValueError(f"{path}: 'dimension' is missing, which is expected beside videos; {fix}")
    for kind in ("videos", "unreadable"):
        for number, line in enumerate(manifest.get(kind, [])):
            try:
                check_name(line["name"])
                if kind == "videos":
                    check_path_within(line["video"])
            except ValueError as error:
                raise ValueError(f"{path}, {kind} {number}: {line!r:.200}: {error}; {fix}") from None
    return manifest
