"""The embedded data set: real H.264 files and real table formats, drawn from a seed, no download.

    egokit.toy.make(root, seed=0)        # everything, in the layouts of the real data sets

    words.py         nouns, verbs, colours and how each data set narrates them
    plan.py          what happens in which video and when (pure numbers from the seed)
    motion.py        a verb as a function of progress; its opposite is the same function backwards
    sprites.py       objects as small pictures;  hand.py  the hand and forearm
    stage.py         table tops, and one frame put together
    strip.py         the frame number that every frame carries
    videos.py        plan -> MP4 files, in several processes
    ego4d.py  questions.py  transfer.py  vocabulary.py     the tables and the tokenizer
    build.py         make(): all of it, once, resumable

Resizing, chunking, Charades metadata and EK-100 relevancy are not here: egokit.prep makes them from
these files exactly as it makes them from the real ones. Importing this package imports no codec.
"""
from egokit.toy.build import make
from egokit.toy.frame_number import read_frame_number
from egokit.toy.words import NOUNS, VERBS

__all__ = ["NOUNS", "VERBS", "make", "read_frame_number"]
