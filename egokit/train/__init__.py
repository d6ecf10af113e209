"""Training and evaluation of a model on a task. Nothing here knows a benchmark.

loop.py            epochs, steps, checkpoints, resumption
step.py            the loss of a batch, its gradient, compiled blocks;  gradient_cache.py  the same in micro-batches
evaluate.py        a model over a task's samples, to metrics
optim.py           AdamW's groups and schedule;  batch_plan.py  how a batch spreads over processes, and what memory it takes
distributed.py     every call between processes;  preemption.py  time limits and signals
"""
