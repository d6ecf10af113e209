"""Which parameters of an EgoVLP do what, by their names, and which of them a loss does not reach."""
import re
from collections.abc import Iterable

TRAINS = ("embeddings", "video", "fused_video", "all")  # what a loss can read of the model

FUSION = re.compile(r"fusion_|itm_head|word_head|(text|video)_(transform|pooler)|video\.blocks\.\d+\.text\.|"
                    r"text\.layers\.\d+\.(video\.|gate)")
# what lies behind the fused state of a clip, or beside it; {last} is the number of the last text layer
BESIDE_FUSED_VIDEO = (r"(text|video)_(projection|transform|pooler)\.|itm_head|word_head|video\.cls_token|video\.norm\.|"
                      r"text\.layers\.{last}\.")


def by_role(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of parameters by role.

    The roles are 'fusion' (ITM and MLM), 'projection', 'head' and 'own' (a task's), and 'backbone'.
    """
    roles: dict[str, list[str]] = {"fusion": [], "projection": [], "head": [], "own": [], "backbone": []}
    for name in names:
        place = name.partition(".")[0]
        roles[place if place in ("head", "own") else "fusion" if FUSION.match(name) else
              "projection" if "_projection." in name else "backbone"].append(name)
    return roles


def unused(names: Iterable[str], trains: str, depth: int) -> set[str]:
    """Return the names of parameters that get no gradient.

    Args:
        trains: what the loss reads: "embeddings" of the dual encoder, those of "video" alone, the "fused_video", or
            "all" of the model.
        depth: number of text layers.

    Raises:
        ValueError: `trains` is nothing of these.
    """
    if trains not in TRAINS:
        raise ValueError(f"trains is {trains!r}: expected one of {', '.join(TRAINS)}")
    names = list(names)
    if trains in ("embeddings", "video"):
        texts = {name for name in names if trains == "video" and name.startswith(("text.", "text_projection."))}
        return texts.union(by_role(names)["fusion"])
    beside = re.compile(BESIDE_FUSED_VIDEO.replace("{last}", str(depth - 1)))
    return {name for name in names if trains == "fused_video" and beside.match(name)}
