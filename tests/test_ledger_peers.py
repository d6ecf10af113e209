"""Other models' published numbers in the ledger: which file a run is of, whose conditions it is compared with."""
import hashlib
import math
from types import SimpleNamespace

import pytest
from test_ledger import REAL, TASK, evaluated

from egokit import cli, tasks
from egokit.config.build import flatten
from egokit.config.registry import build_config
from egokit.jobs.run_job import of_peer
from egokit.runs import ledger, ledger_table
from egokit.runs.ledger import registered
from egokit.runs.run_folder import Run
from egokit.viz import tables

LAVILA = {"data.eval_resize": 224, "data.eval_max_tokens": 77}
BASE = "clip_openai_timesformer_base.narrator_rephraser.ep_0005"
PEERS = [(task, peer) for task in dict.fromkeys(task for task, _ in registered()) for peer in task.peers]


@pytest.fixture(autouse=True)
def _recipes(project):
    """The published recipes are those of the project's params/."""


def peer_section(notebook, init, frames, metrics, changes=LAVILA, **more):
    """A section of metrics.json: an evaluation of another family's model with its own recipe."""
    task = tasks.find(TASK[notebook])
    recipe = changes | {"data.eval_frames": frames}
    return evaluated(notebook, **recipe) | {"family": "LaViLa", "frames": frames, "samples": task.samples or 846,
                                            "init": init} | metrics | more


def rows_of(path, notebook, section):
    """The ledger's rows of a run with this section."""
    name = tasks.find(TASK[notebook]).actions()["evaluate"]
    run = Run(path / notebook / "mine")
    (run.path / "metrics.json").unlink(missing_ok=True)
    run.write_metrics(name, section)
    read = ledger.read(path)
    assert read.left_out == []
    return read.entries


@pytest.mark.parametrize("name", [f"{BASE}.md5sum_d73a9c.pth", f"{BASE}.pth", f"{BASE}.safetensors", BASE,
                                  f"{BASE.upper()}.PTH".replace("PTH", "pth"), "renamed.md5sum_d73a9c.pt"])
@pytest.mark.parametrize("frames, published", [(4, (29.7, 31.5)), (16, (30.9, 32.0))])
def test_a_released_file_is_known_by_its_name_and_compared_at_its_frames(tmp_path, name, frames, published):
    section = peer_section("03_ek100", f"weights/{name}", frames, {"mAP": 29.0, "nDCG": 31.0})
    found = rows_of(tmp_path, "03_ek100", section)
    assert [(row.model, row.result.published, row.recipe) for row in found] == [
        ("LaViLa TSF-B", number, []) for number in published]
    other = rows_of(tmp_path, "03_ek100", peer_section("03_ek100", name, 8, {"mAP": 29.0}))
    assert other[0].recipe == [f"8 frames, published {other[0].result.frames}"]


@pytest.mark.parametrize("name", ["own.pth", f"{BASE}0.pth", f"my_{BASE}.pth", f"{BASE}.md5sum_d73a9c/own.pth",
                                  "hf:openai/clip-vit-base-patch16", "docs/examples/own.py:Own"])
def test_another_file_has_no_published_number(tmp_path, name):
    row, = rows_of(tmp_path, "03_ek100", peer_section("03_ek100", name, 4, {"mAP": 29.0}))
    assert row.result.published != row.result.published, "NaN"
    assert row.recipe[:4] == ["4 frames", "frames of 224 px", "resized to 224 px", "texts of at most 77 tokens"]
    assert not any("published" in phrase or "EgoVLPv2" in phrase for phrase in row.recipe)
    text = ledger_table.format_ledger(ledger.read(tmp_path))
    assert "no number is published for it" in text.replace("\n   ", "")


@pytest.mark.parametrize("init, family", [
    ("mine.py:Own:weights/egovlp.pth", "Own"), ("mine.py:Own:weights/egovlp.pth", "EgoVLP"), ("hf:me/egovlp", "CLIP"),
    ("weights/egovlp", "SigLIP"), ("weights/egovlp.pth", "AVION"), (f"{BASE}.pth", "EgoVLP")])
def test_another_model_of_a_released_files_name_is_another_model(tmp_path, init, family):
    row, = rows_of(tmp_path, "03_ek100", peer_section("03_ek100", init, 4, {"mAP": 29.0}, family=family))
    assert math.isnan(row.result.published) and row.model not in ("EgoVLP", "LaViLa TSF-B")


