"""QFVS: the goldens, the matching against all permutations, damaged annotations, and the rows beside every number."""
import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import qfvs_site
from conftest import ROOT
from golden_inputs import golden

from egokit import cli
from egokit.tasks.qfvs import baselines
from egokit.tasks.qfvs.annotations import read_videos
from egokit.tasks.qfvs.matching import Score, best_shots, budget, match, overlaps, summary_score
from egokit.tasks.qfvs.results import mean_score

GOLDEN = golden("golden_taskqa_qfvs")["qfvs"]


@pytest.mark.parametrize("case", GOLDEN["matching"], ids=lambda case: case["name"])
def test_the_originals_matching(case):
    score = summary_score(np.array(case["tags"]), case["machine"], case["truth"])
    assert score == pytest.approx((case["precision"], case["recall"], case["f1"] or 0), abs=1e-9)


def test_the_originals_summary():
    case = GOLDEN["summary"]
    tags = np.zeros((len(case["tags"]), case["concepts"]), dtype=bool)
    for shot, concepts in enumerate(case["tags"]):
        tags[shot, concepts] = True
    assert budget(len(tags), case["share"]) == case["budget"]
    scores = []
    for values, oracle, expected in zip(case["scores"], case["oracle_zero_based"], case["queries"], strict=True):
        picked = best_shots(np.array(values), case["share"])
        assert picked.tolist() == expected["picked_sorted"]
        scores.append(summary_score(tags, picked, oracle))
        assert scores[-1] == pytest.approx(tuple(expected[name] for name in Score._fields), abs=1e-9)
    assert mean_score(scores) == pytest.approx(tuple(case["mean"][name] for name in Score._fields), abs=1e-9)


@pytest.mark.parametrize("kind", ["normal", "few values", "negative", "equal"])
def test_the_matching_is_the_best_of_all(kind):
    numbers = np.random.default_rng(0)
    draw = {"normal": lambda shape: numbers.normal(size=shape), "equal": lambda shape: np.full(shape, 0.5),
            "few values": lambda shape: numbers.choice([0, 0.25, 1 / 3, 0.5, 1], shape),
            "negative": lambda shape: -numbers.integers(1, 5, shape)}[kind]
    for shape in itertools.product(range(1, 7), repeat=2):
        weights = draw(shape)
        pairs = match(weights)
        assert len(pairs) == min(shape) and all(len(set(side)) == len(pairs) for side in pairs.T.tolist())
        assert pairs[:, 0].tolist() == sorted(pairs[:, 0])
        narrow = weights if shape[0] <= shape[1] else weights.T
        best = max(sum(narrow[row, column] for row, column in enumerate(order))
                   for order in itertools.permutations(range(narrow.shape[1]), narrow.shape[0]))
        assert weights[pairs[:, 0], pairs[:, 1]].sum() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_matches_nothing(shape):
    assert match(np.zeros(shape)).shape == (0, 2)


def test_a_large_matching_is_quick():
    numbers = np.random.default_rng(0)
    tags = [numbers.random((200, 48)) < numbers.random(48) ** 4 for _ in range(2)]
    began = time.process_time()
    match(overlaps(*tags))
    assert time.process_time() - began < 1


def test_overlaps_of_shots():
    tags = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=bool)
    assert overlaps(tags, tags) == pytest.approx(np.array([[1, 0, 1 / 3], [0, 0, 0], [1 / 3, 0, 1]]))


def test_empty_summaries_score_0():
    tags = np.ones((3, 2), dtype=bool)
    assert summary_score(tags, [], [1]) == summary_score(tags, [1], []) == (0, 0, 0)


def test_of_equal_scores_the_earlier_shots_are_chosen():
    assert best_shots(np.array([1, 2, 2, 1, 2, 0]), 0.5).tolist() == [1, 2, 4]
    assert best_shots(np.array([1, 1, 1, 1]), 0.5).tolist() == [0, 1] and not len(best_shots(np.ones(10), 0.05))


def test_annotations_are_read(tmp_path):
    videos = read_videos(qfvs_site.write(tmp_path))
    assert [*videos] == ["P01", "P02"] and [*videos["P01"].queries] == ["Book_Street", "Car_Hands"]
    assert videos["P02"].tags.tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0] * 5]
    query = videos["P01"].queries["Book_Street"]
    assert query.concepts == (0, 4) and query.oracle.tolist() == [0, 2, 9]
    assert [user.tolist() for user in query.users] == [[0, 2, 9], [2, 3]]
    assert not videos["P02"].queries["Book_Street"].users


