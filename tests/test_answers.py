"""Words for a head's classes, heads on stored vectors for their model, and questions that a model answers."""
import os

import pytest
import torch
from class_heads import WIDTH, WORDS, answering_model, equal
from torch import nn

import egokit
from egokit.model import feature_model, weights
from egokit.model.checkpoints import WeightsError
from egokit.model.class_head import ClassHead
from egokit.model.egovlp import EgoVLP
from egokit.model.feature_model import FeatureModel


@pytest.fixture
def model(resolve):
    return answering_model(resolve)


def test_answers_name_the_classes(model, tmp_path):
    model.head = ClassHead(WIDTH, len(WORDS))
    weights.save(model, tmp_path / "a.pt")
    file, path = tmp_path / "answer_set.txt", tmp_path / "a.pt"
    for text in ("\n".join(WORDS), "\n".join(WORDS) + "\n", "\ufeff" + "\r\n".join(WORDS) + "\r\n"):
        file.write_bytes(text.encode())
        assert egokit.load(path, answers=file).head.classes == tuple(WORDS)
    assert egokit.load(path, answers=str(file)).head.classes == tuple(WORDS)
    named = egokit.load(path, answers=tuple(WORDS))
    weights.save(named, tmp_path / "named.pt")
    assert egokit.load(tmp_path / "named.pt", answers=WORDS).head.classes == tuple(WORDS)
    file.write_text("yes\n\nno\n")
    (tmp_path / "latin").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "none.txt").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for answers, message in (
            (WORDS[:3], r"answers: 3 answers, but the head of .*a\.pt has 4 classes: give the answer_set\.txt"),
            (file, r"answer_set\.txt: class 1 is called ''.*expected a file with an answer a line"),
            (tmp_path / "latin", "latin: .*expected a file with an answer a line"),
            (tmp_path / "none.txt", r"none\.txt: 0 answers, but the head"),
            (tmp_path / "missing.txt", r"missing\.txt does not exist; expected the answer_set\.txt"),
            (tmp_path / "pipe", "pipe: expected a regular file"), (tmp_path, "expected a file with an answer a line"),
            (["yes", 3, "a", "b"], "answers: class 1 is called '3'.*expected the path"), (3, "answers: .*got '3'")):
        with pytest.raises(WeightsError, match=message):
            egokit.load(path, answers=answers)
    with pytest.raises(WeightsError, match=r"words of its own, and its class 2 is 'the red cup', not 'a cup' \(both"):
        egokit.load(tmp_path / "named.pt", answers=[*WORDS[:2], "a cup", WORDS[3]])
    model.head = None
    weights.save(model, path)
    with pytest.raises(WeightsError, match=r"a\.pt has no head of classes that answers= could name: give a checkpoint"):
        egokit.load(path, answers=WORDS)


def stored_head(path, head):
    """Write a checkpoint of a head that was trained on stored vectors."""
    stored = FeatureModel()
    stored.head = head
    weights.save(stored, path, step=3)
    return path


def test_a_head_on_stored_vectors_is_given_to_its_model(model, tmp_path):
    head = stored_head(tmp_path / "head.pt", model.head)
    loaded = feature_model.load(head)
    assert loaded.head.settings() == model.head.settings() and equal(loaded.head, model.head)
    with pytest.raises(WeightsError, match=r"holds a task's own modules alone .*egokit\.load\(model, head=…\)"):
        egokit.load(head)
    whole, model.head = model.head, None
    weights.save(model, tmp_path / "base.pt")
    both = egokit.load(tmp_path / "base.pt", head=head)
    model.head = whole
    assert equal(both, model) and not both.head.training
    weights.save(both, tmp_path / "both.pt")
    alone = egokit.load(tmp_path / "both.pt")
    assert equal(alone, model) and alone.head.classes == (*WORDS,)
    run = tmp_path / "run/checkpoints"
    run.mkdir(parents=True)
    stored_head(run / "best.pt", ClassHead(WIDTH, 4))
    assert egokit.load(tmp_path / "base.pt", head=tmp_path / "run", answers=WORDS).head.classes == (*WORDS,)
    stored_head(tmp_path / "video.pt", ClassHead(16, 4, reads="video"))
    assert egokit.load(tmp_path / "base.pt", head=tmp_path / "video.pt").head.reads == "video"
    for base, other, message in (
            ("both.pt", ClassHead(WIDTH, 4), r"both\.pt has a head already, and head=.* would replace it"),
            ("base.pt", ClassHead(31, 4), r"other\.pt: its head reads 'fusion' states of width 31, but the mod"),
            ("base.pt", nn.Linear(WIDTH, 4), r"other\.pt has no head of classes that egokit can build.*head_init")):
        stored_head(tmp_path / "other.pt", other)
        with pytest.raises(WeightsError, match=message):
            egokit.load(tmp_path / base, head=tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"base\.pt is no checkpoint of a head on stored features"):
        egokit.load(tmp_path / "base.pt", head=tmp_path / "base.pt")


