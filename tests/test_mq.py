"""EgoMQ features: which frames, how much memory, lists of clips, manifests, decoders that hang."""
import collections
import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mq_features import RECIPE, extracted, same

from egokit import tasks
from egokit.data.video import decoding, frame_sampling, open_video
from egokit.data.video.transforms import normalise
from egokit.model import checkpoints, weights
from egokit.prep.video import ffmpeg
from egokit.tasks import clip_features
from egokit.toy import read_frame_number


def test_features_are_those_of_their_frames(checkpoint, resolve, project):
    config = resolve(RECIPE, "data.limit=2 evaluate.batch_size=3", run="random")
    task, model = tasks.make(config), weights.initial_model(config).eval()
    clip = task.clips()[0]
    features, damage = task.features(model, clip)
    assert not damage
    assert len(features) == int((clip["stop"] - clip["start"]) * 1.87 * 4 + 1) // 4
    video = open_video.open_video(project / f"outputs/toy/Ego4D_256/{clip['video_uid']}.mp4")
    indices = frame_sampling.mq(int(clip["start"] * 10), int(clip["stop"] * 10), 1.87, 10, 4)
    for at in (0, 5, len(features) - 1):
        frames = video.read(frame_sampling.clamp_indices(indices[4 * at:4 * at + 4], video.length))
        with torch.no_grad():
            pixels = normalise(task.transform(frames, None))
            assert torch.allclose(model.encode_video(pixels[None])[0], features[at], atol=1e-5)


def test_train_val_and_test_are_under_one_root_and_described(checkpoint, resolve, project, tmp_path):
    """.npy files hold what .pt files do; a loader process changes nothing."""
    config = resolve(RECIPE, "data.limit=0", run="random")
    features, manifest = extracted(config, tmp_path / "pt")
    clips = manifest.pop("clips")
    assert manifest == {"init": config.init, "init_sha256": checkpoints.fingerprint(checkpoint), "format": "pt",
                        "features_per_second": 1.87, "frames": 4, "stride": 4, "frame_rate": 7.48,
                        "layer": "video_projection", "dimension": 16, "unlisted": []}
    documents = {split: json.loads((project / f"outputs/toy/moments_{split}.json").read_text())
                 for split in ("train", "val", "test_unannotated")}
    listed = {split: {clip["clip_uid"] for video in document["videos"] for clip in video["clips"]}
              for split, document in documents.items()}
    of_split = collections.defaultdict(set)
    for clip in clips:
        of_split[clip["split"]].add(clip["clip_uid"])
        x = torch.load(tmp_path / "pt/features" / f"{clip['clip_uid']}.pt", weights_only=True)
        assert x.shape == (clip["features"], 16) and x.dtype == torch.float32
    assert of_split == listed and all(of_split.values())
    overrides = "data.limit=0 task.feature_format=npy data.workers=1"
    arrays, manifest = extracted(resolve(RECIPE, overrides, run="random"), tmp_path / "npy")
    assert same(arrays, features) and manifest["format"] == "npy"
    assert np.load(tmp_path / f"npy/features/{min(features)}.npy").ndim == 2


def test_a_clip_is_decoded_once_in_order(checkpoint, resolve, monkeypatch):
    config = resolve(RECIPE, "data.limit=0 evaluate.batch_size=2", run="random")
    task, model, timestamps = tasks.make(config), weights.initial_model(config).eval(), []
    monkeypatch.setattr(decoding.Damage, "show", lambda self, number: timestamps.append(number))
    clip = task.clips()[0]
    task.features(model, clip)
    assert len(timestamps) > 6 * (clip["stop"] - clip["start"])  # 7.48 samples a second
    assert (np.diff(timestamps) > 0).all()


