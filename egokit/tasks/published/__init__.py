"""Numbers that other models' authors published, one file a benchmark, which its task's class names as `peers`.

Each is a `Result` with the file that it is of, the frames of a clip, in what its evaluation differs from the task's own
recipe, and where it was published. conditions.py has what the numbers of one family share. To add a model, give it
lines here, in the file of each benchmark.
"""