ORACLE = "Query-Focused_Summaries/Oracle_Summaries/P01/Book_Street_oracle.txt"
TAGS = "Dense_per_shot_tags/P01/P01.txt"


@pytest.mark.parametrize("file, text, message", [
    ("Dense_per_shot_tags/Dictionary.txt", "'Book'\n'Car'\n'Book'\n", "Dictionary.txt, line 3: \"'Book'\"; expected"),
    ("Dense_per_shot_tags/Dictionary.txt", "'Book'\n'a/b'\n", "Dictionary.txt, line 2"),
    ("Dense_per_shot_tags/Dictionary.txt", "\n", "Dictionary.txt: it is empty"),
    (TAGS, "Book\nBook,Bok\n", "P01.txt, line 2: 'Bok' is no concept"), (TAGS, "", "P01.txt: it is empty"),
    (TAGS, "Book\n", "Book_Street_oracle.txt, line 2: '3'; expected the number of a shot, 1 to 1"),
    (ORACLE, "1\n0\n", "Book_Street_oracle.txt, line 2: '0'; expected the number of a shot, 1 to 10"),
    (ORACLE, "1\n3\n1\n", "line 3: '1'"), (ORACLE, "1\n2.5\n", "line 2: '2.5'"), (ORACLE, "-1\n", "line 1: '-1'"),
    (ORACLE, "9" * 5000, "line 1: '9999"), (ORACLE, "\n", "it names no shot"), (ORACLE, b"\xff\xfe1", "not UTF-8 text"),
    (ORACLE.replace("Oracle_", "User_").replace("_oracle", "_user1"), "11\n", "Book_Street_user1.txt, line 1: '11'"),
    (ORACLE.replace("Book_Street", "Book_Boat"), "1\n", "query 'Book_Boat'; expected two concepts of Dictionary.txt"),
    (ORACLE.replace("Book_Street", "Book"), "1\n", "query 'Book'; expected two concepts"),
    (ORACLE.replace("P01/", "P03/"), "1\n", "P03.txt is missing; docs/qfvs.md")])
def test_a_damaged_line_is_named(tmp_path, file, text, message):
    path = qfvs_site.write(tmp_path) / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_videos(tmp_path)
    assert message in str(error.value) and len(str(error.value)) < 400


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Dense_per_shot_tags is missing; give --root the folder"):
        read_videos(tmp_path)
    oracles = qfvs_site.write(tmp_path) / "Query-Focused_Summaries/Oracle_Summaries"
    (oracles / "P04").mkdir()
    (tmp_path / "Dense_per_shot_tags/P04").mkdir()
    (tmp_path / "Dense_per_shot_tags/P04/P04.txt").write_text("Book\n")
    with pytest.raises(ValueError, match=r"P04: it has no <A>_<B>_oracle\.txt"):
        read_videos(tmp_path)


def test_text_of_windows_is_read(tmp_path):
    path = qfvs_site.write(tmp_path) / TAGS
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    videos = read_videos(tmp_path)
    assert videos["P01"].tags.shape == (10, 5) and videos["P01"].tags[0].tolist() == [1, 0, 0, 1, 0]


def test_the_shots_of_every_row(tmp_path):
    """Each row's shots are what its name says."""
    videos = read_videos(qfvs_site.write(tmp_path))
    video = videos["P01"]

    def shots(title: str, query: str = "Book_Street", count: int = 3) -> list[list[int]]:
        return [sorted(chosen.tolist()) for chosen in baselines.ROWS[title]("P01", video, query, count)]
    assert shots("evenly spaced shots") == [[1, 5, 8]] and shots("shots with the query's tags") == [[1, 3, 9]]
    same = "the same shots for all queries"
    assert shots(same) == shots(same, "Car_Hands") == [[0, 1, 2]]
    assert shots("another query's oracle") == [[0, 1, 5, 8]] * 10 and shots("one person") == [[0, 2, 9], [2, 3]]
    assert shots("the oracle, cut to the budget", count=2) == [[0, 2]]
    drawn = shots("random shots")
    assert len(drawn) == 10 and drawn == shots("random shots") != shots("random shots", "Car_Hands")
    assert all(len(set(chosen)) == 3 and chosen[0] >= 0 and chosen[-1] < 10 for chosen in drawn)


