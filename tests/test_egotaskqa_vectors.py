"""EgoTaskQA's vectors: they are the fused states of all questions, made once, shared by both splits, and resumed."""
import collections
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from taskqa_site import ANSWERS, CLIPS, make_site
from test_egotaskqa import SMALL, replaced
from vector_site import CPU, extracted_site

import egokit
from egokit import tasks
from egokit.config.build import ConfigError
from egokit.config.resolve import resolve
from egokit.data.video.open_video import VideoError
from egokit.data.video.transforms import normalise
from egokit.jobs import status
from egokit.model import checkpoints
from egokit.model.egovlp import EgoVLP
from egokit.runs import ledger
from egokit.runs.run_folder import Run
from egokit.tasks import extraction
from egokit.tasks.feature_files import FeatureError
from egokit.tasks.taskqa import annotations
from egokit.train.loop import train


@pytest.fixture(scope="module")
def site(project, tmp_path_factory):
    return extracted_site(tmp_path_factory.mktemp("heads"))


def asked(root, splits=("direct", "indirect")):
    """clip -> its distinct questions, over all files."""
    found = collections.defaultdict(set)
    for split in splits:
        for part in annotations.SPLITS:
            for question in annotations.read_questions(root / f"EgoTaskQA/qa/{split}/{annotations.file_of(part)}",
                                                       len(ANSWERS)):
                found[question.clip].add(question.text)
    return found


def test_vectors_are_the_fused_states_of_every_question(site):
    """Against one pass for each pair of a clip and a question."""
    model, task = egokit.load(site.init, frames=4), tasks.make(site.config())
    expected = asked(site.root)
    assert {clip["clip_uid"]: set(clip["questions"]) for clip in site.manifest["clips"]} == expected
    for clip in site.manifest["clips"]:
        frames = normalise(task.transform(task.read_clip(clip["clip_uid"]), None))[None]
        vectors = np.load(site.vectors / f"vectors/{clip['clip_uid']}.npy")
        assert vectors.dtype == np.float32 and vectors.shape == (len(clip["questions"]), site.manifest["dimension"])
        for vector, text in zip(vectors, clip["questions"], strict=True):
            with torch.no_grad():
                state = model.fused_video(model.fusion_trunk(frames), model.tokens([text]), 4)[0]
            assert np.allclose(vector, state, atol=1e-5)
    count = sum(map(len, expected.values()))
    assert (site.metrics["clips"], site.metrics["questions"], site.metrics["failed"]) == (len(CLIPS), count, 0)
    assert site.metrics["data"].keys() == {f"{split}/{annotations.file_of(part)}" for split in ("direct", "indirect")
                                           for part in annotations.SPLITS}
    assert site.manifest["init_sha256"] == checkpoints.fingerprint(site.init) and site.manifest["frames"] == 4


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_clips_trunk_is_computed_once(site, tmp_path, monkeypatch, batch_size):
    trunks, pairs = [], []
    trunk, fused = EgoVLP.fusion_trunk, EgoVLP.fused_video
    monkeypatch.setattr(EgoVLP, "fusion_trunk", lambda self, frames: trunks.append(len(frames)) or trunk(self, frames))
    monkeypatch.setattr(EgoVLP, "fused_video", lambda self, states, tokens, frames:
                        pairs.append(len(states)) or fused(self, states, tokens, frames))
    metrics, _ = site.extract(tmp_path / "run", f"evaluate.batch_size={batch_size} data.workers=1")
    assert trunks == [1] * len(CLIPS) and sum(pairs) == metrics["questions"] and max(pairs) <= batch_size
    for path in (tmp_path / "run/vectors").glob("*.npy"):
        assert np.allclose(np.load(path), np.load(site.vectors / "vectors" / path.name), atol=1e-5)


