"""The quickstart's pictures: what they say is what the model and the files say."""
import re

import numpy as np
import pytest
import torch
from conftest import MODEL, SMALL

import egokit
from egokit import look, tasks
from egokit.look import inside
from egokit.runs import Run
from egokit.tasks.egomcq import clip_key
from egokit.transforms import normalise


@pytest.fixture(scope="module")
def ready(project, checkpoint):
    """(model with open gates and random weights, the tiny EgoMCQ)."""
    from egokit.resolve import resolve
    config = resolve("toy/egomcq", "tiny", f"{MODEL} {SMALL} data.limit=0", "random")
    return egokit.load(checkpoint, tokenizer=config.site.tokenizer), tasks.make(config)


def said(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_fusion_shows_every_gate_and_maps_that_add_up(ready, tmp_path):
    model, task = ready
    with torch.no_grad():
        model.text.layers[-1].gate.fill_(-0.25)
    question = look.question(task, 0)
    pixels = question.pixels[question.answer]
    figure = look.fusion(model, pixels, question.text, Run(tmp_path))
    towers, *pictures = figure.axes
    gates = [block.text.gate.item() for block in model.video.blocks if block.text is not None] + [-0.25]
    assert sorted(text for text in said(towers) if re.fullmatch(r"[+−]\d\.\d\d", text)) == sorted(
        f"{gate:+.2f}".replace("-", "−") for gate in gates)
    assert [text for text in said(towers) if text.startswith("video ")] == [f"video {n + 1}" for n in range(model.config.depth)]
    frames = normalise(pixels)[None]
    probability, maps = inside.word_maps(model, frames, question.text, len(model.text.layers) - 1)
    assert probability == pytest.approx(model.match(frames, [question.text]).item())
    assert f"{probability:.2f}" in figure.get_suptitle()
    assert maps.shape[1:] == (len(pixels), 4, 4) and (maps >= 0).all() and (maps.sum((1, 2, 3)) < 1.001).all()
    assert (maps.sum((1, 2, 3)) > 0.5).all(), "what is left is the attention to the video's CLS"
    first = len(pixels)  # the first row is the clip itself
    word = re.match("where “(.*)” looks, in text layer 2", pictures[first].get_title(loc="left"))[1]
    i = inside_words(model, question.text).index(word)
    assert [axis.get_xlabel() for axis in pictures[first:first + len(pixels)]] == [
        f"{100 * share:.0f} % of its attention" for share in maps[i].sum((1, 2))]


def inside_words(model, text):
    from egokit.language import load_tokenizer
    return load_tokenizer(model.tokenizer_source).words(model.tokens([text])["input_ids"][0])


def test_reranking_finds_by_cosine_and_orders_anew_by_the_sum(ready, tmp_path):
    model, task = ready
    text, dataset = task.texts[0], task.dataset("test")
    pixels = torch.stack([dataset[0, v]["video"] for v in range(len(dataset))])
    cosine = egokit.similarity(model.encode_text([text]), model.encode_video(normalise(pixels)))[0]
    found = cosine.topk(10).indices
    both = cosine[found] + model.match(normalise(pixels[found]), [text])
    figure = look.reranked(model, task, text, Run(tmp_path), clips=10 ** 6)
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert ["was" in label for label in labels] == [False] * 5 + [True] * 5
    assert [float(re.search(r"-?\d\.\d\d", label)[0]) for label in labels[:5]] == pytest.approx(cosine[found[:5]].tolist(), abs=0.006)
    order = both.argsort(descending=True)[:5].tolist()
    assert [int(re.search(r"was (\d+)\.", label)[1]) - 1 for label in labels[5:]] == order
    assert f"of {len(dataset)} clips" in figure.axes[0].get_title(loc="left")
    asked = task.questions[0]["query"]
    about = {clip_key(clip): clip for five in task.choices for clip in five}
    for label, v in zip(labels, found[:5].tolist(), strict=False):
        clip = about[task.clips[v]]
        same = (clip["tag_verb"] == asked["tag_verb"]) + (clip["tag_noun"] == asked["tag_noun"])
        assert f" {'✗◐✓'[same]} " in label and clip["clip_text"][:20] in label
    free = look.reranked(model, task, "a text that no narration has", clips=12)
    assert not re.search("[✗◐✓]", free.axes[0].get_xlabel()) and "of 12 clips" in free.axes[0].get_title(loc="left")


def test_published_numbers_stand_beside_those_that_are_there(tmp_path):
    run = Run(tmp_path / "00_quickstart/mine")
    Run(tmp_path / "05_egomcq/other").write_metrics("egomcq", {"ensemble_inter": 99.0})
    Run(tmp_path / "03_ek100/mine").write_metrics("zeroshot", {"mAP": 12.34})
    axis = look.published(run).axes[0]
    texts = dict(zip([tick.get_text() for tick in axis.get_yticklabels()], said(axis), strict=True))
    assert texts["EK-100 MIR mAP, zero-shot"] == "26.7 published, 12.3 here"
    assert texts["EgoMCQ inter-video, ensemble"] == "91.0 published, not yet here: run 05_egomcq"
    drawn = {line.get_label(): np.array(line.get_xdata(), float) for line in axis.lines}
    assert drawn["published, real data"][0] == 91.0 and np.isfinite(drawn["here"]).sum() == 1
    assert not (tmp_path / "05_egomcq/mine").exists(), "looking makes no run folders"
