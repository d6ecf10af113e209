"""EK-100 multi-instance retrieval: what EgoVLP, LaViLa and AVION published."""
from egokit.tasks.published.conditions import AVION, EGOVLP, EGOVLP_BEST, LAVILA, LAVILA_BASE, LAVILA_LARGE, peer

BY_LAVILA = "EgoVLP, by LaViLa"
OWN_FRAMES = "published on frames that were extracted as pictures; egokit's frames are chosen as LaViLa's"
PLUS = "published with an adaptive margin, and a dual softmax of its own kind, which this run has not"
ISSUE = "a user of LaViLa measured mAP 29.2 and 30.3, nDCG 31.5 and 32.0, at 4 and 16 frames (its issue 11, open)"
LAVILA_ZOO, AVION_PAPER = "LaViLa's README, model zoo", "AVION's paper and README"
README = "AVION's README has mAP {}, nDCG {}"

ZERO_SHOT = (  # model, file, conditions, source, note, {frames: (mAP, nDCG)}
    ("EgoVLP", EGOVLP_BEST, EGOVLP, "EgoVLP's README", OWN_FRAMES, {4: (16.6, 23.1)}),
    (BY_LAVILA, EGOVLP_BEST, LAVILA, "LaViLa's README, re-evaluated", "", {4: (22.1, 22.1), 16: (23.3, 27.9)}),
    ("LaViLa TSF-B", LAVILA_BASE, LAVILA, LAVILA_ZOO, "", {4: (29.7, 31.5), 16: (30.9, 32.0)}),
    ("LaViLa TSF-L", LAVILA_LARGE, LAVILA, LAVILA_ZOO, ISSUE, {4: (35.0, 34.2), 16: (36.1, 34.6)}),
    ("AVION ViT-B, Ego4D alone", ("", "fc3b7f", ()), AVION, AVION_PAPER, "", {4: (27.5, 29.1), 16: (28.4, 29.5)}),
    ("AVION ViT-B", ("", "91a90b", ()), AVION, AVION_PAPER, "its README has mAP 33.2 at 16 frames",
     {4: (31.1, 31.9), 16: (32.9, 32.7)}),
    ("AVION ViT-L", ("", "f377f6", ()), AVION, AVION_PAPER, "", {4: (36.4, 35.1), 16: (37.6, 35.3)}))
FINE_TUNED = (
    ("EgoVLP", ("EgoVLP_FT_EPIC.pth", "", ()), EGOVLP, "EgoVLP's README", "", {16: (45.0, 59.4)}),
    ("EgoVLP+", ("EgoVLP_FT_EPIC+.pth", "", ()), EGOVLP, "EgoVLP's README", PLUS, {16: (47.4, 61.4)}),
    ("LaViLa TSF-B", ("clip_openai_timesformer_base.ft_ek100_mir.ep_0085.md5sum_c67d95.pth", "c67d95", ()), LAVILA,
     LAVILA_ZOO, "", {16: (50.5, 65.0)}),
    ("LaViLa TSF-L", ("clip_openai_timesformer_large.ft_ek100_mir.ep_0095.md5sum_bd508b.pth", "bd508b", ()), LAVILA,
     LAVILA_ZOO, "", {16: (50.9, 66.5)}),
    ("AVION ViT-B", ("", "e099c0", ()), AVION, AVION_PAPER, README.format(51.7, 66.8), {16: (52.0, 66.5)}),
    ("AVION ViT-L", ("", "f82079", ()), AVION, AVION_PAPER, "", {16: (54.5, 69.0)}))

PEERS = [peer(f"EK-100 MIR {metric}, {words}", section, metric, number, model, file, frames, conditions, source, note)
         for section, words, rows in (("zeroshot", "zero-shot", ZERO_SHOT), ("finetune", "fine-tuned", FINE_TUNED))
         for model, file, conditions, source, note, by_frames in rows
         for frames, numbers in by_frames.items()
         for metric, number in zip(("mAP", "nDCG"), numbers, strict=True)]
