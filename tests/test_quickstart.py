"""The quickstart's pictures show the numbers of the model and the files."""
import re

import numpy as np
import pytest
import torch
from conftest import MODEL, SMALL, opened

import egokit
from egokit import tasks, viz
from egokit.data.video.transforms import normalise
from egokit.runs.run_folder import Run
from egokit.viz import attention


@pytest.fixture(scope="module")
def ready(project, checkpoint):
    """Return a model with open gates and random weights, and the tiny EgoMCQ."""
    from egokit.config.resolve import resolve
    config = resolve("toy/egomcq", "tiny", f"{MODEL} {SMALL} data.limit=0", "random")
    return egokit.load(checkpoint, tokenizer=config.site.tokenizer), tasks.make(config)


def texts_in(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_fusion_shows_every_gate_and_the_maps_of_the_widest(ready, tmp_path):
    from egokit.config.resolve import resolve
    task = ready[1]
    model = opened(resolve("toy/pretrain", "tiny", MODEL.replace("num_fused_layers=1", "num_fused_layers=2")))
    with torch.no_grad():
        model.text.layers[0].gate.fill_(-0.9)
    question = viz.question(task, 0)
    pixels, T = question.pixels[question.answer], len(question.pixels[0])
    figure = viz.fusion(model, pixels, question.text, Run(tmp_path))
    towers, *pictures = figure.axes
    gates = sorted(text for text in texts_in(towers) if re.fullmatch(r"[+−]\d\.\d\d", text))
    assert gates == ["+0.70", "+0.70", "+0.70", "−0.90"]
    assert [text for text in texts_in(towers) if text.startswith("video ")] == ["video 1", "video 2"]
    frames = normalise(pixels)[None]
    probability, maps = attention.word_maps(model, frames, question.text, 0)
    assert probability == pytest.approx(model.match(frames, [question.text]).item())
    assert f"{probability:.2f}" in figure.get_suptitle()
    assert maps.shape[1:] == (T, 4, 4) and (maps >= 0).all()
    assert (maps.sum((1, 2, 3)) < 1.001).all(), "the rest is for the video's CLS"
    first = pictures[T:2 * T]  # the first row is the clip itself
    word = re.match("where “(.*)” looks, in text layer 1", first[0].get_title(loc="left"))[1]
    i = words_of_tokens(model, question.text).index(word)
    shares = maps[i].sum((1, 2))
    assert [axis.get_xlabel() for axis in first] == [f"{100 * share:.0f} % of its attention" for share in shares]
    maps_of_next_layer = attention.word_maps(model, frames, question.text, 1)[1]
    assert np.abs(maps_of_next_layer - maps).max() > 0.01


def test_the_maps_are_the_attention_that_the_model_uses(ready):
    """With two equal heads, a word reads the values of CLS and patches, weighted by its map."""
    model, task = ready
    layer, read = model.text.layers[-1].video, []
    with torch.no_grad():
        for linear in (layer.query, layer.key):
            for parameter in (linear.weight, linear.bias):
                first_head, second_head = parameter.chunk(2)
                second_head.copy_(first_head)
    hook = layer.register_forward_hook(lambda module, inputs, output: read.append((inputs[1], output)))
    try:
        frames = viz.question(task, 0).frames[:1]
        _, maps = attention.word_maps(model, frames, task.texts[0], len(model.text.layers) - 1)
    finally:
        hook.remove()
    (source, output), patches = read[-1], torch.from_numpy(maps).flatten(1)
    weights = torch.cat([1 - patches.sum(1, keepdim=True), patches], dim=1)
    with torch.no_grad():
        assert torch.allclose(layer.dense(weights @ layer.value(source)[0]), output[0], atol=1e-4)


def words_of_tokens(model, text):
    from egokit.model.text_encoder import load_tokenizer
    return load_tokenizer(model.tokenizer_source).words(model.tokens([text])["input_ids"][0])


def test_reranking_finds_by_cosine_and_orders_anew_by_the_sum(ready, tmp_path):
    model, task = ready
    text, dataset = task.texts[0], task.dataset("test")
    pixels = torch.stack([dataset[0, v]["video"] for v in range(len(dataset))])
    cosine = egokit.similarity(model.encode_text([text]), model.encode_video(normalise(pixels)))[0]
    best = cosine.topk(10).indices
    ensemble = cosine[best] + model.match(normalise(pixels[best]), [text])
    figure = viz.reranked(model, task, text, Run(tmp_path), clips=10 ** 6)
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert ["was" in label for label in labels] == [False] * 5 + [True] * 5
    shown = [float(re.search(r"-?\d\.\d\d", label)[0]) for label in labels[:5]]
    assert shown == pytest.approx(cosine[best[:5]].tolist(), abs=0.006)
    order = ensemble.argsort(descending=True)[:5].tolist()
    assert [int(re.search(r"was (\d+)\.", label)[1]) - 1 for label in labels[5:]] == order
    assert f"of {len(dataset)} clips" in texts_in(figure.axes[0])[0]
    narration = task.questions[0]["query"]
    for label, v in zip(labels, best[:5].tolist(), strict=False):
        clip = task.entries[v]
        same = (clip["tag_verb"] == narration["tag_verb"]) + (clip["tag_noun"] == narration["tag_noun"])
        assert f" {'✗◐✓'[same]} " in label and clip["clip_text"][:20] in label
    free = viz.reranked(model, task, "a text that no narration has", clips=12)
    assert not re.search("[✗◐✓]", free.axes[0].get_xlabel()) and "of 12 clips" in texts_in(free.axes[0])[0]


def test_published_numbers_stand_beside_those_that_are_there(tmp_path):
    run = Run(tmp_path / "00_quickstart/mine")
    Run(tmp_path / "05_egomcq/other").write_metrics("egomcq", {"ensemble_inter": 99.0})
    Run(tmp_path / "03_ek100/mine").write_metrics("zeroshot", {"mAP": 12.34})
    axis = viz.published(run).axes[0]
    texts = dict(zip([tick.get_text() for tick in axis.get_yticklabels()], texts_in(axis), strict=True))
    assert texts["EK-100 MIR mAP, zero-shot"] == "26.7 published, 12.3 here"
    assert texts["EgoMCQ inter-video, ensemble"] == "91.0 published, not yet here: run 05_egomcq"
    drawn = {line.get_label(): np.array(line.get_xdata(), float) for line in axis.lines}
    assert drawn["published, real data"][[*texts].index("EgoMCQ inter-video, ensemble")] == 91.0
    assert np.isfinite(drawn["here"]).sum() == 1
    assert not (tmp_path / "05_egomcq/mine").exists(), "looking makes no run folders"
