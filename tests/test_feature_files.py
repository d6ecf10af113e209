"""Stored features of clips: their clock, both formats, and what is said of files that can't be used."""
import json

import numpy as np
import pytest
import torch
from moment_site import make_nlq

from egokit import tasks
from egokit.config.build import ConfigError
from egokit.config.resolve import resolve
from egokit.tasks.feature_files import Clip, FeatureError, FeatureFiles, Grid

CLIP = Clip("c", "v", 100.0, 110.0)


def folder_of(path, suffix=".npy", manifest=None, **arrays):
    """A folder of features, name -> array; with a manifest of own features if one is given."""
    path.mkdir(exist_ok=True)
    for name, array in arrays.items():
        if suffix == ".npy":
            np.save(path / f"{name}.npy", array)
        else:
            torch.save(torch.from_numpy(np.asarray(array)), path / f"{name}.pt")
    if manifest is not None:
        entries = [{"clip_uid": uid, "split": "val", "start": start, "stop": stop} for uid, start, stop in manifest]
        (path / "manifest.json").write_text(json.dumps(
            {"format": suffix[1:], "features_per_second": 2.0, "clips": entries}))
    return path


def rows(N, E=4):
    """Features of which each holds its number."""
    return np.repeat(np.arange(N, dtype=np.float32)[:, None], E, axis=1)