def test_a_model_answers_in_words(model, monkeypatch):
    torch.manual_seed(0)
    frames, questions = torch.randn(3, 4, 3, 64, 64), ["what is it?", "is it open?", "which cup?"]
    told = model.answer(frames, questions, k=2)
    with torch.no_grad():
        expected_BK = model.head(model.fused_video(model.fusion_trunk(frames), model.tokens(questions), 4)).softmax(-1)
    for row, expected_K in zip(told, expected_BK, strict=True):
        assert [word for word, _ in row] == [WORDS[number] for number in expected_K.topk(2).indices]
        assert [chance for _, chance in row] == pytest.approx(expected_K.topk(2).values.tolist(), abs=1e-5)
    all_told = model.answer(frames[:1], questions[0], k=9)[0]
    assert {word for word, _ in all_told} == {*WORDS} and sum(chance for _, chance in all_told) == pytest.approx(1)
    assert [chance for _, chance in all_told] == sorted((chance for _, chance in all_told), reverse=True)
    assert model.answer(frames, [f"  {question.upper()} " for question in questions], k=2) == told
    assert model.answer(frames, model.tokens(questions), k=2) == told
    assert len(model.answer(frames[:0], questions[:1])) == 0

    calls = {"fusion_trunk": 0, "text_trunk": 0}
    for name in calls:
        def counted(*inputs, name=name):
            calls[name] += 1
            return getattr(EgoVLP, name)(model, *inputs)
        monkeypatch.setattr(model, name, counted)
    monkeypatch.setattr("egokit.model.input_checks.FRAMES_ON_CPU", 4)  # one clip at once
    for clips, texts, expected in ((frames[:1], questions, [1, 3]), (frames, questions[0], [3, 1]),
                                   (frames[:1], questions[:1], [1, 1])):
        calls |= dict.fromkeys(calls, 0)
        assert len(model.answer(clips, texts)) == max(len(clips), 1 if isinstance(texts, str) else len(texts))
        assert [*calls.values()] == expected


def test_a_head_that_reads_the_clip_alone_takes_no_question(model):
    model.head = ClassHead(16, WORDS, reads="video").eval()
    frames = torch.randn(2, 4, 3, 64, 64)
    told = model.answer(frames, k=1)
    with torch.no_grad():
        expected = model.head(model.encode_video(frames)).argmax(-1)
    assert [row[0][0] for row in told] == [WORDS[number] for number in expected]
    with pytest.raises(ValueError, match="reads the clip alone: leave the question out"):
        model.answer(frames, "what is it?")


def test_what_cannot_be_answered_is_said(model):
    frames = torch.zeros(2, 4, 3, 64, 64)
    for question, k, message in ((None, 5, "answers a question about the clip: give one"),
                                 (["a"] * 3, 5, "2 clips but 3 texts"), ([], 5, "one string or several"),
                                 ([3], 5, "one string or several"), ("a", 0, "k=0: expected a whole number of at"),
                                 ("a", 2.5, "k=2.5: expected"), ("a", True, "k=True: expected")):
        with pytest.raises(ValueError, match=message):
            model.answer(frames, question, k)
    with pytest.raises(ValueError, match="expected normalised floats"):
        model.answer(frames + 255, "a")
    for head, message in ((None, r"has no head of classes to answer with: load a checkpoint with one"),
                          (nn.Linear(2, 2), "has no head of classes"),
                          (ClassHead(WIDTH, 4), r"the 4 classes of this model's head have no words.*answers=…"),
                          (ClassHead(31, WORDS), "reads states of width 31, but the model's 'fusion' states have 32")):
        model.head = head
        with pytest.raises(ValueError, match=message):
            model.answer(frames, "a")
