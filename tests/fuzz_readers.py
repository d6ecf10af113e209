"""The kinds of files that are mutated: how whole ones are made, and what a user does with them.

Every kind has `make(folder, checkpoint)`, which writes whole files into an empty folder in a process of the tests;
`files(folder)`, the names of those that are mutated; `read(path)`, which must give an answer or a promised exception.
"""
import dataclasses
import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute  # what a reader imports at its first use is no sign of a file's doing
import pyarrow.csv  # noqa: F401
from annotation_files import FILES
from fuzz_questions import make_qfvs, make_taskqa, make_vectors, read_qfvs, read_taskqa, read_vectors

from egokit import tasks
from egokit.config.json_file import read_json
from egokit.config.resolve import resolve
from egokit.data import annotation_json, relevancy
from egokit.data.video.timeline import VideoError
from egokit.jobs import requeue, runs_table
from egokit.jobs.handle import Handle
from egokit.model import checkpoints, recorded_head, weights
from egokit.model.class_head import ClassHead
from egokit.runs import ledger, ledger_table
from egokit.runs.log import History
from egokit.runs.run_folder import Run
from egokit.search import index_task, moments, vector_index
from egokit.tasks import clip_features
from egokit.tasks.moments import mq_annotations, nlq_annotations, score

MODEL = "model.width=16 model.heads=1 model.depth=2 model.num_fused_layers=1 model.projection=linear16"
SMALL = f"data.limit=24 train.batch_size=8 launch.tasks_per_node=1 init= {MODEL}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files of one kind; see the module."""
    make: Callable
    read: Callable
    patterns: tuple[str, ...]
    promised: tuple[type, ...] = (ValueError, FileNotFoundError, IsADirectoryError)
    count: int = 100  # mutated files in the tests

    def files(self, folder: Path) -> list[str]:
        return [str(path.relative_to(folder)) for pattern in self.patterns for path in folder.glob(pattern)
                if path.is_file()]


# a run's folder

def make_run(folder: Path, checkpoint: Path) -> None:
    for name in ("good", "mine"):
        run = Run(folder / "nb" / name)
        for step in range(4):
            run.log({"kind": "step", "step": step, "steps": 9, "epoch": 1, "loss": 1.5, "lr": 1e-4, "grad_norm": 1.0,
                     "data_s": 0.1, "step_s": 0.2, "clips_per_s": 40.0, "eta_s": 30.0, "watched": {"gate": 0.5}})
        run.log({"kind": "validation", "step": 4, "steps": 9, "epoch": 1, "best": True, "mAP": 40.0, "score": "mAP",
                 "predictions": [{"text": "x", "clips": [0, 1], "scores": [0.5, 0.1], "relevancy": [1.0, 0.0],
                                  "rank": 1}]})
        for section, action in (("finetune", "train"), ("zeroshot", "evaluate")):
            job = run.path / "jobs" / section
            job.mkdir(parents=True)
            spec = {"function": "egokit.jobs.run_job:work", "name": "x", "config": {"seed": 1},
                    "run": str(run.path), "action": action, "section": section, "version": "1", "init_sha256": "",
                    "task_sha256": "", "gpus": []}
            (job / "spec.json").write_text(json.dumps(spec))
            (job / "job.json").write_text(json.dumps({"cluster": "local", "job_id": "1", "host": "elsewhere"}))
            (job / "failures.json").write_text(json.dumps([{"attempt": "1-0", "step": 3}]))
        (job / "progress.json").write_text(json.dumps({"step": 1, "steps": 3, "time": 5.0, "eta_s": 3.0}))
        run.write_metrics("finetune", {"mAP": 40.0, "finished": False, "action": "train", "task": "ek100",
                                       "toy": False, "samples": 9, "frames": 4, "precision": "fp32",
                                       "init": "x.pt", "init_sha256": "0", "data": {}, "score": "mAP",
                                       "recipe": {"seed": 0, "data.eval_frames": 4}})
        run.write_rows("zeroshot", {"scores": np.eye(4, dtype=np.float32), "names": np.array(["a", "b"])},
                       np.ones((2, 3)))


