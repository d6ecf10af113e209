"""EgoTaskQA's vocabulary, accuracies, frames and rates equal the original's; question files, whole and damaged."""
import json
import math

import numpy as np
import pytest
from golden_inputs import golden
from taskqa_site import ANSWERS, entry, make_questions

from egokit.config.schema import OptimConfig
from egokit.data.video.frame_sampling import whole_video
from egokit.tasks.taskqa import accuracy, annotations, vocabulary
from egokit.train.optim import learning_rate

FIGURES = golden("golden_taskqa_qfvs")["egotaskqa"]


def test_vocabulary_of_the_original(tmp_path):
    expected = FIGURES["vocabulary"]
    words = vocabulary.build(expected["train_answers"])
    assert list(words) == expected["answer_set"]
    assert vocabulary.encode(expected["train_answers"], words, as_written=False) == expected["train_encoded"]
    assert vocabulary.encode(expected["val_answers"], words, as_written=True) == expected["val_encoded"]
    vocabulary.write(tmp_path / "answer_set.txt", words)
    assert vocabulary.read(tmp_path / "answer_set.txt") == words


def test_vocabulary_of_many_answers():
    """At most 4000 are counted, as written; a second spelling takes a place among them, but no class."""
    answers = [f"Thing {n}" for n in range(5000)] + ["THING 3", "THING 3", "thing 4999", "thing 4999"]
    words = vocabulary.build(answers)
    assert words[:5] == ("<UNK0>", "<UNK1>", "thing 3", "thing 4999", "thing 0") and len(words) == 2 + 4000 - 1
    assert vocabulary.build([]) == vocabulary.SPECIAL


def test_accuracy_of_the_original():
    expected = FIGURES["accuracy"]
    labels = [joined.split("$") for joined in expected["reasoning_types"]]
    found = accuracy.by_label(expected["predicted"], expected["answers"], labels)
    asked = {label for label, count in expected["questions"].items() if count}
    assert found.keys() == asked  # labels that occur nowhere are absent; the original says 0 for them
    for label, (share, count) in found.items():
        assert share == pytest.approx(expected["accuracy"][label], abs=1e-9) and count == expected["questions"][label]
    everything = accuracy.overall(expected["predicted"], expected["answers"])
    assert everything == (pytest.approx(expected["all_questions_accuracy"], abs=1e-9), len(labels))


def test_frames_of_the_original():
    """Ours may take a part's last frame in training, which the original's draw never does."""
    for case in FIGURES["frames"]:
        length, frames = case["video_frames"], case["frames"]
        assert np.linspace(0, length, frames + 1).astype(int).tolist() == case["edges"]
        assert whole_video(length, frames).tolist() == case["uniform"]
        drawn = np.array([whole_video(length, frames, np.random.default_rng(seed)) for seed in range(400)])
        low, high = np.array(case["edges"][:-1]), np.array(case["edges"][1:]) - 1
        assert (drawn >= low).all() and (drawn <= high).all()
        if "rand_lowest_ever" in case:  # else the original fails on a part of one frame
            seen = [set(column.tolist()) for column in drawn.T]
            assert all(set(range(first, last + 2)) & own for first, last, own in
                       zip(case["rand_lowest_ever"], case["rand_highest_ever"], seen, strict=True))
            assert (np.array(case["rand_lowest_ever"]) == low).all()
            assert (np.array(case["rand_highest_ever"]) < np.maximum(high, 1)).all()


def test_rates_of_the_original(project):
    """Step n here has the rate of step n + 1 there during the warm-up, so no step has rate 0; then both are equal."""
    from egokit.config.resolve import resolve
    expected = FIGURES["schedule"]
    config = resolve("egotaskqa_direct", "example").optim
    assert (config.lr, list(config.betas), config.eps, config.weight_decay) == (
        expected["peak"], expected["betas"], expected["eps"], expected["weight_decay"])
    per_epoch, steps = expected["steps_per_epoch"], expected["steps_per_epoch"] * expected["epochs"]
    assert int(config.warmup_epochs * per_epoch) == expected["warmup_steps"]
    for step, rate in expected["rate_of_step"].items():
        ahead = int(step) < expected["warmup_steps"]
        own = learning_rate(int(step) - ahead, steps, per_epoch, config) if int(step) or not ahead else 0.0
        assert own == pytest.approx(rate, rel=1e-8, abs=1e-15), step


def test_questions_are_read_without_what_others_need(tmp_path):
    make_questions(tmp_path)
    words = vocabulary.read(tmp_path / "direct/answer_set.txt")
    questions = annotations.read_questions(tmp_path / "direct/formatted_val_qas_encode.json", len(words))
    assert questions[0] == annotations.Question(
        "room-1|P1|0|48", "What is done with the cup?", words.index("open"),
        ("descriptive", "world", "action", "query", "direct"), "7", "open")
    assert [question.answer for question in questions[-2:]] == [1, 1]
    assert [question.is_binary(words) for question in questions[:3]] == [False, False, True]
    assert questions[0].text == "what is done with the cup?"
    document = [entry("room-1|P1|0|48", "Is it?", "yes", 2, "x") for _ in range(3000)]
    for fields in document:
        fields["question_char_encode"] = [[1] * 17] * 50
    path = tmp_path / "large.json"
    path.write_text(json.dumps(document))
    assert len(annotations.read_questions(path, 4)) == 3000


def test_open_and_binary_without_their_labels():
    def question(answer, labels, text=""):
        return annotations.Question("", "", answer, labels, "0", text)
    words = ("<UNK0>", "<UNK1>", "yes", "cup")
    asked = {question(2, ()): True, question(3, ()): False, question(2, ("query",)): False,
             question(3, ("verify", "world")): True, question(1, (), "Yes"): True, question(1, (), "Cup"): False}
    assert {each: each.is_binary(words) for each in asked} == asked