def test_moments_of_a_video_of_variable_rate_are_taken_by_time(checkpoint, resolve, copied):
    """Four seconds at 10 fps, four at 2 fps, then 10 fps: frames are those a player shows."""
    on_copy, root = copied
    task = tasks.make(on_copy(resolve(RECIPE, "data.limit=0", run="random")))
    clip = task.clips()[0] | {"start": 2.0, "stop": 14.0}
    path = task.videos / f"{clip['video_uid']}.mp4"
    source = root / "Ego4D" / path.name  # its frames bear their numbers
    for name, options in (("v.mp4", ["-t", "20", "-vf", "select='lt(t,4)+gte(t,8)+not(mod(n,5))'", "-fps_mode", "vfr"]),
                          ("c.mkv", ["-c", "copy"])):  # whole: a copy cut short may lack some of its last frames
        subprocess.run([ffmpeg(), "-loglevel", "error", "-i", str(source), *options, str(root / name)], check=True)
    (root / "v.mp4").replace(path)
    video = open_video.open_video(path)
    assert not video.constant
    windows = clip_features.ClipWindows(task, clip)
    shown = np.array([read_frame_number(frame) for frame in video.read(windows.indices(video).ravel())])
    kept = np.array([n for n in range(200) if n < 40 or n >= 80 or n % 5 == 0])
    assert len(shown) == int(12 * 1.87 * 4 + 1) // 4 * 4
    moments = 2 + 12 * (np.arange(len(shown)) + 0.5) / int(12 * 1.87 * 4 + 1)
    ends = np.append(kept[1:], 200)
    assert all(n in kept and n / 10 < moment + 0.01 and moment - 0.01 < ends[kept == n] / 10
               for n, moment in zip(shown, moments, strict=True))
    pixels = torch.cat(list(windows.windows()))
    assert torch.equal(pixels, task.transform(video.read(windows.indices(video).ravel()), None))
    # at a constant rate frames are counted, also in a container that lists all times
    constant, listed = open_video.open_video(source), open_video.open_video(root / "c.mkv")
    assert constant.constant and listed.constant
    expected = frame_sampling.mq(20, 140, 1.87, 10, 4)
    for video in (constant, listed):
        assert windows.indices(video).ravel().tolist() == expected[:len(shown)].tolist()


