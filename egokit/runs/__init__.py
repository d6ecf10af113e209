"""What a run leaves behind: its folder, its log, and its results beside published ones.

files.py       atomic files and folders, file locks
explain.py     what an error of the file system says to a user
array_file.py  NumPy's files, read with bounds
run_folder.py  Run: outputs/<notebook>/<run>/ and the files in it
log.py         History: log.jsonl as columns; TensorBoardLog: TensorBoard's copy of it
bottleneck.py  what bounds a training's speed, by its log, and what to change
published.py   published numbers and their recipes
ledger.py      the numbers of all runs beside the published ones
run_set.py     several runs: which a name or a sweep stands for, and their settings
"""
