"""What a benchmark reads: annotation files, tables, samples and videos. Nothing here knows a model.

loader.py             Samples, and the DataLoader that names what it can't read
annotation_tables.py  CSV files;  annotation_json.py  JSON files;  relevancy.py  EK-100's relevancy
egoclip_table.py      EgoClip's 3.8 million rows as one mapped file
video/                from a path and a time to frames
"""