def naive(predicted, questions, words, split):
    """The report, question by question."""
    kinds = {}
    for guess, question in zip(predicted, questions, strict=True):
        form = "binary" if question.is_binary(words) else "open"
        for kind in {"all", form, *(f"/{label}" for label in question.labels)}:
            kinds.setdefault(kind, []).append(100.0 * (guess == question.answer))
    out = {f"{split}_{kind}": np.mean(kinds[kind]) for kind in ("all", "open", "binary") if kind in kinds}
    out |= {f"questions_{kind}": len(kinds.get(kind, ())) for kind in ("open", "binary")}
    out |= {f"accuracy{kind}": np.mean(right) for kind, right in kinds.items() if kind[0] == "/"}
    out |= {f"questions{kind}": len(right) for kind, right in kinds.items() if kind[0] == "/"}
    return out | ({f"{split}_as_published": out[f"accuracy/{split}"]} if f"accuracy/{split}" in out else {})


@pytest.mark.parametrize("split", ["direct", "indirect"])
def test_report_equals_a_naive_one(tmp_path, split):
    make_questions(tmp_path)
    words = vocabulary.read(tmp_path / split / "answer_set.txt")
    questions = annotations.read_questions(tmp_path / split / annotations.file_of("test"), len(words))
    random = np.random.default_rng(0)
    for _ in range(20):
        chosen = random.permutation(len(questions))[:random.integers(1, len(questions) + 1)]
        asked = [questions[number] for number in chosen]
        predicted = random.integers(-1, len(words), len(asked))
        found = accuracy.report(predicted, asked, words, split)
        assert found == pytest.approx(naive(predicted, asked, words, split))
        assert not any(math.isnan(value) for value in found.values())


def test_most_frequent_answer_of_each_form(tmp_path):
    make_questions(tmp_path)
    words = vocabulary.read(tmp_path / "direct/answer_set.txt")
    train, test = (annotations.read_questions(tmp_path / "direct" / annotations.file_of(split), len(words))
                   for split in ("train", "test"))
    guessed = accuracy.most_frequent(train, test, words)
    assert {words[guess] for guess, question in zip(guessed, test, strict=True) if question.is_binary(words)} == {"yes"}
    opened = {words[guess] for guess, question in zip(guessed, test, strict=True) if not question.is_binary(words)}
    assert opened == {"open"}
    only_open = [question for question in train if not question.is_binary(words)]
    assert set(accuracy.most_frequent(only_open, test, words)) == {words.index("open"), -1}


NAMES = {"../evil|P1|0|24": False, "a/b|P1|0|24": False, ".hidden|P1|0|24": False, "a|P1|24|24": False,
         "a|P1|0": False, "a|P1|-1|24": False, "a|Q1|0|24": False, "a|P1|0|2 4": False, "a\\b|P1|0|24": False,
         "a|P1|0|24\n": False, "": False, "|P1|0|24": False, "x" * 200 + "|P1|0|24": False,
         "30l-12-2-1|P2|17|640": True, "a|b|P1|0|24": True, "a..b|P1|0|24": True}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_clips(name):
    if NAMES[name]:
        clip = annotations.ClipName.parse(name)
        assert f"{clip.video}|P{clip.person}|{clip.start}|{clip.stop}" == name and clip.view == f"fpv{clip.person}"
    else:
        with pytest.raises(ValueError, match="expected"):
            annotations.ClipName.parse(name)


FAULTS = {
    "interval": (None, 7, "", "../x|P1|0|9", "a/b|P1|0|9", "a|P1|9|3", "nothing"),
    "question": (None, 3, "", "  ", "\ud800"),
    "answer_encode": (None, "2", 2.0, True, -1, len(ANSWERS), 10 ** 30),
    "reasoning_type": (None, ["world"], "a$\x1b[31m", "x" * 200),
    "answer": (3,),
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in FAULTS.items() for value in values])
def test_a_damaged_question_is_named(tmp_path, key, value):
    path = tmp_path / "formatted_val_qas_encode.json"
    good = entry("room-1|P1|0|48", "Is it?", "yes", 2, "world$verify$direct", question_id=41)
    bad = good | {key: value}
    if value is None:
        del bad[key]
    for document in ([good, bad], [good, bad | {"question_id": [{}]}]):
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=f"{path.name}, question 1.*{key}.*expected.*download") as caught:
            annotations.read_questions(path, len(ANSWERS))
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700


@pytest.mark.parametrize("text", ["", "{", "[{]", "{}", "[]", "3", "[3]", "[null]", "[[]]", "[" * 5000, "\x80"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "formatted_val_qas_encode.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path.name}.*(expected|not JSON).*download") as caught:
        annotations.read_questions(path, len(ANSWERS))
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700


@pytest.mark.parametrize("text", ["", "\n", "yes\n", "a\n\nb\n", "a\nb\na\n", "a\nb\x1b\n", "a\n" + "b" * 600,
                                  "\x80\n"])
def test_a_damaged_vocabulary_is_named(tmp_path, text):
    path = tmp_path / "answer_set.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"answer_set.txt.*download"):
        vocabulary.read(path)
    with pytest.raises(FileNotFoundError, match=r"none.txt is missing.*docs/data.md"):
        vocabulary.read(tmp_path / "none.txt")


def test_a_vocabulary_of_another_system_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf<UNK0>\r\n<UNK1>\r\nyes\r\nno")
    assert vocabulary.read(tmp_path / "a.txt") == ("<UNK0>", "<UNK1>", "yes", "no")


def test_defaults_of_the_optimizer_are_not_the_recipes():
    assert OptimConfig().betas != tuple(FIGURES["schedule"]["betas"])  # so the recipe's say something