def test_an_egovlpv2_of_a_released_files_name_is_no_peer(tmp_path):
    section = evaluated("03_ek100") | {"samples": 9668, "init": "mine/egovlp.pth", "mAP": 22.0}
    row, = rows_of(tmp_path, "03_ek100", section)
    assert (row.model, row.result.published) == ("egovlp.pth", 26.7)


def test_a_released_files_name_with_another_sum_is_told(tmp_path):
    told = [rows_of(tmp_path, "03_ek100", peer_section("03_ek100", f"{BASE}{part}.pth", 4, {"mAP": 29.0},
                                                       init_md5=md5 + 26 * "0"))[0].recipe
            for part, md5 in (("", "d73a9c"), (".md5sum_d73a9c", "ffffff"), ("", "ffffff"))]
    assert told == [[], *2 * [["a file of the released one's name, with the MD5 sum ffffff, not d73a9c"]]]
    of_egovlp = rows_of(tmp_path, "03_ek100", peer_section("03_ek100", "EgoVLP_PT_BEST.pth", 4, {"mAP": 22.0},
                                                           init_md5=32 * "f"))
    assert not any("MD5" in phrase for row in of_egovlp for phrase in row.recipe), "nobody published its sum"


def test_a_renamed_file_is_known_by_its_sum(tmp_path):
    file = tmp_path / "checkpoint_best.pt"
    file.write_bytes(b"weights")
    said = of_peer(SimpleNamespace(family="AVION"), str(file))
    assert said == {"family": "AVION", "init_md5": hashlib.md5(b"weights").hexdigest()}
    assert of_peer(SimpleNamespace(family="CLIP"), "hf:some/model") == {"family": "CLIP"}
    section = peer_section("03_ek100", str(file), 16, {"mAP": 33.0}, init_md5="91a90b" + 26 * "0", precision="fp16")
    section["recipe"] |= {"evaluate.precision": "fp16"}
    row, = rows_of(tmp_path, "03_ek100", section)
    assert (row.model, row.result.published) == ("AVION ViT-B", 32.9)
    assert row.recipe == ["its README has mAP 33.2 at 16 frames"]
    in_fp32 = rows_of(tmp_path, "03_ek100", section | {"precision": "fp32"})
    assert in_fp32[0].recipe[0] == "evaluated in fp32, published in fp16"


def test_two_sources_of_one_file_are_both_shown(tmp_path):
    section = peer_section("03_ek100", "EgoVLP_PT_BEST.pth", 4, {"mAP": 22.0}, LAVILA | {"data.eval_resize": 256})
    own, by_lavila = rows_of(tmp_path, "03_ek100", section)
    assert (own.model, own.result.published) == ("EgoVLP", 16.6)
    assert own.recipe == [own.result.note] and "extracted as pictures" in own.result.note
    assert (by_lavila.model, by_lavila.result.published) == ("EgoVLP, by LaViLa", 22.1)
    assert by_lavila.recipe == ["resized to 256 px, published 224"]
    converted = rows_of(tmp_path, "03_ek100", section | {"init": "egovlp_converted_f16.md5sum_c33363.pth"})
    assert [row.result.published for row in converted] == [16.6, 22.1]


def test_egomcqs_scores_are_compared_with_their_own_kind(tmp_path):
    metrics = {"dual_inter": 90.0, "dual_intra": 58.0, "dot_inter": 91.0, "dot_intra": 59.0}
    found = {row.result.metric: row for row in rows_of(tmp_path, "05_egomcq", peer_section(
        "05_egomcq", f"{BASE}.pth", 4, metrics))}
    assert found["dot_intra"].result.published == 59.9
    assert found["dot_intra"].recipe == ["evaluated in fp32, published in fp16"]
    assert all(not found[name].result.published >= 0 for name in ("dual_inter", "dual_intra", "dot_inter"))
    assert {row.model for row in found.values()} == {"LaViLa TSF-B"}
    ours = evaluated("05_egomcq") | {"samples": 39751, "init": "EgoVLPv2.pth", "ensemble_intra": 61.0,
                                     "dual_intra": 57.0}
    Run(tmp_path / "05_egomcq" / "ours").write_metrics("egomcq", ours)
    rows = ledger_table.tables(ledger.read(tmp_path))["EgoMCQ"]
    beside = [(row.model, row.run, row.value) for row in rows if row.metric == "intra-video, dual"]
    assert ("EgoVLPv2", "05_egomcq/ours", 57.0) in beside, "its cosine stands beside another model's"
    assert ("EgoVLP, 4 frames", "", None) in beside
    egovlp = rows_of(tmp_path, "05_egomcq", peer_section("05_egomcq", "egovlp.pth", 4, metrics,
                                                         LAVILA | {"data.eval_resize": 256}))
    assert [row.result.published for row in egovlp if row.result.metric == "dual_inter" and row.run.endswith("mine")] \
        == [90.7]


