"""The embedded data set's moments and questions, in the formats of EgoMQ and EgoNLQ."""
import json

import numpy as np
import pytest

from egokit import toy
from egokit.toy import language_queries, moments, schedule, words

SEED = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy") / "data", seed=SEED, size="tiny")


def test_moments(root):
    """Primary labels are the clip's actions, each once; others are of other annotators."""
    of_video = {video.uid: video for video in schedule.make_schedule(SEED, "tiny")}
    uids, primary, secondary, labels = set(), 0, 0, set()
    for split in ("train", "val", "test_unannotated"):
        for video in json.loads((root / f"moments_{split}.json").read_text())["videos"]:
            assert (root / "Ego4D" / f"{video['video_uid']}.mp4").exists() and video["split"] in split
            for clip in video["clips"]:
                begin, end = clip["video_start_sec"], clip["video_end_sec"]
                assert 8 <= end - begin <= 11.01 and end <= of_video[video["video_uid"]].seconds
                assert clip["clip_end_sec"] == pytest.approx(end - begin)
                rows = [row for annotator in clip["annotations"] for row in annotator["labels"]]
                assert (1 < len(clip["annotations"]) <= 3) == bool(rows) == (split != "test_unannotated")
                for row in rows:
                    assert 0 <= row["start_time"] < row["end_time"] <= end - begin + 1e-4
                    assert row["video_start_time"] == pytest.approx(begin + row["start_time"], abs=2e-4)
                shown = sorted((row["video_start_time"], row["video_end_time"], row["label"])
                               for row in rows if row["primary"])
                assert not rows or shown == [
                    (round(action.start, 4), round(action.stop, 4), moments.moment_label(action.verb))
                    for action in of_video[video["video_uid"]].actions if begin <= action.start and action.stop <= end]
                primary, secondary = primary + len(shown), secondary + len(rows) - len(shown)
                labels |= {row["label"] for row in rows}
                uids.add(clip["clip_uid"])
    counts = json.loads((root / "toy.json").read_text())["counts"]
    assert (len(uids), primary) == (counts["moments_clips"], counts["moments"]) and 0 < secondary < primary / 2
    assert labels <= {moments.moment_label(verb) for verb in range(8)}
    assert any(label.startswith('"') for label in labels), "some of Ego4D's classes have quotation marks"


def test_nlq(root):
    """A question's words are true of one action of the clip; odd queries are as in Ego4D's files."""
    of_video = {video.uid: video for video in schedule.make_schedule(SEED, "tiny")}
    asked, templates = 0, set()
    for split in ("train", "val", "test_unannotated"):
        queries = []
        listed = {video["video_uid"]: video["clips"]
                  for video in json.loads((root / f"moments_{split}.json").read_text())["videos"]}
        for video in json.loads((root / f"nlq_{split}.json").read_text())["videos"]:
            for clip, twin in zip(video["clips"], listed.pop(video["video_uid"]), strict=True):
                assert clip | {"annotations": 0} == twin | {"annotations": 0}
                assert len({part["annotation_uid"] for part in clip["annotations"]}) == 2
                begin, end = clip["video_start_sec"], clip["video_end_sec"]
                actions = [action for action in of_video[video["video_uid"]].actions
                           if action.start < end and action.stop > begin]
                for query in (query for part in clip["annotations"] for query in part["language_queries"]):
                    queries.append(query | {"clip": clip["clip_uid"]})
                    assert ("clip_start_sec" in query) == (split != "test_unannotated")
                    *colour, noun = query["slot_x"].split()
                    meant, = [action for action in actions if toy.VERBS[action.verb] == query["verb_x"]
                              and toy.NOUNS[action.thing.noun] == noun
                              and colour in ([], [words.COLOURS[action.thing.colour]])]
                    assert split == "test_unannotated" or (
                        meant.start - 1e-4 <= begin + query["clip_start_sec"] == pytest.approx(query["video_start_sec"])
                        and query["video_end_sec"] <= meant.stop + 1e-4)
                    assert not query["query"] or query["slot_x"] in query["query"]
        assert not listed
        texts = [query["query"] for query in queries]
        assert texts.count(None) == texts.count("") == 1
        asked += len(texts) - 2
        templates |= {query["template"] for query in queries}
    assert asked == json.loads((root / "toy.json").read_text())["counts"]["nlq_questions"]
    assert len(templates) >= 3


@pytest.mark.parametrize("seed", range(3))
def test_the_demo_has_enough_moments_and_questions_to_learn_from(tmp_path, seed):
    videos_of_ego4d = [video for video in schedule.make_schedule(seed, "demo") if video.corpus == "ego4d"]
    clips = moments.draw_clips(seed, videos_of_ego4d, schedule.SIZES["demo"])
    splits = [clip.split for clip in clips]
    assert [splits.count(split) for split in ("train", "val", "test_unannotated")] == [66, 8, 4]
    assert all(44 <= clip.seconds <= 47.01 and clip.stop <= 96 for clip in clips)
    assert not {clip.video.uid for clip in clips[:-4]} & {clip.video.uid for clip in clips[-4:]}
    assert moments.write_moments(tmp_path, seed, clips, 0) > 1300
    assert language_queries.write_nlq(tmp_path, seed, clips, 0) > 1300
    for split, zero_length in (("train", 0.05), ("val", 0)):
        queries = [query for video in json.loads((tmp_path / f"nlq_{split}.json").read_text())["videos"]
                   for clip in video["clips"] for part in clip["annotations"] for query in part["language_queries"]]
        share = np.mean([query["clip_start_sec"] == query["clip_end_sec"] for query in queries])
        assert len(queries) > (1200 if split == "train" else 120) and abs(share - zero_length) < 0.02
        assert len({query["template"] for query in queries}) == 4
        assert any((query["query"] or "").endswith(" ??") for query in queries)
