"""Running notebooks: what each calls first, and the same notebooks without a browser.

    open_run.py    open_run: the config and the run folder of a notebook's four parameters
    description.py describe: what a config changes, and the shape of its checkpoint
    trial.py       Trial: training steps in the notebook's own process
    steps.py       steps that not every model can take
    headless.py    one notebook, executed by papermill
    batch.py       several notebooks, run here or as a job of their own
    demo.py        `egokit demo`: all notebooks on the toy data;  telling.py  what it prints about their jobs
"""
