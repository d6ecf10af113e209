"""EgoMCQ: what EgoVLP and LaViLa published.

EgoVLP's score is the cosine. LaViLa's is the dot product of embeddings that are not normalised, in half precision.
"""
from egokit.tasks.published.conditions import EGOVLP, EGOVLP_BEST, HALF, LAVILA, LAVILA_BASE, LAVILA_LARGE, peer

PEERS = [
    peer(f"EgoMCQ {kind}-video, {score}", "egomcq", f"{score}_{kind}", number, model, file, 4, conditions, source)
    for score, kind, number, model, file, conditions, source in (
        ("dual", "inter", 90.7, "EgoVLP", EGOVLP_BEST, EGOVLP, "EgoVLP's README"),
        ("dual", "intra", 57.2, "EgoVLP", EGOVLP_BEST, EGOVLP, "EgoVLP's README"),
        ("dot", "inter", None, "LaViLa TSF-B", LAVILA_BASE, (*LAVILA, *HALF), "LaViLa's README, model zoo"),
        ("dot", "intra", 59.9, "LaViLa TSF-B", LAVILA_BASE, (*LAVILA, *HALF), "LaViLa's README, model zoo"),
        ("dot", "intra", 63.1, "LaViLa TSF-L", LAVILA_LARGE, (*LAVILA, *HALF), "LaViLa's README, model zoo"))]