def test_shots_with_the_querys_tags_go_on_with_others(tmp_path):
    """First those with both concepts, then those with one, then the rest; evenly spaced among equals."""
    video = read_videos(qfvs_site.write(tmp_path))["P01"]
    for count, expected in ((1, [9]), (2, [9, 2]), (6, [9, 0, 1, 2, 3, 6]), (8, [9, 0, 1, 2, 3, 6, 5, 8])):
        chosen, = baselines.tagged("P01", video, "Book_Street", count)
        assert chosen.tolist() == expected


def test_scores_of_rows(tmp_path):
    """Against scores by hand; a row has no video in which it has no summary."""
    rows = baselines.scores(read_videos(qfvs_site.write(tmp_path)), 0.3)
    assert [*rows] == [*baselines.ROWS] and set(rows["random shots"]) == {"P01", "P02"}
    assert set(rows["one person"]) == set(rows["another query's oracle"]) == {"P01"}
    # of Book_Street one person is the oracle, the other has (Book, Street) for (Book,Hands), (Book), (Book,Street)
    of_street = np.array([1 + 1.5 / 2, 1 + 1.5 / 3, 1 + 2 * 1.5 / 5]) / 2
    of_hands = np.array([1, 0.5, 2 / 3])
    assert rows["one person"]["P01"] == pytest.approx(tuple((of_street + of_hands) / 2))
    assert rows["the oracle, cut to the budget"]["P02"] == pytest.approx((1, 0.5, 2 / 3))


@pytest.fixture
def score(tmp_path, capsys):
    """A function: document, further arguments -> what the command prints."""
    qfvs_site.write(tmp_path / "QFVS")

    def printed(document, *more):
        (tmp_path / "mine.json").write_text(json.dumps(document))
        cli.main(["score", "qfvs", str(tmp_path / "mine.json"), "--root", str(tmp_path), "--share", "0.4", *more])
        return capsys.readouterr().out
    return printed


def lines(text: str, name: str) -> list[list[str]]:
    """The values of every line that begins with a name."""
    return [line.removeprefix(name).split() for line in text.splitlines() if line.startswith(f"{name} ")]


PERFECT = {video: {query: {"shots": shots} for query, shots in queries.items()}
           for video, queries in qfvs_site.ORACLES.items()}


def test_the_oracles_score_100_beside_the_rows(score):
    text = score(PERFECT)
    assert [lines(text, name) for name in Score._fields] == [[["100.00"] * 3]] * 3 and " count " not in text
    assert "3 queries" in text.splitlines()[0] and "P01 4, P02 2" in text.splitlines()[1] and "F1 says little" in text
    assert all(len(lines(text, title)) == 1 for title in baselines.ROWS)
    assert lines(text, "one person")[0][1] == "–" and lines(text, "evenly spaced shots")[0][0] != "–"


def test_scores_choose_the_budget_and_chosen_shots_are_the_same(score):
    best = {"P01": {"Book_Street": {"scores": [0, 9, 8, 7, 6.5, 0, -1, 0, 0, 1e3]}}}  # 4 of 10
    chosen = {"P01": {"Book_Street": {"shots": [10, 2, 3, 4]}}}
    found, same = (json.loads(score(document, "--json")) for document in (best, chosen))
    assert found["videos"] == same["videos"] and found["rows"] == same["rows"] and 0 < found["mean"]["f1"] < 100


def test_missing_queries_count_as_0_and_the_originals_way_stands_beside(score):
    part = {"P01": {"Book_Street": PERFECT["P01"]["Book_Street"]}}
    text = score(part)
    assert lines(text, "f1") == [["50.00", "0.00", "25.00"], ["100.00", "–", "100.00"]]
    assert "2 queries are not in the file: they count as 0" in text
    found = json.loads(score(part, "--json"))
    assert found["missing"] == 2 and found["answered"]["videos"] == {"P01": dict.fromkeys(Score._fields, 100)}


