"""Text search over a folder of one's own videos: a Searcher answers queries, the rest shows and saves what it found.

searcher.py  the index of a run, and answers;  cut.py  clips as files;  page.py  what a notebook or browser shows.
How the index is made is tasks/search.py's, where its vectors lie vectors.py's.
"""
from egokit.search.cut import export, write_csv
from egokit.search.page import browser, grid, table
from egokit.search.searcher import Hit, Searcher, open_index, submit

__all__ = ["Hit", "Searcher", "browser", "export", "grid", "open_index", "submit", "table", "write_csv"]