def test_a_json_of_other_clips_and_whole_videos(checkpoint, resolve, copied, tmp_path):
    """NLQ's files have the same form; a list of videos gives one clip for each.

    Videos that were not resized are read as well.
    """
    on_copy, root = copied
    shutil.rmtree(root / "Ego4D_256")
    for split in ("train", "val", "test_unannotated"):
        document = json.loads((root / f"moments_{split}.json").read_text())
        for video in document["videos"]:
            for clip in video["clips"]:
                clip |= {"clip_uid": f"nlq-{clip['clip_uid']}",
                         "annotations": [{"language_queries": [{"query": "Where is it?"}]}]}
        (root / f"nlq_{split}.json").write_text(json.dumps(document))
        (root / f"moments_{split}.json").unlink()
    names = {path.stem: open_video.open_video(path) for path in (root / "Ego4D").glob("*.mp4")}
    videos = [{"video_uid": uid, "duration_sec": video.length / video.fps} for uid, video in names.items()][:3]
    (root / "ego4d.json").write_text(json.dumps({"videos": videos}))
    overrides = "data.limit=0 task.feature_videos=Ego4D task.feature_clips="
    features, manifest = extracted(on_copy(resolve(RECIPE, overrides + "nlq_*.json", run="random")), tmp_path / "nlq")
    assert all(uid.startswith("nlq-") for uid in features)
    assert {clip["split"] for clip in manifest["clips"]} == {"train", "val", "test_unannotated"}
    features, _ = extracted(on_copy(resolve(RECIPE, overrides + "ego4d.json", run="random")), tmp_path / "whole")
    assert {uid: len(x) for uid, x in features.items()} == {
        video["video_uid"]: int(video["duration_sec"] * 1.87 * 4 + 1) // 4 for video in videos}
    with pytest.raises(FileNotFoundError, match=r"moments_train.json is missing"):
        extracted(on_copy(resolve(RECIPE, run="random")), tmp_path / "moments")


def test_features_of_nan_or_inf_are_an_error(checkpoint, resolve, tmp_path):
    config = resolve(RECIPE, run="random")
    model = weights.initial_model(config)
    model.video_projection.register_forward_hook(lambda module, inputs, output: output / 0)
    with pytest.raises(ValueError, match=r"clip [\w-]+: NaN or Inf in its features; evaluate.precision is fp32"):
        extracted(config, tmp_path, model)
    assert not list(tmp_path.glob("features/*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["opening", "decoding"])
def test_a_decoder_that_hangs_is_an_error_that_names_the_file(checkpoint, resolve, monkeypatch, tmp_path, where):
    config = resolve(RECIPE, "data.limit=0 data.workers=1 data.read_timeout=3 evaluate.batch_size=4", run="random")
    task = tasks.make(config)
    uid = task.clips()[0]["video_uid"]

    class Hanging(open_video.PyAVReader):
        def __init__(self, path, *options):
            if where == "opening" and path.stem == uid:
                ctypes.PyDLL(None).sleep(1000)
            super().__init__(path, *options)

        def stream_frames(self, indices):
            for number, frame in enumerate(super().stream_frames(indices)):
                if number == 20 and self.path.stem == uid:  # not in the first item
                    ctypes.PyDLL(None).sleep(1000)
                yield frame
    monkeypatch.setitem(open_video.READERS, "pyav", Hanging)
    open_video._open.clear()
    with pytest.raises(open_video.VideoError, match=rf"{uid}.mp4: no answer from its reader within 3 s"):
        extracted(config, tmp_path)
    open_video._open.clear()
    assert len(list(tmp_path.glob("features/*.pt"))) == sum(clip["video_uid"] != uid for clip in task.clips())


LONG = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from egokit import tasks
from egokit.model import weights
from egokit.config.resolve import resolve
from egokit.runs.run_folder import Run
config = resolve("egomq", "long", sys.argv[2])
task = tasks.make(config)
metrics = task.extract(weights.initial_model(config).eval(), Run(sys.argv[1]))
print(metrics["features"], next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")),
      resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_a_clip_of_480_seconds_gives_897_features_in_less_than_2_gib(project, tmp_path):
    """The real recipe: 224 x 224, 16 frames, batches of 8, 4096 numbers, a 30 fps video.

    Its model alone would take 1.5 GB; this one is small. The loader process counts in full, shared pages included.
    """
    folder = tmp_path / "root"
    (folder / "Ego4D_256").mkdir(parents=True)
    subprocess.run([ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=size=340x256:rate=30:duration=490",
                    "-c:v", "libx264", "-preset", "ultrafast", "-g", "250", str(folder / "Ego4D_256/video.mp4")],
                   check=True)
    clip = {"clip_uid": "clip", "video_start_sec": 5.0, "video_end_sec": 485.0}
    for split in ("train", "val", "test_unannotated"):
        document = {"videos": [{"video_uid": "video", "clips": [clip]}]}
        (folder / f"moments_{split}.json").write_text(json.dumps(document))
    site = {"site": {"root": str(folder), "tokenizer": "outputs/toy/tokenizer"}}
    (project / "params/sites/long.yaml").write_text(json.dumps(site))
    overrides = ("init= model.width=32 model.heads=2 model.depth=1 model.num_fused_layers=1 model.patch_size=32 "
                 "model.vocab_size=1000 data.workers=1")
    done = subprocess.run([sys.executable, "-c", LONG, str(tmp_path / "run"), overrides], capture_output=True,
                          text=True, timeout=500, env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1])))
    assert done.returncode == 0, done.stderr[-3000:]
    features, own, child = map(int, done.stdout.splitlines()[-1].split())
    assert features == 897 and own + child < 2 << 20  # KiB
    assert clip_features.stored(tmp_path / "run/features/clip.pt").shape == (897, 4096)
