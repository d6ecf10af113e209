"""Annotation files, data sets, batches and videos: what a benchmark reads.

Nothing here knows a model.

loader.py             Samples, the base of all data sets, and build_loader;  watchdog.py  workers that hang or crash
annotation_tables.py  CSV annotations of EK-100 and Charades-Ego
annotation_json.py    JSON annotations of EgoMCQ and EgoMQ, and the manifest of `egokit prep`
egoclip_table.py      egoclip.csv: its 3.8 million rows as one memory-mapped Arrow file
relevancy.py          EK-100's relevancy matrix: computed, stored and read
safe_pickle.py        pickles of others as plain data;  plain_data.py  its bounds and stand-ins
site_checks.py        what the checks of `egokit doctor` share: each task's class checks its own files
video/                decoding: from a path and a time to frames
"""
