"""Toy data of moments and questions, drawn from a seed, and a plain training loop, soft-NMS and metrics for them."""
import math
from dataclasses import dataclass

import numpy as np
import torch

from egokit.model.moment_head import MomentHead, decode, losses, targets


@dataclass
class Clip:
    """Features (T, E), moments (M, 2) in positions with classes (M,), and a question's tokens (L, E_t) or None."""

    features: np.ndarray
    segments: np.ndarray
    classes: np.ndarray
    text: np.ndarray | None = None


def direction(random: np.random.Generator, rows: int, size: int, length: float) -> np.ndarray:
    vectors = random.normal(size=(rows, size))
    return length * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def place(random, T: int, longest: float, taken: list, overlap: float = 0.1) -> tuple[float, float] | None:
    """A stretch of log-uniform length from 3 positions on that hardly overlaps those taken; None after 20 tries."""
    for _ in range(20):
        length = math.exp(random.uniform(math.log(3), math.log(min(longest, T - 2))))
        start = random.uniform(0, T - 1 - length)
        if all(min(start + length, stop) - max(start, begin) <= overlap * length for begin, stop in taken):
            return start, start + length
    return None


def activity_clips(seed: int, train: int = 160, test: int = 60, size: int = 32, classes: int = 8) -> list[list[Clip]]:
    """Clips of 150 to 256 positions with 3 to 8 activities each, in noise.

    Each also has 4 distractors: the look of an activity for 1 to 3 positions.
    """
    random = np.random.default_rng(seed)
    first, second = direction(random, classes, size, 3), direction(random, classes, size, 3)

    def clip() -> Clip:
        T = int(random.integers(150, 257))
        x = random.normal(size=(T, size)) + random.normal(size=size) * 0.5
        taken, labels, t = [], [], np.arange(T)
        for _ in range(int(random.integers(3, 9))):
            if stretch := place(random, T, 60, taken):
                taken.append(stretch)
                labels.append(int(random.integers(classes)))
                inside = ((t >= stretch[0]) & (t <= stretch[1]))[:, None]
                wave = np.sin(t * random.uniform(0.2, 1.0) + random.uniform(0, 6))[:, None]
                x += inside * random.uniform(0.6, 1.2) * (first[labels[-1]] + 0.5 * wave * second[labels[-1]])
        for _ in range(4):
            start = int(random.integers(T - 4))
            x[start:start + int(random.integers(1, 4))] += first[random.integers(classes)]
        return Clip(x.astype(np.float32), np.array(taken), np.array(labels))
    return [[clip() for _ in range(count)] for count in (train, test)]


def question_clips(seed: int, train: int = 100, test: int = 40, size: int = 16, objects: int = 12) -> list[list[Clip]]:
    """Questions of clips of 64 to 128 positions with about 10 events: each asks for one event by its object's word.

    A question has 4 words; three are any of 20 others. A test clip's objects are known, its features are new.
    """
    random = np.random.default_rng(seed)
    looks, words = direction(random, objects, size, 4), direction(random, objects, size, 4)
    fillers = direction(random, 20, size, 4)

    def questions() -> list[Clip]:
        T = int(random.integers(64, 129))
        x, taken, asked = random.normal(size=(T, size)) * 0.7, [], []
        for number in random.permutation(objects)[:10]:  # each object once: a question has one answer
            if stretch := place(random, T, 12, taken, overlap=0):
                taken.append(stretch)
                inside = (np.arange(T) >= stretch[0]) & (np.arange(T) <= stretch[1])
                x += inside[:, None] * looks[number]
                text = fillers[random.integers(20, size=4)]
                text[random.integers(4)] = words[number]
                asked.append((stretch, text))
        return [Clip(x.astype(np.float32), np.array([stretch]), np.array([0]), text.astype(np.float32))
                for stretch, text in asked]
    return [[question for _ in range(count) for question in questions()] for count in (train, test)]


def collate(clips: list[Clip]) -> tuple[tuple, torch.Tensor, torch.Tensor]:
    """Inputs of the head, moments and classes of a batch."""
    def pad(rows, value=0):
        return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], True, value)
    mask = pad([np.ones(len(clip.features), dtype=bool) for clip in clips])
    inputs = pad([clip.features for clip in clips]).transpose(1, 2), mask
    if clips[0].text is not None:
        text = pad([clip.text for clip in clips])
        inputs += text, torch.ones(text.shape[:2], dtype=torch.bool)
    return inputs, pad([clip.segments.astype(np.float32) for clip in clips]), pad([clip.classes for clip in clips], -1)


