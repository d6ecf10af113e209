"""Text search over a folder of your own videos.

    index_task.py    the task that embeds a folder's clips     vector_index.py  their vectors on disk, exact or by faiss
    manifest.py      what an index holds
    searcher.py      queries against the index of a run        command.py       `egokit search`
    clip_files.py    hits as MP4 files and CSV                 page.py          hits in a notebook or an HTML page
    questions.py     questions about a clip, answered by EgoNLQ's head with stretches
    answers.py       questions about a clip, answered by EgoTaskQA's head in words
"""
from egokit.search.answers import Answerer, answer_box, answer_cards
from egokit.search.clip_files import ExportError, export, write_csv
from egokit.search.hits import Answer, Hit
from egokit.search.page import browser, grid, table, write_page
from egokit.search.questions import Questioner, answer_table, ask_browser
from egokit.search.searcher import Searcher, open_index, submit

__all__ = ["Answer", "Answerer", "ExportError", "Hit", "Questioner", "Searcher", "answer_box", "answer_cards",
           "answer_table", "ask_browser", "browser", "export", "grid", "open_index", "submit", "table", "write_csv",
           "write_page"]
