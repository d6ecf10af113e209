"""Pictures and tables of a run, returned for the notebook; pictures are also saved.

A picture is saved under the run's figures/ folder.

    samples.py      what goes into training            curves.py       training, live or afterwards
    predictions.py  held-out samples during training   retrieval.py    questions, retrieved clips, re-ranking
    per_class.py    numbers by class, verb and noun    browser.py      the retrieval browser; its content: queries.py
    attention.py    gates and word attention           features.py     EgoMQ features over time
    moments.py      EgoMQ's detections                 answers.py      EgoNLQ's answers
    asked.py        questions answered in words        answer_queries.py  the browser's content of these
    comparison.py   models beside one another          trials.py       steps in the notebook: gradients, overlaid curves
    run_tables.py   several runs: settings, mean and spread            run_curves.py   several runs in one figure
    answer_attention.py  where the answering state looks
    moment_files.py the files of both                  tables.py       numbers and files as tables
    style.py        colours, frame strips, saving
    alternative_text.py  what a figure says to a reader who can't see it

matplotlib is imported where it is used, so importing this package stays light.
"""
from egokit.viz.answer_attention import answer_attention
from egokit.viz.answers import answers, recalls_by_template
from egokit.viz.asked import accuracy_by_kind, asked_clips, confusions
from egokit.viz.attention import fusion
from egokit.viz.browser import browser
from egokit.viz.comparison import comparison
from egokit.viz.curves import curves, watch
from egokit.viz.features import features
from egokit.viz.moments import detections, detections_per_class, false_positives
from egokit.viz.per_class import accuracy_by_word, average_precisions, retrieval_by_word
from egokit.viz.predictions import predictions
from egokit.viz.retrieval import question, questions, reranked, retrieved
from egokit.viz.run_curves import mean_curves, setting_scores
from egokit.viz.run_tables import by_setting, changed_sides, run_settings, setting_differences
from egokit.viz.samples import batch, narrations
from egokit.viz.style import strip
from egokit.viz.tables import counts, files, findings, ledger, metrics, published, results, table
from egokit.viz.trials import gradients, overlaid

__all__ = ["accuracy_by_kind", "accuracy_by_word", "answer_attention", "answers", "asked_clips", "average_precisions",
           "batch", "browser", "by_setting", "changed_sides", "comparison", "confusions", "counts", "curves",
           "detections", "detections_per_class", "false_positives", "features", "files", "findings", "fusion",
           "gradients", "ledger", "mean_curves", "metrics", "narrations", "overlaid", "predictions", "published",
           "question", "questions", "recalls_by_template", "reranked", "results", "retrieval_by_word", "retrieved",
           "run_settings", "setting_differences", "setting_scores", "strip", "table", "watch"]
