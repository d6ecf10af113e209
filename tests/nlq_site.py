"""NLQ's annotations of the tiny data set, as the tests of its features need them."""
import collections
import json

from mq_features import RECIPE

FUSED = "task.feature_kind=fused"
SPLITS = ("train", "val", "test_unannotated")
TASK = "from egokit.tasks.nlq_features import NLQFeatures\n\n\nclass NLQ(NLQFeatures):\n    pass\n"
Site = collections.namedtuple("Site", "config documents root")


def questions_of(number: int) -> list[dict]:
    """Return the annotations of a clip: two people's, questions of several lengths, one without a text."""
    return [{"annotation_uid": f"first-{number}", "language_queries": [
                {"query": "Where did I put the red cup ??", "clip_start_sec": 1.0, "clip_end_sec": 2.5},
                {"query": None, "clip_start_sec": 1.0, "clip_end_sec": 2.0},
                {"query": "what", "clip_start_sec": 3.0, "clip_end_sec": 3.0}]},
            {"annotation_uid": f"second-{number}", "language_queries": [
                {"query": "How many " + "plates and " * 20 + "spoons?", "clip_start_sec": 0.5, "clip_end_sec": 4}]}]


def write_nlq(root) -> dict[str, dict]:
    """Write nlq_*.json of the clips of moments_*.json; return the documents by split."""
    documents, number = {}, 0
    for split in SPLITS:
        document = json.loads((root / f"moments_{split}.json").read_text())
        for video in document["videos"]:
            for clip in video["clips"]:
                clip["annotations"] = questions_of(number)
                number += 1
        documents[split] = document
        save_nlq(root, split, document)
    return documents


def save_nlq(root, split: str, document: dict) -> None:
    """Write one nlq_*.json; the test split's questions have no times."""
    text = json.dumps(document)
    if split == "test_unannotated":
        text = json.dumps(json.loads(text, object_hook=lambda entry: {
            key: value for key, value in entry.items() if key not in ("clip_start_sec", "clip_end_sec")}))
    (root / f"nlq_{split}.json").write_text(text)


def site_with_questions(resolve, copied, folder) -> Site:
    """Make a copy of the tiny data set with questions, of the fixtures `resolve` and `copied`.

    Returns:
        config: (overrides, recipe) -> config of a task in a file of its own, whose class is NLQFeatures; with a recipe
            that recipe's. documents: of nlq_*.json, by split. root: the copy's.
    """
    on_copy, root = copied
    file = folder / "nlq.py"
    file.write_text(TASK)

    def config(overrides: str = "", recipe: str = ""):
        own = "" if recipe else f"task={file}:NLQ task.feature_frames=4 "
        return on_copy(resolve(recipe or RECIPE, f"data.limit=0 {own}{overrides}", run="random"))
    return Site(config, write_nlq(root), root)