def test_a_fine_tuned_file_that_is_evaluated_stands_beside_fine_tuned_numbers(tmp_path):
    name = "clip_openai_timesformer_large.ft_ek100_mir.ep_0095.md5sum_bd508b.pth"
    row, = rows_of(tmp_path, "03_ek100", peer_section("03_ek100", name, 16, {"mAP": 50.0}))
    assert (row.result.name, row.result.published) == ("EK-100 MIR mAP, fine-tuned", 50.9)


def test_a_table_a_benchmark_with_what_has_no_run_here(tmp_path, capsys):
    Run(tmp_path / "03_ek100" / "b").write_metrics("zeroshot", peer_section("03_ek100", f"{BASE}.pth", 4, {"mAP": 29.}))
    Run(tmp_path / "04_charades_ego" / "c").write_metrics("zeroshot", evaluated("04_charades_ego") | {
        "mAP": 26.0, "samples": 846, "init": "EgoVLPv2_smallproj_epoch1.pth"})
    cli.main(["ledger", "--outputs", str(tmp_path)])
    first, second = capsys.readouterr().out.rstrip().split("\n\n")
    assert first.startswith("EK-100 MIR, %") and second.startswith("Charades-Ego, %"), "EgoMCQ has no run"
    assert max(map(len, first.splitlines())) <= 120
    lines = [line.split() for line in first.splitlines()]
    assert ["LaViLa", "TSF-B,", "4", "frames", "03_ek100/b", "29.7", "29.0", "-0.7"] in lines
    assert ["AVION", "ViT-L,", "16", "frames", "–", "37.6", "–", "–"] in lines
    assert ["EgoVLPv2", "–", "26.7", "–", "–"] in lines
    assert "nDCG" not in first and "fine-tuned" not in first, "nothing of these was measured"
    assert sum(line[:1] == ["LaViLa"] and "29.7" in line for line in lines) == 1
    html = tables.ledger(tmp_path).to_html()
    assert html.count("<table") == 2 and "AVION ViT-L, 16 frames" in html and "37.6" in html


def test_published_numbers_name_their_file_frames_and_source():
    for task, peer in PEERS:
        assert peer.name.startswith(task.title) and peer.source and peer.frames in (4, 16), peer
        assert peer.checkpoint or peer.md5, peer
        assert peer.published is None or 10 < peer.published < 100, peer
        assert peer.section in task.actions().values()
        config = build_config({"task.name": TASK[task.notebook]} | peer.own_recipe())
        assert config.data.eval_max_tokens == 77 and config.data.eval_frames == peer.frames
        assert flatten(peer.own_recipe())["data.eval_resize"] in (224, 256)
    known = {(task.title, peer.model, peer.frames, peer.metric, peer.name): peer.published for task, peer in PEERS}
    assert len(known) == len(PEERS), "each number once"
    assert not {93.8, 94.5} & {peer.published for _, peer in PEERS}, "which nobody could check"


@pytest.mark.parametrize("field, value", [("family", 3), ("init_md5", ["91a90b"]), ("frames", "4"), ("frames", -1),
                                          ("frames", 0)])
def test_a_damaged_section_of_a_peer_is_left_out(tmp_path, field, value):
    section = REAL | {"task": "ek100", "family": "X", "mAP": 20.0, "init": f"{BASE}.pth", field: value}
    Run(tmp_path / "03_ek100" / "mine").write_metrics("zeroshot", section)
    read = ledger.read(tmp_path)
    if field == "frames" and value in (0, -1):
        assert len(read.entries) + len(read.left_out) == 1
    else:
        assert not read.entries and f"{field!r} of section 'zeroshot' is" in read.left_out[0]