def read_run(path: Path) -> None:
    outputs = next(folder for folder in path.parents if folder.name == "nb").parent
    rows = {row.run: row for row in runs_table.job_rows(outputs)}
    if set(rows) != {"good", "mine"} or rows["good"].state != "unknown":
        raise AssertionError(f"the table shows {rows}")
    runs_table.format_table([*rows.values()])
    ledger_table.format_ledger(ledger.read(outputs))
    run = Run(outputs / "nb/mine")
    history = History(run.path)
    history.update()
    history.waiting()
    for section in ("finetune", "zeroshot"):
        repr(Handle(run, section))
    run.read_rows("zeroshot")
    read_json(run.path / "jobs/finetune/failures.json", requeue.FAILURES, "delete it")
    Handle(run, "finetune").spec("config", "action")
    run.metrics()


# recipes and sites

def make_recipe(folder: Path, checkpoint: Path) -> None:
    (folder / "recipe.yaml").write_text(resolve_text("toy/ek100_finetune"))
    (folder / "site.yaml").write_text((project() / "params/sites/tiny.yaml").read_text())


def resolve_text(name: str) -> str:
    return (project() / "params" / f"{name}.yaml").read_text()


def project() -> Path:
    from egokit.config.resolve import project_root
    return project_root()


def read_recipe(path: Path) -> None:
    recipe, site = (path, "tiny") if path.stem == "recipe" else ("toy/pretrain", path)
    try:
        resolve(str(recipe), str(site), "", "fuzzed")
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None  # keys are named with the recipe as the user wrote it


# annotation files

def make_annotations(folder: Path, checkpoint: Path) -> None:
    shutil.copytree(project() / "outputs/toy", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.mp4"))


@functools.cache
def recipe(name: str):
    return resolve(f"toy/{name}", "tiny", SMALL, "test")


def read_annotations(path: Path) -> None:
    name, root = next((name, parent) for parent in path.parents for name in FILES if parent / name == path)
    own, action = FILES[name]
    config = recipe(own)
    action(tasks.make(dataclasses.replace(config, site=dataclasses.replace(config.site, root=str(root)))))


def make_manifest(folder: Path, checkpoint: Path) -> None:
    shutil.copy(project() / "outputs/toy/prepared.json", folder)


# relevancy

def make_relevancy(folder: Path, checkpoint: Path) -> None:
    matrix = np.random.default_rng(0).integers(0, 5, (6, 4)) / np.float32(4)
    for protocol in (2, 3, 4, 5):
        (folder / f"p{protocol}.pkl").write_bytes(pickle.dumps(matrix.astype(float), protocol))
    np.save(folder / "a.npy", matrix)
    shutil.copy(next((project() / "outputs/toy").rglob("*_train.safetensors")), folder / "own.safetensors")


def read_relevancy(path: Path) -> None:
    matrix = relevancy.read(path)
    for row in range(min(3, matrix.shape[0])):
        matrix.row(row)


# checkpoints

def make_checkpoints(folder: Path, checkpoint: Path) -> None:
    import torch
    from conftest import opened
    model = opened(resolve("toy/pretrain", "tiny", SMALL))
    run = folder / "run/checkpoints/best.pt"
    run.parent.mkdir(parents=True)
    weights.save(model, run, step=3, metrics={"mAP": 1.0})
    weights.save(model, folder / "own.safetensors")
    weights.export(model, folder / "released.pth")
    content = torch.load(folder / "released.pth", weights_only=False)
    torch.save(content, folder / "older.pth", _use_new_zipfile_serialization=False)
    model.head = ClassHead(16, ["yes", "no"], hidden=2)  # EgoTaskQA's, which stands in records
    weights.save(model, folder / "headed.pth")
    weights.export(model, folder / "released.tar")
    (folder / "answer_set.txt").write_text("yes\nno\n")


def read_checkpoint(path: Path) -> None:
    if path.suffix == ".txt":
        return recorded_head.name_classes(ClassHead(16, 2), path, "a.pt")
    source = path.parents[1] if path.parent.name == "checkpoints" else path
    weights.load(source)
    checkpoints.read(path)


# features and indexes

def make_features(folder: Path, checkpoint: Path) -> None:
    import torch
    clip_features.save(folder / "a.npy", torch.rand(5, 8))
    clip_features.save(folder / "a.pt", torch.rand(5, 8))


def make_index(folder: Path, checkpoint: Path) -> None:
    dice = np.random.default_rng(0)
    names, clips = ["a" * 24, "b" * 24], [400, 300]
    for name, count in zip(names, clips, strict=True):
        vector_index.save(folder / f"{name}.npy", np.arange(count), np.arange(count) + 2.0, dice.random((count, 8)))
    lines = [{"video": f"{name}.mp4", "name": name, "bytes": 5, "modified_ns": 5, "start": 0.0, "seconds": 9.0,
              "clips": count, "damaged": {"share": 0.1, "times": [[0.0, 1.0]]}}
             for name, count in zip(names, clips, strict=True)]
    (folder / "manifest.json").write_text(json.dumps(
        {"videos": lines, "unreadable": [{"video": "c", "name": "c", "reason": "x"}], "dimension": 8, "reading": 2}))
    index_task.open_vectors(folder, json.loads((folder / "manifest.json").read_text())).build_faiss()


def make_moments(folder: Path, checkpoint: Path) -> None:
    golden = json.loads((Path(__file__).parent / "golden/golden_mq_nlq.json").read_text())
    documents = golden["mq_convert"]["documents"] | {
        f"nlq_{split}": document for split, document in golden["nlq_convert"]["documents"].items()}
    documents["nlq_mine"] = {"results": golden["nlq_metrics"]["predictions"]}
    clips = list(mq_annotations.read_clips(documents["moments_val"]))
    results = dict(zip(clips, golden["mq_clips"]["detections"]["results"].values(), strict=False))
    documents["mine"] = {"detect_results": results, "retrieve_results": results}
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))