def test_a_split_alone_suffices_and_the_other_adds_its_questions(site, tmp_path):
    """Only clips with further questions are made again."""
    def edit(entries):
        return [entry | {"question": "Who is there?"} if entry["interval"] == CLIPS[0] and entry["answer"] == "yes"
                else entry for entry in entries]
    root = replaced(site.root, tmp_path / "root", edit)
    other = root / "EgoTaskQA/qa/indirect"
    other.rename(tmp_path / "away")
    whole = site.root / "EgoTaskQA/qa/direct"
    for path in whole.iterdir():
        (root / "EgoTaskQA/qa/direct" / path.name).write_text(path.read_text())
    _, manifest = site.extract(tmp_path / "run", root=root)
    assert {clip["clip_uid"]: set(clip["questions"]) for clip in manifest["clips"]} == asked(root, ["direct"])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/vectors").glob("*.npy")}
    (tmp_path / "away").rename(other)
    _, manifest = site.extract(tmp_path / "run", root=root)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/vectors").glob("*.npy")}
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {f"{clip}.npy" for clip, texts in asked(root).items() if texts - asked(root, ["direct"])[clip]}
    assert f"{CLIPS[0]}.npy" in changed and len(changed) < len(CLIPS)


def test_too_small_a_disk_is_found_before_the_first_clip(site, tmp_path, monkeypatch, capsys):
    needed, free = site.metrics["questions"] * site.manifest["dimension"] * 4, 0
    usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda path: usage(0, 0, free))
    free = needed - 1
    with pytest.raises(ConfigError, match=rf"the vectors of {len(CLIPS)} clips, {site.metrics['questions']} questions"):
        site.extract(tmp_path)
    assert not list(tmp_path.glob("vectors/*.npy"))
    free = needed
    site.extract(tmp_path)
    assert "GB of vectors to write" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_that_cant_be_read_are_named_and_the_others_written(site, tmp_path, workers):
    """They end the job unless data.max_bad_fraction allows them, and are left out of training, and wrong, then."""
    root = make_site(tmp_path / "root")
    (root / f"EgoTaskQA/qa_videos/{CLIPS[1]}.mp4").write_bytes(b"no video")
    (root / f"EgoTaskQA/qa_videos/{CLIPS[3]}.mp4").unlink()
    with pytest.raises(VideoError, match="2 of 5 clips have no vectors") as raised:
        site.extract(tmp_path / "run", f"data.workers={workers}", root)
    assert all(f"clip {clip}" in str(raised.value) for clip in (CLIPS[1], CLIPS[3]))
    written = {path.name for path in (tmp_path / "run/vectors").glob("*")}
    assert written == {f"{clip}.npy" for clip in CLIPS} - {f"{CLIPS[1]}.npy", f"{CLIPS[3]}.npy"}
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing: .* let the extraction finish"):
        tasks.make(site.config(f"task.vectors={tmp_path / 'run'}")).dataset("train")
    tolerant = f"data.workers={workers} data.max_bad_fraction=0.4"
    metrics, manifest = site.extract(tmp_path / "run", tolerant, root)
    assert manifest["unreadable"].keys() == {CLIPS[1], CLIPS[3]} and metrics["failed"] == 2
    read = f"task.vectors={tmp_path / 'run'} train.epochs=1 train.batch_size=4"
    with pytest.raises(FeatureError, match=r"2 of 5 clips .*data\.max_bad_fraction"):
        tasks.make(site.config(read)).dataset("train")
    config = site.config(f"{read} data.max_bad_fraction=0.5")
    task = tasks.make(config)
    bad = {CLIPS[1], CLIPS[3]}
    lost = sum(question.clip in bad for question in task.asked)
    assert len(task.dataset("train")) == sum(question.clip not in bad for question in task.questions_of("train")) < 11
    result = train(config, task, Run(tmp_path / "trained"), "headtune", CPU)
    assert result["failed"] == result["unreadable_questions"] == lost > 0


