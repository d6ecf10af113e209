"""The ledger: published numbers against the runs', read from metrics.json."""
from egokit import cli, ledger
from egokit.look import tables
from egokit.runs import Run

REAL = {"finished": True, "action": "evaluate", "toy": False, "frames": 16, "precision": "fp32", "init_sha256": "0" * 12}


def test_a_run_of_the_published_recipe_and_others(tmp_path, capsys):
    Run(tmp_path / "05_egomcq" / "released").write_metrics("egomcq", REAL | {
        "ensemble_inter": 90.5, "ensemble_intra": 61.2, "dual_inter": 88.0, "samples": 39751, "init": "weights/EgoVLPv2.pth"})
    Run(tmp_path / "03_ek100" / "mine").write_metrics("zeroshot", REAL | {
        "mAP": 20.0, "samples": 100, "frames": 4, "precision": "bf16", "init": "other.pt"})
    Run(tmp_path / "03_ek100" / "tuned").write_metrics("zeroshot", REAL | {"mAP": 47.3, "samples": 9668, "init": "EK-100_finetune.pth"})
    Run(tmp_path / "03_ek100" / "older").write_metrics("finetune", {"mAP": 40.0, "finished": True})
    found = {(entry.run, entry.result.name): entry for entry in ledger.entries(tmp_path)}
    assert {run for run, _ in found} == {"05_egomcq/released", "03_ek100/mine", "03_ek100/tuned", "03_ek100/older"} and len(found) == 5
    assert found["05_egomcq/released", "EgoMCQ inter-video, ensemble"].recipe == []
    assert found["03_ek100/mine", "EK-100 MIR mAP, zero-shot"].recipe == [
        "100 samples, published on 9,668", "4 frames, published with 16",
        "checkpoint other.pt (000000000000), published of EgoVLPv2_smallproj.pth", "evaluated in bf16"]
    assert found["03_ek100/tuned", "EK-100 MIR mAP, fine-tuned"].recipe == []
    assert found["03_ek100/older", "EK-100 MIR mAP, fine-tuned"].recipe == ["its recipe is not recorded"]
    Run(tmp_path / "03_ek100" / "other").write_metrics("finetune", REAL | {
        "action": "train", "samples": 9668, "init": "EgoVLPv2_smallproj.pth", "mAP": 48.0, "mAP_dual_softmax": 50.0,
        "dual_softmax_temperature": 0.01, "retrieval_loss": "symmetric_multi_similarity"})
    plain, dual = [entry for entry in ledger.entries(tmp_path) if entry.run == "03_ek100/other"]
    trained = ["fine-tuned here from EgoVLPv2_smallproj.pth", "loss symmetric_multi_similarity, published with max_margin"]
    assert (plain.value, plain.recipe) == (48.0, trained) and (dual.value, dual.result.published) == (50.0, 47.3)
    assert dual.recipe == ["dual softmax over the whole test set (temperature 0.01), published without", *trained]
    table = tables.table([(entry.result, Run(tmp_path / "03_ek100" / "other").metrics()) for entry in (plain, dual)])
    assert table.data["published, real data"].isna().tolist() == [False, True], "no number is published of this"
    cli.main(["ledger", "--outputs", str(tmp_path)])
    said = capsys.readouterr().out
    assert "91.0      90.5        -0.5\n    the published recipe" in said
    html = tables.ledger(tmp_path).to_html()
    assert "the published recipe" in html and "-0.5" in html and "+0.3" in html
    assert ledger.lines([]).startswith("no run has a number that was published")
