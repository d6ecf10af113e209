"""What each query contributes to a metric, and the paired bootstrap of differences."""
import json
import time

import numpy as np
import pytest

from egokit import tasks
from egokit.runs.run_folder import Run
from egokit.tasks import metrics, significance
from egokit.tasks.significance import NotPaired, paired_bootstrap


def naive_average_precision(scores, relevancy):
    """As the benchmark's code has it: graded relevancy summed up to each hit, over the rank; None without a hit."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    graded, precisions = 0.0, []
    for rank, item in enumerate(order, 1):
        graded += relevancy[item]
        if relevancy[item] == 1:
            precisions.append(graded / rank)
    return sum(precisions) / len(precisions) if precisions else None


def naive_ndcg(scores, relevancy):
    """DCG over as many places as there are relevant items, over the best that is possible; None without one."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    k = sum(value > 0 for value in relevancy)
    best = sum(value / np.log2(place + 2) for place, value in enumerate(sorted(relevancy, reverse=True)[:k]))
    return sum(relevancy[item] / np.log2(place + 2) for place, item in enumerate(order[:k])) / best if k else None


def drawn_rows(task, seed=0, size=8):
    """Random rows of an evaluation, and embeddings of its prompts."""
    rng = np.random.default_rng(seed)
    count = task.num_rows()
    rows = {"index": np.arange(count), "video": rng.standard_normal((count, size), np.float32)}
    rows |= {name: rng.random(count, np.float32) for name in ("dual", "fusion", "dot")}
    return rows, rng.standard_normal((len(task.prompts()), size), np.float32) if task.prompts() else None


@pytest.mark.parametrize("recipe, overrides", [
    ("toy/ek100_finetune", "task.dual_softmax=0.1"), ("toy/charades_finetune", ""), ("toy/egomcq", ""),
    ("toy/egomcq", "data.limit=11")])
def test_the_mean_of_what_queries_contribute_is_the_metric(resolve, recipe, overrides):
    task = tasks.make(resolve(recipe, f"init= {overrides}"))
    for seed in (0, 1):
        rows = drawn_rows(task, seed)
        whole, each = task.metrics(*rows), task.per_query(*rows)
        assert each.keys() == {name for name, value in whole.items() if not np.isnan(value)} and each
        for name, groups in each.items():
            assert np.mean([group.mean() for group in groups]) == pytest.approx(whole[name], rel=1e-12), name
            assert all(np.isfinite(group).all() for group in groups)


def test_a_task_that_does_not_say_contributes_nothing():
    assert tasks.Task.per_query(None, {}, None) == {}


def test_what_a_query_of_ek100_contributes_equals_the_naive_twin():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 6, (23, 17)) / 6  # with equal scores
    relevancy = rng.choice([0, 0, 0, 0.25, 0.5, 1], (23, 17))
    relevancy[4], relevancy[7], relevancy[:, 5] = 0, 0.5, 0  # queries without any relevant item, and without a hit
    each = metrics.retrieval_per_query(scores, relevancy)
    for way, s, r in (("V2T", scores, relevancy), ("T2V", scores.T, relevancy.T)):
        for name, naive in (("mAP", naive_average_precision), ("nDCG", naive_ndcg)):
            values = [naive(line, grades) for line, grades in zip(s.tolist(), r.tolist(), strict=True)]
            wanted = [100 * value for value in values if value is not None]
            group, = each[f"{name}_{way}"]
            assert len(wanted) < len(s) and group == pytest.approx(wanted, rel=1e-12)
    assert [len(group) for group in each["mAP"]] == [len(each["mAP_V2T"][0]), len(each["mAP_T2V"][0])]


def test_what_a_question_contributes_is_whether_it_is_right(resolve):
    task = tasks.make(resolve("toy/egomcq", "init="))
    rows, _ = drawn_rows(task, 5)
    each = task.per_query(rows, None)
    right = [100.0 * (max(range(5), key=lambda c, q=q: rows["dual"][5 * q + c]) == task.answers[q])
             for q in range(len(task.texts))]
    assert each["dual_inter"][0].tolist() == [value for value, kind in zip(right, task.types, strict=True) if kind == 1]
    assert each["dual_intra"][0].tolist() == [value for value, kind in zip(right, task.types, strict=True) if kind == 2]


