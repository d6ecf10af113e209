"""From a notebook or shell to a job and back; always through submitit, on this machine or on SLURM.

launch.py         submit, Handle: start, attach, wait, cancel
worker.py         what runs inside a job's processes
status.py         where a job is, and why it ended;  progress.py  how far it is;  runs_table.py  all jobs of all runs
slurm.py          SLURM's options and scripts;  requeue.py  what happens after a time limit, a preemption or a lost node
devices.py        which GPUs a job takes;  code_snapshot.py  the copy of egokit that a job runs
"""
