"""A tiny site of EgoTaskQA: questions of both splits, and clips as files, whole videos and pictures of frames."""
import json
from pathlib import Path

import numpy as np

from egokit.tasks.taskqa import annotations, vocabulary

RATE, SIZE = annotations.FPS, 64
VIDEOS = {"room-1": 120, "room-2": 100}  # frames
CLIPS = [("room-1|P1|0|48"), ("room-1|P1|48|120"), ("room-1|P2|10|70"), ("room-2|P1|0|60"), ("room-2|P2|40|100")]
TRAIN_ANSWERS = ["open"] * 3 + ["cup"] * 2 + ["yes"] * 3 + ["no"] * 2 + ["Red"]
ANSWERS = vocabulary.build(TRAIN_ANSWERS)
TEXTS = {"open": ("What is done with the cup?", "descriptive$world$action$query"),
         "cup": ("Which object is opened?", "explanatory$multi-agent$object$query"),
         "red": ("What colour is it?", "predictive$intent$state$query"),
         "yes": ("Is the cup opened?", "descriptive$world$action$verify"),
         "no": ("Is the cup closed? ", "counterfactual$world$change$verify")}


def entry(clip, question, answer, number, labels, question_id=7):
    """A question as the data set's scripts write it."""
    return {"interval": clip, "question": question, "answer": answer, "answer_encode": number, "reasoning_type": labels,
            "question_id": question_id, "type": [labels.split("$")[0]], "category": ["world"], "semantic": "action",
            "structural": "query", "reference": labels.split("$")[-1], "program": "query([a], b)", "step": 2,
            "video_id": 3, "question_encode": [1, 2], "question_char_encode": [[1] * 17] * 2}


def make_questions(folder, splits=("direct", "indirect")):
    """Write the question files and the vocabulary of each split under a folder."""
    for split in splits:
        own = Path(folder) / split
        own.mkdir(parents=True, exist_ok=True)
        vocabulary.write(own / "answer_set.txt", ANSWERS)
        for part in annotations.SPLITS:
            answers = {"train": TRAIN_ANSWERS, "val": ["open", "cup", "yes", "no", "television", "Cup"],
                       "test": ["open", "open", "cup", "yes", "yes", "no", "red", "yes", "no", "cup", "open"]}[part]
            encoded = vocabulary.encode(answers, ANSWERS, as_written=part != "train")
            entries = []
            for number, (answer, label) in enumerate(zip(answers, encoded, strict=True)):
                question, labels = TEXTS.get(answer.lower(), TEXTS["cup"])
                reference = "direct" if part == "train" or (number % 3 and split == "direct") or (
                    number == 0 and part == "val") else "indirect"
                entries.append(entry(CLIPS[number % len(CLIPS)], question, answer, label, f"{labels}${reference}",
                                     7 + number))
            (own / annotations.file_of(part)).write_text(json.dumps(entries))


def picture(video, person, number):
    """A grey frame whose brightness says its number; white corners say its video and person."""
    pixels = np.full((SIZE, SIZE, 3), 2 * number, np.uint8)
    pixels[:16, :16] = 255 * (person - 1)
    pixels[-16:, -16:] = 255 * sorted(VIDEOS).index(video)
    return pixels


def number_of(pixels):
    """The numbers of frames (..., H, W, 3), as their brightness says."""
    height, width = pixels.shape[-3:-1]
    middle = pixels[..., height // 2 - 4:height // 2 + 4, width // 2 - 4:width // 2 + 4, :]
    return np.round(middle.astype(float).mean((-3, -2, -1)) / 2).astype(int)


def write_video(path, frames, rate=RATE):
    """Write frames as a video of constant rate, nearly without loss."""
    import av
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1", "preset": "ultrafast", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for pixels in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def make_clips(root):
    """Write every clip as a file of its own, with bars in its name."""
    for name in CLIPS:
        clip = annotations.ClipName.parse(name)
        write_video(Path(root) / f"EgoTaskQA/qa_videos/{name}.mp4",
                    (picture(clip.video, clip.person, number) for number in range(clip.start, clip.stop)))


def make_videos(root):
    """Write LEMMA's whole videos, and the pictures of their frames."""
    from PIL import Image
    for video, length in VIDEOS.items():
        for person in (1, 2):
            frames = [picture(video, person, number) for number in range(length)]
            write_video(Path(root) / f"LEMMA/{video}/fpv{person}.mp4", frames)
            folder = Path(root) / f"LEMMA/{video}/fpv{person}"
            folder.mkdir(parents=True)
            for number, pixels in enumerate(frames, 1):
                Image.fromarray(pixels).save(folder / f"img_{number:05d}.jpg", quality=95)


def make_site(root):
    """Write questions and clips under a data root."""
    make_questions(Path(root) / "EgoTaskQA/qa")
    make_clips(root)
    return Path(root)
