"""Pictures and tables. Each function saves under the run's figures/ and returns what a notebook shows.

base.py  style and strips;  training.py  what goes in;  curves.py  training as it goes on;  predictions.py  what it predicts of
a few samples meanwhile;  retrieval.py  questions and results;  classes.py  numbers class by class;  browser.py  the retrieval
browser, queries.py  what it shows;  inside.py  gates, attention, features;  tables.py  numbers and files. matplotlib is imported in use.
"""
from egokit.viz.attention import fusion
from egokit.viz.browser import browser
from egokit.viz.curves import curves, watch
from egokit.viz.features import features
from egokit.viz.per_class import accuracy_by_word, average_precisions, retrieval_by_word
from egokit.viz.predictions import predictions
from egokit.viz.retrieval import question, questions, reranked, retrieved
from egokit.viz.samples import batch, narrations
from egokit.viz.style import strip
from egokit.viz.tables import counts, files, findings, ledger, metrics, published, results, table

__all__ = ["accuracy_by_word", "average_precisions", "batch", "browser", "counts", "curves", "features", "files", "findings", "fusion",
           "ledger", "metrics", "narrations", "predictions", "published", "question", "questions", "reranked", "results",
           "retrieval_by_word", "retrieved",
           "strip", "table", "watch"]