def test_what_counts_as_0_is_said(score):
    text = score({"P01": {"Book_Street": {"shots": [8]}, "Car_Hands": {"shots": []}},
                  "P02": {"Book_Street": {"shots": [1, 2, 3]}}})
    for remark in ("1 queries have no shots chosen", "1 summaries have no tag in common with the oracle's",
                   "1 summaries have more shots than that share"):
        assert remark in text


@pytest.mark.parametrize("document, message", [
    ([], "expected {\"P01\": "), ({"P01": []}, "expected {\"P01\": "), ({"P01": {}}, "it has no query"),
    ({"P1": {}}, "video 'P1' is not in the annotations; did you mean 'P01'?"),
    ({"P01": {"Street_Book": {"shots": []}}}, "query 'Street_Book': it is not in the annotations; known: Book_Street"),
    ({"P01": {"Book_Street": [1, 2]}}, "expected either {\"scores\""),
    ({"P01": {"Book_Street": {"scores": [], "shots": []}}}, "expected either {\"scores\""),
    ({"P01": {"Book_Street": {"shots": {}}}}, "'shots' is {}; expected a list"),
    ({"P01": {"Book_Street": {"shots": [1, 0]}}}, "'shots', place 2: 0; expected the number of a shot, 1 to 10"),
    ({"P01": {"Book_Street": {"shots": [11]}}}, "'shots', place 1: 11"),
    ({"P01": {"Book_Street": {"shots": [1.0]}}}, "'shots', place 1: 1.0"),
    ({"P01": {"Book_Street": {"shots": [True]}}}, "'shots', place 1: True"),
    ({"P01": {"Book_Street": {"shots": [3, 3]}}}, "names shot 3 twice"),
    ({"P01": {"Book_Street": {"scores": [0.5] * 9}}}, "'scores' has 9 numbers; expected 10, one a shot"),
    ({"P01": {"Book_Street": {"scores": [None] * 10}}}, "'scores', place 1: None; expected a number"),
    ({"P01": {"Book_Street": {"scores": [float("nan")] * 10}}}, "'scores', place 1: nan; expected a number"),
    ({"P01": {"Book_Street": {"scores": [10 ** 400] * 10}}}, "'scores', place 1: 1000")])
def test_a_damaged_result_is_one_line(score, capsys, document, message):
    with pytest.raises(SystemExit) as stopped:
        score(document)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and "mine.json" in error and len(error.splitlines()) == 1


def test_long_names_of_videos_stay_apart(tmp_path, capsys):
    root = qfvs_site.write(tmp_path)
    for path in sorted(root.rglob("P0*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(f"kitchen_{path.name}"))
    (tmp_path / "mine.json").write_text('{"kitchen_P01": {"Book_Street": {"shots": [1]}}}')
    cli.main(["score", "qfvs", str(tmp_path / "mine.json"), "--root", str(root)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "mean" in line]
    assert len(lines) == 3 and all(line.split()[-3:] == ["kitchen_P01", "kitchen_P02", "mean"] for line in lines)


@pytest.mark.parametrize("share", ["0", "1.1", "nan", "some"])
def test_the_share_is_checked(score, capsys, share):
    with pytest.raises(SystemExit, match="2"):
        score(PERFECT, "--share", share)
    assert "expected a share above 0, at most 1" in capsys.readouterr().err


def test_the_sites_folder_and_a_light_start(tmp_path):
    """Without --root it is the folder QFVS of the site's root; torch and pandas are not imported."""
    qfvs_site.write(tmp_path / "QFVS")
    (tmp_path / "mine.json").write_text(json.dumps(PERFECT))
    (tmp_path / "here.yaml").write_text(f"site:\n  root: {tmp_path}\n")
    code = ("import sys; from egokit import cli; cli.main(sys.argv[1:]); "
            "heavy = {'torch', 'pandas', 'matplotlib', 'transformers', 'scipy'} & set(sys.modules); "
            "assert not heavy, heavy")
    for where in (["--site", str(tmp_path / "here.yaml")], ["--root", str(tmp_path / "QFVS")]):
        done = subprocess.run([sys.executable, "-c", code, "score", "qfvs", str(tmp_path / "mine.json"), *where],
                              cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and f"against {tmp_path / 'QFVS'}: 3 queries" in done.stdout, done.stderr
