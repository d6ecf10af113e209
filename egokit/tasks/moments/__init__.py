"""Moments of clips: EgoMQ's activities and EgoNLQ's answers. Files, labels, post-processing and metrics.

segments.py          IoU, NMS, soft-NMS of two kinds, voting
mq_annotations.py    moments_*.json -> clips with their moments
mq_results.py        EgoMQ's detection file, retrieval file and submission: made and read
mq_metrics.py        EgoMQ's mAP and recall
nlq_annotations.py   nlq_*.json -> questions, and the original's conversion in two steps
nlq_results.py       EgoNLQ's submission: made, read and scored
score.py             the numbers of anybody's file, for `egokit score`

Nothing here imports torch, so that `egokit score` starts at once.
"""
