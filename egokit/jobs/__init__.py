"""From a notebook or shell to a job and back, through submitit, locally or on SLURM.

launch.py         submit a job or attach to it;  handle.py  Handle: follow it, wait for it, cancel it
worker.py         how a job starts, and the callable that submitit runs;  run_job.py  what it does in each process
status.py         where a job is and why it ended;  progress.py  how far it is;  runs_table.py  all jobs of all runs
starter.py        a job's files and its starter;  sweep.py, grid.py  many runs of one recipe, as one array on SLURM
queue.py          what squeue says of SLURM's jobs
slurm.py          sbatch's options and script;  requeue.py  whether a job that lost a rank or a node is tried again
devices.py        which GPUs a job takes;  code_snapshot.py  the copy of egokit that a job runs
profiling.py      a job of a few training steps under PyTorch's profiler

What a job does at its time limit (launch.timeout_minutes) or when it is preempted:
1. Its ranks get SIGUSR2: on SLURM 120 s before the limit (slurm.py) or as a preemption begins; on this machine 30 s
   before the limit.
2. A training finishes the step it is in, saves a checkpoint, and only then passes the signal on to submitit
   (Trainer.epoch in train/loop.py, train/preemption.py). Evaluation, extraction and the validation between epochs
   pass it on at once.
3. submitit calls Work.checkpoint (worker.py) and queues the same job again, at most launch.requeues times.
   Preemptions are not counted; a job on this machine starts six times at most.
4. The new start resumes: training from its newest checkpoint, extraction after the clips that it has written. An
   evaluation begins again.
A job that ends in an error instead is judged by requeue.py.
"""