def brute_force(first, second, draws, seed):
    """The same bootstrap, one query and one draw at a time."""
    import random
    rng, means = random.Random(seed), []
    for _ in range(draws):
        of_groups = []
        for a, b in zip(first, second, strict=True):
            drawn = [rng.randrange(len(a)) for _ in a]
            of_groups.append(sum(b[q] for q in drawn) / len(drawn) - sum(a[q] for q in drawn) / len(drawn))
        means.append(sum(of_groups) / len(of_groups))
    means.sort()
    p = 2 * min(sum(mean <= 0 for mean in means), sum(mean >= 0 for mean in means)) / draws
    return means[int(0.025 * draws)], means[int(0.975 * draws)], p


def test_the_bootstrap_equals_one_that_draws_query_by_query():
    rng = np.random.default_rng(7)
    first = [rng.normal(50, 20, 60), rng.normal(40, 10, 25)]
    second = [group + rng.normal(2, 5, len(group)) for group in first]
    fast = paired_bootstrap(first, second, draws=20_000)
    low, high, p = brute_force([group.tolist() for group in first], [group.tolist() for group in second], 4000, 1)
    assert fast.value == pytest.approx(np.mean([b.mean() - a.mean() for a, b in zip(first, second, strict=True)]))
    width = high - low
    assert abs(fast.low - low) < 0.06 * width and abs(fast.high - high) < 0.06 * width
    assert abs(fast.p - p) < 0.015 and 0.001 < p < 0.5 and fast.queries == 85
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second), "the seed is fixed"
    back = paired_bootstrap(second, first)
    assert (back.value, back.low, back.high, back.p) == pytest.approx((-paired_bootstrap(first, second).value, *(
        -np.array(paired_bootstrap(first, second)[1:3])[::-1]), paired_bootstrap(first, second).p))


def test_95_intervals_of_a_hundred_hold_the_true_difference():
    """On drawn data, whose true difference is known; and p is below 0.05 for 5 of 100 where there is none."""
    rng, held, below, trials = np.random.default_rng(11), 0, 0, 400
    for trial in range(trials):
        hard = rng.normal(0, 30, 80)  # the queries' difficulty, which both models share
        first, second = (hard + rng.normal(mean, 8, 80) for mean in (50, 52))
        found = paired_bootstrap([first], [second], draws=500, seed=trial)
        held += found.low <= 2 <= found.high
        below += paired_bootstrap([first], [second - 2], draws=500, seed=trial).p < 0.05
    assert 0.91 <= held / trials <= 0.98 and 0.02 <= below / trials <= 0.09


def test_identical_models_differ_in_nothing():
    values = np.random.default_rng(0).random(50)
    assert paired_bootstrap([values], [values.copy()]) == (0, 0, 0, 1, 50)
    far = paired_bootstrap([values], [values + 1])
    assert (far.value, far.low) == (pytest.approx(1), pytest.approx(1)) and far.p == pytest.approx(2 / 10_001)


@pytest.mark.parametrize("first, second", [([np.ones(3)], [np.ones(4)]), ([np.ones(3)], []), ([], []),
                                           ([np.ones(3), np.ones(0)], [np.ones(3), np.ones(0)])])
def test_other_numbers_of_queries_are_refused(first, second):
    with pytest.raises(NotPaired, match="queries: expected the same ones of both models"):
        paired_bootstrap(first, second)


@pytest.mark.slow
def test_the_full_size_takes_seconds():
    """As many clips, sentences and draws as EK-100's comparison has."""
    rng = np.random.default_rng(0)
    scores = rng.random((9668, 3842), np.float32)
    relevancy = np.where(rng.random((9668, 3842), np.float32) < 0.02, np.float32(1), np.float32(0))
    began = time.perf_counter()
    each = metrics.retrieval_per_query(scores, relevancy)
    ranked = time.perf_counter() - began
    found = paired_bootstrap(each["mAP"], [group + 1 for group in each["mAP"]])
    assert found.queries == 9668 + 3842 and ranked < 40 and time.perf_counter() - began - ranked < 15


@pytest.fixture
def evaluated(resolve, tmp_path):
    """EgoMCQ's task, and two runs whose rows were drawn."""
    task, runs = tasks.make(resolve("toy/egomcq", "init=")), {}
    from egokit.model import checkpoints
    data = {path.name: checkpoints.fingerprint(path) for path in task.tables()}
    for seed, name in enumerate(("one", "two")):
        run = runs[name] = Run(tmp_path / name)
        rows, _ = drawn_rows(task, seed)
        run.write_rows("egomcq", rows)
        run.write_metrics("egomcq", task.metrics(rows, None) | {"finished": True, "data": data})
    return task, runs