@pytest.mark.slow
def test_killed_and_shared_out_the_vectors_are_the_same(site, tmp_path):
    """Two processes, killed with kill -9, go on and write what one process writes."""
    config = site.config("launch.tasks_per_node=2")
    run = Run(tmp_path / "two")
    handle = egokit.submit(config, run, "extract", "vectors")
    deadline = time.monotonic() + 240
    while not (before := {file.name: file.stat().st_mtime_ns for file in run.path.glob("vectors/[!.]*.npy")}):
        assert time.monotonic() < deadline and handle.alive()
        time.sleep(0.001)
    for process in status.processes(handle.folder):
        os.kill(process, signal.SIGKILL)
    while handle.alive():
        time.sleep(0.05)
    assert len([*run.path.glob("vectors/[!.]*.npy")]) < len(CLIPS)
    metrics = egokit.submit(config, run, "extract", "vectors").wait(progress=False)
    for clip in CLIPS:
        assert np.array_equal(np.load(run.path / f"vectors/{clip}.npy"), np.load(site.vectors / f"vectors/{clip}.npy"))
    assert {file.name for file in (run.path / "vectors").iterdir()} == {"manifest.json", *(f"{c}.npy" for c in CLIPS)}
    assert all((run.path / "vectors" / name).stat().st_mtime_ns == at for name, at in before.items())
    assert json.loads((run.path / "vectors/manifest.json").read_text()) == site.manifest
    assert metrics["processes"] == 2 and metrics["clips"] == metrics["samples"] == metrics["expected"] == len(CLIPS)


@pytest.mark.slow
def test_jobs_extract_train_and_evaluate(project, site):
    """As users submit them; the ledger says in what the result differs from the published one."""
    run = Run(project / "outputs/09_egotaskqa/jobs")
    config = site.config("task.vectors=run:09_egotaskqa/jobs train.epochs=2 launch.tasks_per_node=1")
    egokit.submit(config, run, "extract", "vectors").wait(progress=False)
    metrics = egokit.submit(config, run, "train", "headtune").wait(progress=False)
    assert metrics["expected"] == metrics["samples"] == 11 and metrics["init"] == str(site.init)
    assert metrics["data"].keys() == {annotations.file_of("test"), "answer_set.txt", "manifest.json"}
    entries = {entry.result.name: entry for entry in ledger.read_run(run.path / "metrics.json")}
    entry = entries["EgoTaskQA direct open, head-tuned"]
    assert entry.value == metrics["direct_open"] and entry.result.published == 26.59
    told = "; ".join(entry.recipe)
    assert "trained 2 epochs" in told and "a head trained here on features of base.pt" in told
    assert "published for the checkpoint of the best test accuracy" in told and "lr" not in told


@pytest.mark.slow
def test_a_finished_extraction_is_made_again_when_files_or_questions_have_changed(project, site, tmp_path):
    """The same job again does what messages say that it does: it makes what is not there."""
    def edit(entries):
        return [entry | {"question": "Who is there?"} if entry["interval"] == CLIPS[0] else entry for entry in entries]
    root = replaced(site.root, tmp_path / "root", lambda entries: entries)
    run, config = Run(project / "outputs/09_egotaskqa/again"), site.config("launch.tasks_per_node=1", root)

    def extract():
        egokit.submit(config, run, "extract", "vectors").wait(progress=False)
        files = {path.name: path.stat().st_mtime_ns for path in (run.path / "vectors").glob("*.npy")}
        return files, (run.path / "metrics.json").stat().st_mtime_ns
    first = extract()
    assert extract() == first, "what is whole stays"
    (run.path / f"vectors/{CLIPS[1]}.npy").unlink()
    second, _ = extract()
    assert {name for name in second if second[name] != first[0][name]} == {f"{CLIPS[1]}.npy"}
    path = root / "EgoTaskQA/qa/indirect" / annotations.file_of("test")
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    third, _ = extract()
    assert {name for name in third if third[name] != second[name]} == {f"{CLIPS[0]}.npy"}
    root.rename(tmp_path / "away")
    assert extract()[0] == third, "without its data it is as it was"


def test_what_the_last_evaluation_reads_is_missed_before_training(site, tmp_path):
    root = replaced(site.root, tmp_path / "root", lambda entries: entries)
    path = root / "EgoTaskQA/qa/direct" / annotations.file_of("test")
    path.write_text(path.read_text().replace(CLIPS[0], "room-9|P1|0|48"))
    with pytest.raises(FeatureError, match=r"no vector of \d questions, .* about clip room-9"):
        tasks.make(site.config(root=root)).dataset("train")
    whole = resolve("egotaskqa_direct", "tiny", f"{SMALL} site.root={root}")
    with pytest.raises(FileNotFoundError, match=r"room-9\|P1\|0\|48\.mp4 is missing"):
        tasks.make(whole).dataset("train")
