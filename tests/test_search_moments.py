"""Moments that are merged from clips, and a text and an example that are one query."""
import numpy as np
import pytest

from egokit.search import moments, vector_index
from egokit.search.moments import Own, combine, find_moments


@pytest.fixture
def index(tmp_path):
    """Three videos of clips of 4 s, one every 2 s, whose content drifts; and a query."""
    rng = np.random.default_rng(3)
    query_E = rng.standard_normal(32)
    for number, clips in enumerate((60, 1, 37)):
        # a slow walk towards the query and away, as an action comes and goes
        near_N = np.convolve(rng.standard_normal(clips + 6), np.ones(7) / 3, "valid")
        vector_NE = 0.7 * rng.standard_normal((clips, 32)) + near_N[:, None] * query_E
        start_N = 2.0 * np.arange(clips) + (1000 if number == 2 else 0)  # some videos' clocks don't begin at 0
        vector_index.save(tmp_path / f"{number}.npy", start_N, start_N + 4, vector_NE)
    return vector_index.VectorIndex(tmp_path, ["0", "1", "2"], [60, 1, 37], 32), vector_index.unit(query_E)


def naive(index, query_E, background, own=None):
    """All moments by the rule, spelled out: seeds by cosine, each grown clip by clip while anything joins it."""
    rows = [index.rows(file) for file in range(3)]
    clips = sorted(((float(row["vector"].astype(np.float32) @ query_E), file, at) for file in range(3)
                    for at, row in enumerate(rows[file])), reverse=True)
    times = [[(float(row["start"]), float(row["stop"])) for row in video] for video in rows]
    cosine = {(file, at): value for value, file, at in clips}
    found = []
    for value, file, at in clips:
        others = [moment for moment in found if moment[0] == file]

        def free(start, stop, others=others, file=file):
            return all(stop < other[1] or start > other[2] for other in others) and not (
                own and own.file == file and start < own.stop and stop > own.start)
        start, stop = times[file][at]
        if not free(start, stop):
            continue
        grew = True
        while grew:
            grew = False
            for other, (begin, end) in enumerate(times[file]):
                touches = begin <= stop and end >= start and (begin < start or end > stop)
                if touches and cosine[file, other] >= (background + value) / 2 and free(begin, end):
                    start, stop, grew = min(start, begin), max(stop, end), True
        found.append((file, start, stop, value))
    return found


def test_merged_moments_are_those_of_a_naive_twin(index):
    vectors, query_E = index
    every_NE = moments.sample(vectors)
    assert len(every_NE) == len(vectors)
    background = float((every_NE @ query_E).mean())
    merged = find_moments(vectors, query_E, 1000, every_NE)
    assert [moment[:3] for moment in merged] == [moment[:3] for moment in naive(vectors, query_E, background)]
    assert [moment.cosine for moment in merged] == pytest.approx(
        [moment[3] for moment in naive(vectors, query_E, background)], abs=1e-5)
    assert any(moment.stop - moment.start > 8 for moment in merged)
    for a in merged:
        assert a.start <= a.best[0] < a.best[1] <= a.stop
        assert not any(a is not b and a.file == b.file and a.start <= b.stop and b.start <= a.stop for b in merged)
    for count in (1, 3, 7):
        assert find_moments(vectors, query_E, count, every_NE) == merged[:count], "the same, however many are asked for"


def test_single_clips_do_not_overlap_and_may_adjoin(index):
    vectors, query_E = index
    single = find_moments(vectors, query_E, 1000)
    assert all(moment.stop - moment.start == 4 and moment.best == moment[1:3] for moment in single)
    pairs = [(a, b) for a in single for b in single if a is not b and a.file == b.file]
    assert not any(a.start < b.stop and b.start < a.stop for a, b in pairs)
    assert any(a.stop == b.start for a, b in pairs)


@pytest.mark.parametrize("merged", [True, False])
def test_the_examples_own_moment_is_left_out(index, merged):
    vectors, query_E = index
    sample_NE = moments.sample(vectors) if merged else None
    best = find_moments(vectors, query_E, 1, sample_NE)[0]
    own = Own(best.file, *best.best)
    others = find_moments(vectors, query_E, 1000, sample_NE, own)
    left = (best.start, best.stop)  # what would have been found
    assert others and not any(other.file == best.file and other.start < left[1] and other.stop > left[0]
                              for other in others)
    whole = find_moments(vectors, query_E, 1000, sample_NE, Own(0, 0.0, 1e6))
    assert whole and all(moment.file != 0 for moment in whole)


def test_more_clips_are_asked_for_until_there_are_enough_moments(index, monkeypatch):
    vectors, query_E = index
    sample_NE, asked = moments.sample(vectors), []
    expected = find_moments(vectors, query_E, 8, sample_NE)
    original = vectors.search
    monkeypatch.setattr(vectors, "search", lambda query, count: asked.append(count) or original(query, count))
    for name, value in (("FIRST", 3), ("AGAIN", 2)):
        monkeypatch.setattr(moments, name, value)
    assert find_moments(vectors, query_E, 8, sample_NE) == expected and asked[:3] == [3, 6, 12]
    assert len(find_moments(vectors, query_E, 1000, sample_NE)) < 1000, "there are no more"


def test_a_text_and_an_example_have_the_same_say():
    """Even if cosines with one of them spread ten times as far."""
    rng = np.random.default_rng(0)
    scale_E = np.r_[np.full(16, 1.0), np.full(16, 0.1)]
    sample_NE = vector_index.unit(rng.standard_normal((5000, 32)) * scale_E)
    example_E, text_E = np.r_[rng.standard_normal(16), np.zeros(16)], np.r_[np.zeros(16), rng.standard_normal(16)]
    by_text, by_example = sample_NE @ text_E, sample_NE @ example_E
    assert by_example.std() > 5 * by_text.std()
    for weight, more in ((0.5, 0), (0.9, 1), (0.1, -1), (1, 1), (0, -1)):
        scores = sample_NE @ combine(text_E, example_E, sample_NE, weight)
        example, text = (np.corrcoef(scores, each)[0, 1] for each in (by_example, by_text))
        assert abs(example - text) < 0.05 if not more else more * (example - text) > 0.5
        if weight in (0, 1):
            assert max(example, text) == pytest.approx(1)


def test_an_index_of_one_clip_has_an_answer(tmp_path):
    vector_index.save(tmp_path / "0.npy", np.zeros(1), np.ones(1), np.eye(1, 8))
    vectors = vector_index.VectorIndex(tmp_path, ["0"], [1], 8)
    sample_NE = moments.sample(vectors)
    query_E = combine(np.ones(8), np.eye(8)[1], sample_NE, 0.5)
    assert np.isfinite(query_E).all() and len(find_moments(vectors, query_E, 5, sample_NE)) == 1