def test_runs_are_compared_by_their_stored_rows(evaluated):
    task, runs = evaluated
    at = {name: (run, "egomcq") for name, run in runs.items()}
    found = significance.of_runs(task, at, ["dual_inter", "dual_intra", "absent"])
    assert [line[:3] for line in found] == [("dual_inter", "one", "two"), ("dual_intra", "one", "two")]
    sections = [run.metrics()["egomcq"] for run in runs.values()]
    for metric, _, _, difference in found:
        assert difference.value == pytest.approx(sections[1][metric] - sections[0][metric])
    text = significance.format_differences(found)
    assert "two – one" in text and "95 % interval" in text and f"{found[0][3].value:+.2f}" in text
    many = {str(k): at["one"] for k in range(5)}
    assert [line[1:3] for line in significance.of_runs(task, many, ["dual_inter"])] == [
        ("0", str(k)) for k in range(1, 5)]
    assert all(line[3].p == 1 for line in significance.of_runs(task, many, ["dual_inter"]))


@pytest.mark.parametrize("damage, message", [
    ("data", r"evaluated on other annotations \(egomcq.json\).*evaluate it again"),
    ("unrecorded", r"evaluated on other annotations \(egomcq.json\)"),
    ("rows", r"has 5 rows, this recipe \d+: data.limit or the data differ"),
    ("absent", "has not been evaluated")])
def test_runs_of_other_queries_are_refused(evaluated, damage, message):
    task, runs = evaluated
    run = runs["two"]
    section = run.metrics()["egomcq"]
    if damage == "data":
        run.write_metrics("egomcq", section | {"data": {"egomcq.json": "0" * 12}})
    elif damage == "unrecorded":
        run.write_metrics("egomcq", json.loads(json.dumps({**section, "data": []})))
    elif damage == "rows":
        run.write_rows("egomcq", {name: values[:5] for name, values in run.read_rows("egomcq")[0].items()})
    else:
        (run.path / "rows-egomcq.npz").unlink()
    with pytest.raises((NotPaired, FileNotFoundError), match=message):
        significance.of_runs(task, {name: (run, "egomcq") for name, run in runs.items()}, ["dual_inter"])


@pytest.mark.parametrize("differing, least", [(1, 1.0), (2, 0.5), (5, 0.0625), (40, 2 / 10001)])
def test_few_queries_that_agree_are_no_certainty(differing, least):
    """The bootstrap's draws of one query all agree; the sign test knows better."""
    for others in (0, 3):
        first = np.zeros(differing + others)
        second = np.where(np.arange(len(first)) < differing, 100.0, 0.0)
        found = significance.paired_bootstrap([first], [second])
        assert type(found.p) is float and found.p >= least and found.p <= 1
    assert significance.paired_bootstrap([np.zeros(40)], [np.full(40, 1.0)]).p == 2 / 10001


@pytest.mark.parametrize("damage, message", [
    ("order", "not in the order of the samples"), ("part", r"don't suit EgoMCQ.per_query \(\w+: "),
    ("stale", r"give dual_inter \d+\.\d\d by EgoMCQ.per_query, but metrics.json has 12.34"), ("nan", "finite")])
def test_rows_that_cannot_be_those_of_the_metrics_are_refused(evaluated, damage, message):
    task, runs = evaluated
    run = runs["two"]
    rows, _ = run.read_rows("egomcq")
    if damage == "order":
        run.write_rows("egomcq", {name: values[::-1] for name, values in rows.items()})
    elif damage == "part":
        run.write_rows("egomcq", {"index": rows["index"], "other": rows["dual"]} | {"dual": rows["dual"][:7]})
    elif damage == "stale":
        run.write_metrics("egomcq", run.metrics()["egomcq"] | {"dual_inter": 12.34})
    else:
        task.per_query = lambda rows, prompts_KE: {"dual_inter": [np.array([1.0, np.nan])]}
    with pytest.raises(ValueError, match=message):
        significance.queries_of(task, run, "egomcq")


def test_a_section_that_is_not_there_is_told(evaluated):
    task, runs = evaluated
    with pytest.raises(FileNotFoundError, match=r"section 'zeroshot' of .* has not been evaluated"):
        significance.queries_of(task, runs["one"], "zeroshot")
