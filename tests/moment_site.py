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
