"""QFVS, query-focused video summarisation: its annotations, its metric, and what its metric measures.

annotations.py   the text files of Sharghi et al. 2017 -> tags, oracles and users' summaries
matching.py      maximum-weight matching (a Hungarian algorithm), precision, recall and F1
results.py       a file of scores or chosen shots: read, and scored
baselines.py     the rows beside every number: random shots, one fixed set of shots, a person
score.py         what `egokit score qfvs` prints

There is no model for it here: docs/qfvs.md says why. Nothing here imports torch.
"""