def test_seconds_become_positions_and_seconds_again():
    grid = Grid(1.875, 0.3)
    seconds = np.array([[0.0, 1.7], [3.3, 900.0]])
    assert grid.positions(seconds)[0] == pytest.approx([-0.3 * 1.875, 1.4 * 1.875])
    assert grid.seconds(grid.positions(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_own_features_share_the_clip(tmp_path, suffix):
    """19 windows of a clip of 10 s: feature i covers 10 / 19 s from i · 10 / 19 on, whatever the rate says."""
    files = FeatureFiles(folder_of(tmp_path / "features", suffix, [("c", 100.0, 110.0)], c=rows(19)).parent)
    feature = files.read(CLIP)
    assert feature.dtype == np.float32 and feature.shape == (19, 4) and (files.dimension, files.rate) == (4, 2.0)
    grid = files.grid(CLIP, 19)
    assert grid.seconds([0, 18]) == pytest.approx([5 / 19, 10 - 5 / 19])
    assert grid.positions([0.0, 10.0]) == pytest.approx([-0.5, 18.5])


def test_features_of_others_by_rate_and_window(tmp_path):
    """ActionFormer's clock: a feature each 16 frames at 30 a second, of 32 frames: second t is t · 30 / 16 - 1."""
    files = FeatureFiles(folder_of(tmp_path, c=rows(18)), rate=30 / 16, window=32 / 30)
    assert files.grid(CLIP, 18).positions([0.0, 4.0]) == pytest.approx([-1.0, 6.5])
    end_to_end = FeatureFiles(tmp_path, rate=30 / 16)
    assert end_to_end.grid(CLIP, 18).positions([0.0, 4.0]) == pytest.approx([-0.5, 7.0])
    assert (files.origin, files.manifest) == (str(tmp_path), {})


@pytest.mark.parametrize("start, first, middle", [(100.0, 200, 0.25), (100.2, 200, 0.05), (100.3, 201, 0.45)])
def test_a_clip_is_cut_out_of_its_videos_features(tmp_path, start, first, middle):
    """Two features a second, so that the middle of feature i is 0.25 + i / 2; a clip may begin between two."""
    files = FeatureFiles(folder_of(tmp_path, v=rows(300)), "video", rate=2.0)
    clip = Clip("c", "v", start, 110.0)
    feature = files.read(clip)
    assert (feature[0, 0], feature[-1, 0]) == (first, 219)
    grid = files.grid(clip, len(feature))
    assert grid.seconds([0]) == pytest.approx([middle])
    assert grid.seconds([len(feature) - 1]) == pytest.approx([219 / 2 + 0.25 - start])
    with pytest.raises(FeatureError, match=r"v\.npy is shorter than its clip c: 300 features.*task\.stored_rate"):
        files.read(clip._replace(stop=160.0))


def test_fused_features_have_one_row_of_features_a_question(tmp_path):
    features = make_nlq(tmp_path, (3, 2)) / "features"
    manifest = json.loads((features / "manifest.json").read_text())
    (features / "manifest.json").write_text(json.dumps(manifest | {"kind": "fused"}))
    for path in features.glob("*.npy"):
        np.save(path, np.stack([np.load(path) + place for place in range(4)]).astype(np.float16))
    files = FeatureFiles(features.parent)
    listed = manifest["clips"][0]
    clip = Clip(listed["clip_uid"], listed["video_uid"], listed["start"], listed["stop"])
    assert (files.axes, files.dimension, files.word_dimension) == (3, 16, 16)
    assert np.allclose(files.read(clip, 2) - files.read(clip, 0), 2, atol=0.01)
    assert files.words(clip, 3).tolist() == np.load(features.parent / f"questions/{clip.uid}.npy")[6:8].tolist()
    for question, error, message in ((None, ConfigError, "task.feature_kind=clip"), (4, FeatureError, "4 questions")):
        with pytest.raises(error, match=message):
            files.read(clip, question)
    words = features.parent / "questions" / f"{clip.uid}.npy"
    spoken = np.load(words)
    for array, message in ((spoken[:-1], "expected"), (spoken * np.nan, "NaN"), (spoken[:, :3], "dimension 3")):
        np.save(words, array)
        with pytest.raises(FeatureError, match=rf"{clip.uid}\.npy.*{message}.*extract"):
            FeatureFiles(features.parent).words(clip, 0)
    words.unlink()
    with pytest.raises(FeatureError, match=rf"{clip.uid}\.npy: no words of the clip's question 1.*same annotations"):
        files.words(clip, 1)
    # the single-stage head and the span head see the question's own features
    config = resolve("toy/egonlq", "toy", f"init= site.root={tmp_path} task.features={features.parent} "
                                          "data.max_bad_fraction=0.2")
    samples = tasks.make(config).dataset("test")
    assert np.allclose(samples[0, 1]["video"] - samples[0, 0]["video"], 1, atol=0.01)


@pytest.mark.parametrize("array, message", [
    (None, r"c\.pt is missing: there are no features of clip c; extract.*data\.max_bad_fraction"),
    (b"\x93NUMPY no more", r"c\.npy"),
    (rows(20, 5), r"c\.npy has dimension 5, but others have 4.*keep one model's"),
    (rows(12), r"c\.npy is shorter than its clip, or of another rate: 12 features, expected about 20 .*stored_rate"),
    (rows(40), r"c\.npy is longer than its clip, or of another rate: 40 features, expected about 20 .*stored_rate"),
    (rows(20) * np.nan, r"c\.npy, clip c: 80 NaN and 0 infinite"),
    (np.where(rows(20) > 18, np.inf, rows(20)), r"c\.npy, clip c: 0 NaN and 4 infinite"),
    (rows(20).astype(int), r"c\.npy: int64 of shape \(20, 4\), expected \(features, dimension\) of floats"),
    (rows(20)[None], r"c\.npy: float32 of shape \(1, 20, 4\), expected \(features, dimension\)"),
    (rows(0), r"c\.npy: float32 of shape \(0, 4\), expected"),
])
def test_a_file_that_can_not_be_used_is_named(tmp_path, array, message):
    folder_of(tmp_path, a=rows(20), b=rows(20), d=rows(20))
    if isinstance(array, bytes):
        (tmp_path / "c.npy").write_bytes(array)
    elif array is not None:
        np.save(tmp_path / "c.npy", array)
    files = FeatureFiles(tmp_path, rate=2.0)
    with pytest.raises(FeatureError, match=message):
        files.read(CLIP)
    late = "NaN" in message  # only known when read
    assert [*files.problems([CLIP, Clip("a", "v", 0.0, 10.0)])] == ([] if late else ["c"])


def test_the_first_file_is_not_taken_for_the_others(tmp_path):
    """A damaged, unlike or unfinished file that comes first says nothing of the folder's dimension."""
    folder_of(tmp_path, c=rows(20), d=rows(20), aa=rows(20, 7))
    (tmp_path / "a.npy").write_bytes(b"")
    (tmp_path / ".a.part.npy").write_bytes(b"")
    files = FeatureFiles(tmp_path, rate=2.0)
    assert files.dimension == 4 and len(files.read(CLIP)) == 20 and ".a.part" not in files.paths
    for name in ("c", "d", "aa"):
        (tmp_path / f"{name}.npy").unlink()
    with pytest.raises(FeatureError, match=r"none of 1 files.*a\.npy"):
        FeatureFiles(tmp_path, rate=2.0)


def test_a_folder_that_can_not_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent does not exist: task\.features.*'extract'"):
        FeatureFiles(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"file is no folder: task\.features"):
        FeatureFiles(tmp_path / "file", rate=2.0)
    empty = folder_of(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"empty holds no features: expected <video>"):
        FeatureFiles(empty, "video", rate=2.0)
    with pytest.raises(ConfigError, match=r"no manifest\.json.*task\.stored_rate"):
        FeatureFiles(folder_of(tmp_path / "none", c=rows(20)))
    folder_of(tmp_path / "none", ".pt", c=rows(20))
    with pytest.raises(ConfigError, match=r"holds c as \.npy and as \.pt, expected one of the two: delete"):
        FeatureFiles(tmp_path / "none", rate=2.0)
    with pytest.raises(ConfigError, match=r"task\.features is empty.*06_egomq_features"):
        tasks.make(resolve("toy/egomq", "toy", "init= task.features=")).files  # noqa: B018


def test_a_manifest_of_other_annotations_is_named(tmp_path):
    files = FeatureFiles(folder_of(tmp_path, manifest=[("c", 100.0, 110.0), ("e", 0.0, 9.0)], c=rows(20), b=rows(20)))
    assert len(files.read(CLIP)) == 20
    with pytest.raises(FeatureError, match=r"c\.npy is of 100 to 110 s of the video, but .* say 90 to 100 s"):
        files.read(CLIP._replace(start=90.0, stop=100.0))
    with pytest.raises(FeatureError, match=r"b\.npy is not listed in .*manifest\.json.*extract"):
        files.read(Clip("b", "v", 0.0, 10.0))
    with pytest.raises(FeatureError, match=r"e\.npy is missing"):
        files.read(Clip("e", "v", 0.0, 9.0))