def read_moments(path: Path) -> None:
    """Score the folder's result files, or read annotations that have no scores."""
    if path.stem in ("moments_val", "mine"):
        score.format_mq(score.score_mq(path.parent / "mine.json", path.parent / "moments_val.json"))
    elif path.stem in ("nlq_val", "nlq_mine"):
        score.format_nlq(score.score_nlq(path.parent / "nlq_mine.json", path.parent / "nlq_val.json"))
    elif path.stem.startswith("nlq"):
        clips = nlq_annotations.read_clips(path)
        nlq_annotations.converted(clips)
    else:
        mq_annotations.clip_annotations(mq_annotations.read_clips(path))


def read_index(path: Path) -> None:
    folder = path.parent if path.parent.name != "approximate" else path.parents[1]
    manifest = index_task.read_manifest(folder)
    index = index_task.open_vectors(folder, manifest)
    moments.find_moments(index, np.ones(index.dimension), 5, moments.sample(index) if len(index) else None)


KINDS = {
    "run": Kind(make_run, read_run, ("nb/mine/*.json*", "nb/mine/jobs/*/*.json", "nb/mine/*.npz"), count=300),
    "recipe": Kind(make_recipe, read_recipe, ("*.yaml",), count=200),
    "annotation": Kind(make_annotations, read_annotations, tuple(FILES), count=150),
    "manifest": Kind(make_manifest, annotation_json.read_manifest, ("*.json",), count=60),
    "relevancy": Kind(make_relevancy, read_relevancy, ("*.pkl", "*.npy", "*.safetensors"), count=300),
    "checkpoint": Kind(make_checkpoints, read_checkpoint, ("*.pth", "*.tar", "*.txt", "*.safetensors",
                                                           "run/checkpoints/*.pt"), count=150),
    "feature": Kind(make_features, clip_features.stored, ("*.npy", "*.pt"), count=200),
    "moments": Kind(make_moments, read_moments, ("*.json",), count=200),
    "taskqa": Kind(make_taskqa, read_taskqa, ("direct/*.json", "direct/*.txt"), count=200),
    "qfvs": Kind(make_qfvs, read_qfvs, ("mine.json", "*/*.txt", "*/*/*.txt", "*/*/*/*.txt"), count=200),
    "vectors": Kind(make_vectors, read_vectors, ("vectors/*",), (ValueError, FileNotFoundError, VideoError), 200),
    "index": Kind(make_index, read_index, ("*.npy", "*.json", "approximate/*"), count=200),
}
