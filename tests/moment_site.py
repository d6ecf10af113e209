"""A site of stored features: clips drawn from noise with moments in them, as moments.md's toy; no video, no encoder."""
import json

import numpy as np

RATE = 1.875  # features a second


def draw_clip(random, classes, dimension, directions, positions):
    """Return (N, E) features and the moments [(start, stop, class)] of a clip, in positions."""
    N = int(random.integers(*positions))
    x = random.normal(0, 1, (N, dimension)) + random.normal(0, 0.5, dimension)
    moments = []
    for _ in range(int(random.integers(3, 7))):
        length = np.exp(random.uniform(np.log(4), np.log(30)))
        start = random.uniform(0, N - length)
        if all(stop <= start or first >= start + length for first, stop, _ in moments):
            moments.append((start, start + length, int(random.integers(classes))))
    for start, stop, number in moments:
        inside = (np.arange(N) + 0.5 >= start) & (np.arange(N) + 0.5 < stop)
        x[inside] += random.uniform(0.8, 1.2) * directions[number]
    return x.astype(np.float32), moments


def make_mq(root, clips=(40, 16), classes=4, dimension=16, positions=(64, 128), seed=0, features=True):
    """Write moments_*.json and the clips' features (features/<clip_uid>.npy) under a root."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(classes, dimension))
    directions *= 3 / np.linalg.norm(directions, axis=1, keepdims=True)
    folder = root / "vectors"
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", clips[0]), ("val", clips[1]), ("test_unannotated", 2)):
        videos = []
        for i in range(count):
            uid = f"{split}-{i}"
            x, moments = draw_clip(random, classes, dimension, directions, positions)
            if features:
                np.save(folder / f"{uid}.npy", x)
            labels = [{"start_time": start / RATE, "end_time": stop / RATE, "label": f"class_{number}", "primary": True}
                      for start, stop, number in moments]
            clip = {"clip_uid": uid, "video_start_sec": 10.0, "video_end_sec": 10.0 + len(x) / RATE,
                    "annotations": [{"annotator_uid": "a", "labels": labels}] if split != "test_unannotated" else []}
            videos.append({"video_uid": f"video-{uid}", "split": split.split("_")[0], "clips": [clip]})
        (root / f"moments_{split}.json").write_text(json.dumps({"videos": videos}))
    return folder


def make_nlq(root, clips=(60, 20), objects=6, dimension=16, positions=(64, 100), seed=0):
    """Write nlq_*.json, and a run's features/ and questions/ as egokit's extraction leaves them, under root/run."""
    random = np.random.default_rng(seed)
    looks, words = (random.normal(size=(objects, dimension)) for _ in range(2))
    looks *= 3 / np.linalg.norm(looks, axis=1, keepdims=True)
    folder, spoken = root / "run/features", root / "run/questions"
    for each in (folder, spoken):
        each.mkdir(parents=True, exist_ok=True)
    listed = []
    for split, count in (("train", clips[0]), ("val", clips[1]), ("test_unannotated", 2)):
        videos = []
        for i in range(count):
            uid, N = f"{split}-{i}", int(random.integers(*positions))
            x = random.normal(0, 1, (N, dimension))
            shown = random.permutation(objects)[:4]
            starts = np.linspace(0, N - 12, len(shown)) + random.uniform(0, 4, len(shown))
            queries, tokens = [], []
            for thing, start in zip(shown, starts, strict=True):
                length = random.uniform(4, 9)
                inside = (np.arange(N) + 0.5 >= start) & (np.arange(N) + 0.5 < start + length)
                x[inside] += looks[thing]
                times = {} if split == "test_unannotated" else {
                    "clip_start_sec": start / RATE, "clip_end_sec": (start + length) / RATE}
                queries.append({"query": f"where is thing {thing}?", "template": "Objects: Where is object X?"} | times)
                tokens.append(np.stack([words[thing], random.normal(size=dimension)]))
            seconds = N / RATE
            np.save(folder / f"{uid}.npy", x.astype(np.float32))
            np.save(spoken / f"{uid}.npy", np.concatenate(tokens).astype(np.float32))
            clip = {"clip_uid": uid, "video_start_sec": 5.0, "video_end_sec": 5.0 + seconds,
                    "annotations": [{"annotation_uid": f"a-{uid}", "language_queries": queries}]}
            videos.append({"video_uid": f"video-{uid}", "split": split.split("_")[0], "clips": [clip]})
            listed.append({"clip_uid": uid, "video_uid": f"video-{uid}", "split": split, "start": 5.0,
                           "stop": 5.0 + seconds, "features": N, "questions": [
                               {"annotation_uid": f"a-{uid}", "query_idx": place, "query": query["query"], "tokens": 2}
                               for place, query in enumerate(queries)]})
        (root / f"nlq_{split}.json").write_text(json.dumps({"videos": videos}))
    manifest = {"format": "npy", "init": "", "features_per_second": RATE, "kind": "clip", "clips": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return root / "run"
