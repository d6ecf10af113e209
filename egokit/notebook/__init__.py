"""Running notebooks: what each calls first, and the same notebooks headless, alone or several.

open_run.py   open_run, describe: the config and the run folder of a notebook's four parameters
headless.py   one notebook, by papermill;  batch.py  several, here or as a job of their own;  demo.py  `egokit demo`
"""
