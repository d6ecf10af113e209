"""What a run leaves behind: its folder, its log, its results beside published ones.

files.py       whole files or none, folders, locks
run_folder.py  Run: outputs/<notebook>/<run>/ and what lies in it
log.py         History: log.jsonl as columns, and TensorBoard's copy
published.py   published numbers and their recipes;  ledger.py  runs beside them
"""
