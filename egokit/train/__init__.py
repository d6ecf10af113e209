"""Training and evaluation of a model on a task. Nothing here knows a benchmark.

loop.py            epochs, steps, checkpoints, resumption
step.py            the loss of a batch and its gradient
compiled.py        torch.compile of the encoders' blocks
gradient_cache.py  the same gradient in micro-batches, with less memory
evaluate.py        from a task's samples to its metrics
optim.py           AdamW's parameter groups and schedule
batch_plan.py      how a batch spreads over processes; advice after an out-of-memory error
checkpoint_writer.py  a thread that writes checkpoints from copies in memory
training_state.py  what a checkpoint holds beside the weights, and going on from it
nodes.py           work that one rank does for all, or for its node
distributed.py     every call between processes
timing.py          where a step's time goes;  usage.py  what the processes use of their machine
profile.py         a few steps under PyTorch's profiler
preemption.py      the signal before a time limit or a preemption
"""