def train(head: MomentHead, clips: list[Clip], steps: int, batch: int, C: int, rate: float = 1e-3) -> None:
    """Train with AdamW on a cosine, and leave the running mean of the weights in the head."""
    random = np.random.default_rng(0)
    scaled = [parameter for parameter in head.parameters() if parameter.dim() > 1]
    rest = [parameter for parameter in head.parameters() if parameter.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": scaled, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}])
    mean = [parameter.detach().clone() for parameter in head.parameters()]
    order = []
    for step in range(steps):
        if len(order) < batch:
            order = list(random.permutation(len(clips)))
        inputs, segments, classes = collate([clips[order.pop()] for _ in range(batch)])
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        found = losses(head(*inputs), *targets(head.points(inputs[1].shape[1]), segments, classes, C))
        ((found.focal + found.diou) / head.normaliser(found.positives)).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(mean, list(head.parameters()), 1 - min(0.999, (2 + step) / (11 + step)))
    with torch.no_grad():
        for parameter, value in zip(head.parameters(), mean, strict=True):
            parameter.copy_(value)


def overlap(segment: np.ndarray, others: np.ndarray) -> np.ndarray:
    shared = np.minimum(segment[1], others[:, 1]) - np.maximum(segment[0], others[:, 0])
    shared = np.maximum(shared, 0)
    return shared / np.maximum(segment[1] - segment[0] + others[:, 1] - others[:, 0] - shared, 1e-9)


def soft_nms(segments, scores, sigma: float, keep: int, least: float = 0.001) -> tuple[np.ndarray, np.ndarray]:
    """The best segments by falling score, each lowering those that it overlaps; Gaussian."""
    kept, given = [], []
    while len(kept) < keep and len(scores) and scores.max() > least:
        best = scores.argmax()
        kept.append(segments[best])
        given.append(scores[best])
        scores = scores * np.exp(-overlap(segments[best], segments) ** 2 / sigma)
        segments, scores = np.delete(segments, best, axis=0), np.delete(scores, best)
    return np.array(kept).reshape(-1, 2), np.array(given)


@torch.no_grad()
def predict(head: MomentHead, clip: Clip, sigma: float, keep: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(class, segments, scores) of each class of a clip, after soft-NMS of the class's best 400."""
    inputs, *_ = collate([clip])
    outputs = head.eval()(*inputs)
    segments, scores, classes = (part.numpy() for part in decode(
        *(part[0] for part in outputs), head.points(len(clip.features))))
    found = []
    for number in np.unique(classes):
        best = np.flatnonzero(classes == number)
        best = best[np.argsort(-scores[best])][:400]
        found.append((int(number), *soft_nms(segments[best], scores[best], sigma, keep)))
    return found


def mean_average_precision(clips: list[Clip], predictions: list, classes: int) -> float:
    """Mean over tIoU .1 to .5 and classes of the interpolated average precision."""
    values = []
    for number in range(classes):
        truth = [clip.segments[clip.classes == number] for clip in clips]
        # what overlaps which moments is found once, not for each tIoU
        rows = sorted(((score, clip, tuple(segment), overlap(segment, truth[clip]))
                       for clip, found in enumerate(predictions) for label, segments, scores in found
                       if label == number for segment, score in zip(segments, scores, strict=True)),
                      key=lambda row: row[:3], reverse=True)
        most = [row[3].max(initial=-1) for row in rows]
        for least in (0.1, 0.2, 0.3, 0.4, 0.5):
            free, right = [np.ones(len(segments), dtype=bool) for segments in truth], []
            for (_, clip, _, overlaps), greatest in zip(rows, most, strict=True):
                right.append(False)
                if greatest >= least:
                    left = np.where(free[clip], overlaps, -1)
                    right[-1] = left.max() >= least
                    if right[-1]:
                        free[clip][np.argmax(left)] = False
            precision = np.cumsum(right) / (1 + np.arange(len(right)))
            best = np.maximum.accumulate(precision[::-1])[::-1]
            values.append((best * right).sum() / sum(map(len, truth)) if right else 0.0)
    return float(np.mean(values))


def recall(questions: list[Clip], predictions: list, k: int, least: float) -> float:
    """The share of questions with an IoU above `least` between the answer and one of the first k segments."""
    first = [found[0][1][:k] if found else np.zeros((0, 2)) for found in predictions]  # there is one class
    return float(np.mean([any(overlap(question.segments[0], segments) > least)
                          for question, segments in zip(questions, first, strict=True)]))
