"""Pictures and notebooks' steps for a model without a fusion encoder."""
import numpy as np
import pytest
import torch
from own_duals import made

import egokit
from egokit import tasks, viz
from egokit.model import weights
from egokit.model.dual import FusionError
from egokit.runs.run_folder import Run
from egokit.train.evaluate import evaluate
from egokit.viz import queries

__all__ = ["made"]  # a fixture


def test_pictures_take_the_score_that_there_is(made, checkpoint, resolve, tmp_path):
    """The questions of EgoMCQ with cosines and dot products, alone and beside EgoVLPv2's."""
    task, model = made("egomcq")
    runs = {"own": Run(tmp_path / "own"), "other": Run(tmp_path / "other")}
    task.save_outputs(runs["own"], "egomcq", *evaluate(model, task)[1:])
    fused = tasks.make(resolve("toy/egomcq", "data.limit=0", run="random"))
    fused.save_outputs(runs["other"], "egomcq", *evaluate(weights.initial_model(fused.config), fused)[1:])
    content = queries.make_queries(task, queries.sides(runs["own"], "egomcq", runs["other"]))
    scores = task.score_matrix(runs["own"].read_rows("egomcq")[0])
    assert np.array_equal(content.right_SK[0], scores["dual"].argmax(1) == task.answers)
    ensemble = fused.score_matrix(runs["other"].read_rows("egomcq")[0])["ensemble"]
    assert np.array_equal(content.right_SK[1], ensemble.argmax(1) == task.answers)
    assert "what dual or ensemble chose" in content.legend and "dot: dot product" in content.legend
    assert content.hits(0, 0)[0].scores.keys() == {"dual", "dot"}
    page = viz.browser(task, runs["own"], "egomcq").data
    assert "what dual chose" in page and "fusion" not in page and "corrects" not in page
    axes = viz.accuracy_by_word(task, runs["own"], "egomcq").axes
    assert axes[0].get_xlabel() == "dual accuracy, %"
    captions = [text for axis in viz.questions(task, runs["own"], "egomcq", 2).axes
                for text in [axis.get_title(), axis.get_xlabel(), *(part.get_text() for part in axis.texts)]]
    assert any("dual " in text and "dot " in text for text in captions), captions


def test_pictures_of_the_fusion_encoder_are_refused_and_re_ranking_is_left_out(made):
    task, model = made("egomcq")
    question = viz.question(task, 0, model=model)
    assert torch.equal(question.frames, model.normalise(question.pixels))
    headings = str([text.get_text() for axis in viz.reranked(model, task, question.text).axes for text in axis.texts])
    assert "by cosine" in headings and "fusion" not in headings
    for draw in (lambda: viz.fusion(model, question.pixels[0], question.text),
                 lambda: viz.answer_attention(model, question.pixels[0], ["what is it?"])):
        with pytest.raises(FusionError, match="Colours has no fusion encoder, which a picture"):
            draw()


def test_notebooks_leave_out_what_a_model_can_not_do(made, tmp_path, capsys):
    task, model = made("ek100_finetune")
    run = Run(tmp_path)
    run.config = task.config
    assert egokit.submit_training(run, "finetune") is None and viz.watch(None) == {}
    assert "not trained: init names own_dual.py:Colours (own)" in capsys.readouterr().out
    task.save_outputs(run, "zeroshot", *evaluate(model, task)[1:])
    assert egokit.scored(run, "finetune", "zeroshot") == ["zeroshot"]
    viz.retrieval_by_word(task, run, *egokit.scored(run, "zeroshot", "finetune"))
