"""The embedded data set: real H.264 files and real table formats, made from a seed.

    egokit.toy.make(root, seed=0)        # everything, in the layouts of the real data sets; no download

    words.py             nouns, verbs, colours, and how each data set narrates them
    schedule.py          what happens in which video and when (pure numbers from the seed)
    motion.py            a verb as a function of progress; its opposite is the same function backwards
    sprites.py           objects as small pictures
    hand.py              the hand and forearm
    stage.py             table tops, and the composition of one frame
    frame_number.py      the number that every frame carries
    videos.py            schedule -> MP4 files, in several processes
    ego4d.py             egoclip.csv
    questions.py         egomcq.json
    moments.py           the moments_*.json
    language_queries.py  the nlq_*.json
    task_questions.py    EgoTaskQA's clips and questions
    transfer.py          the tables of EK-100 and Charades-Ego
    vocabulary.py        the tokenizer
    build.py             make(): all of it, once, resumable

Resizing, chunking, Charades metadata and EK-100 relevancy are not here: egokit.prep makes them from these files exactly
as it makes them from the real ones. Importing this package imports no codec.
"""
from egokit.toy.build import make
from egokit.toy.frame_number import read_frame_number
from egokit.toy.words import NOUNS, VERBS

__all__ = ["NOUNS", "VERBS", "make", "read_frame_number"]
