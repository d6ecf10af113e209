"""Measure how fast a site's file system gives video: files opened a second, clips read a second, GPUs that these feed.

Processes, as many as a node's jobs have loaders, do what loaders do: first they open files of the task's samples and
read their beginnings, then they read samples. The pages of each file are dropped from this machine's memory before it
is opened, so that what is measured is the file system, or what it keeps in memory itself.
"""
import contextlib
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator

from egokit import tasks
from egokit.data.loader import Samples
from egokit.data.site_checks import Checks, Finding
from egokit.data.video import open_video

SECONDS = 40.0      # of a measurement; a quarter of it opens files, the rest reads samples
GRACE = 15.0        # seconds after which a process that still reads is ended
BEGINNING = 1 << 16  # bytes that are read of a file that is opened: a reader's first are its table of frames
MOST_PATHS = 20_000  # files that a process opens at most
COMPUTING = 0.6     # share of the time from which on loaders are short of cores, and not of files
GPU_CLIPS = 109     # clips a second that a GPU trains on: measured on an H200 by the recipe, 64 clips in 587 ms
                    # (docs/gpu.md; without checkpointing it is 164)


class _Named(Exception):
    """Ends the reading of a sample at its first file, whose path is all that was wanted."""


def drop_pages(path: str) -> bytes:
    """Drop a file's pages from this machine's memory, where that may be, and return its beginning, read anew."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(file, BEGINNING, 0)
    finally:
        os.close(file)


def _drop_quietly(path: str) -> None:
    with contextlib.suppress(OSError):
        drop_pages(path)


def _open(path: str) -> None:
    """Open a file and read its beginning; an error says what to do, as the reader's do."""
    try:
        drop_pages(path)
    except OSError:
        open_video.open_video(path)
        raise


def _paths(dataset: Samples, draw: random.Random, seconds: float) -> list[str]:
    """Return the files of samples that are drawn; nothing is opened."""
    def name(path: str) -> None:
        raise _Named(path)

    paths: dict[str, None] = {}
    until, tries = time.monotonic() + seconds, 0
    open_video.on_open = name
    while len(paths) < MOST_PATHS and tries < 2 * MOST_PATHS and time.monotonic() < until:
        tries += 1
        try:
            dataset[0, draw.randrange(len(dataset))]
        except _Named as named:
            paths[str(named)] = None
    open_video.on_open = None
    return list(paths)


def _measure(dataset: Samples, number: int, seconds: float, began, send) -> None:
    """Do one process's part, and send an error or (files a second, samples a second, share of it spent computing).

    Args:
        number: the process's, from which its samples are drawn.
        began: a barrier of all processes, so that all measure at the same time.
        send: the end of a pipe.
    """
    import torch
    torch.set_num_threads(1)
    draw, files, samples = random.Random(number), 0, 0
    try:
        paths = _paths(dataset, draw, min(2.0, seconds / 8))
        began.wait(GRACE)
        start = time.monotonic()
        while paths and time.monotonic() - start < seconds / 4:
            _open(paths[files % len(paths)])
            files += 1
        per_second = files / (time.monotonic() - start)
        start, computed = time.monotonic(), time.process_time()
        open_video.on_open = _drop_quietly  # the reader explains what can't be opened
        while paths and time.monotonic() - start < 0.75 * seconds:
            dataset[0, draw.randrange(len(dataset))]
            samples += 1
        took = time.monotonic() - start
        send.send((per_second, samples / took, (time.process_time() - computed) / took))
    except Exception as error:
        began.abort()  # the others wait for nothing
        send.send(error if isinstance(error, OSError | ValueError) else RuntimeError(f"{error!r}"))


def rates(dataset: Samples, processes: int, seconds: float) -> tuple[float, float, float]:
    """Measure with several processes at the same time.

    Returns:
        (files opened a second, samples read a second, both by all processes together and 0 if samples open no videos;
        share of the reading that the processes spent computing, 0 to 1).

    Raises:
        TimeoutError: a process did not answer.
        OSError, ValueError: a sample can't be read.
    """
    context = multiprocessing.get_context("fork")  # as PyTorch's loaders
    began, answers, running = context.Barrier(processes), [], []
    for number in range(processes):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(dataset, number, seconds, began, send), daemon=True)
        process.start()
        send.close()
        running.append((process, receive))
    until = time.monotonic() + seconds + GRACE
    for process, receive in running:
        try:
            answer = receive.recv() if receive.poll(max(0.1, until - time.monotonic())) else TimeoutError(
                f"a process that reads samples did not answer within {seconds + GRACE:g} s; "
                "see whether the file system answers: ls of the data root, data.read_timeout")
        except EOFError:
            answer = RuntimeError("a process that reads samples ended without a word; see dmesg, and set data.workers "
                                  "lower if memory ran out")
        if isinstance(answer, Exception):
            process.kill()
        process.join()
        answers.append(answer)
    if errors := [answer for answer in answers if isinstance(answer, Exception)]:
        raise next((error for error in errors if "BrokenBarrier" not in str(error)), errors[0])
    files, samples, computing = map(sum, zip(*answers, strict=True))
    return files, samples, computing / processes


def check(checks: Checks, seconds: float | None = None) -> Iterator[Finding]:
    """Report the files opened and the clips read a second, and how many GPUs that feeds.

    Args:
        checks: its config says whose samples are read, with how many loaders.
        seconds: how long it is measured; None for SECONDS.
    """
    seconds = SECONDS if seconds is None else seconds
    config, part = checks.config, "speed"
    task = tasks.make(config)
    split = "train" if "train" in task.actions() else "test"
    dataset = task.dataset(split)
    clips_per_sample = task.clips_per_sample if split == "train" else 1
    gpus, loaders = config.launch.tasks_per_node, max(1, config.data.workers)
    cores = len(os.sched_getaffinity(0))
    processes = min(gpus * loaders, cores)
    print(f"measuring for {seconds:g} s, with {processes} processes …", file=sys.stderr, flush=True)
    files, samples, computing = rates(dataset, processes, seconds)
    if not samples:
        yield Finding(part, "clips", "note", f"the samples of {config.task.name} open no videos; nothing is measured",
                      "give a recipe that reads videos, such as --params pretrain")
        return
    few = "" if processes == gpus * loaders else \
        f", as many as this machine has cores (launch.tasks_per_node x data.workers is {gpus * loaders})"
    yield Finding(part, "files", "ok", f"{files:,.0f} opened a second by {processes} processes{few}: enough for "
                  f"{files / GPU_CLIPS:.1f} GPUs, at a file a clip")
    clips = samples * clips_per_sample
    fed = clips / GPU_CLIPS
    more = "" if fed >= gpus else "more data.workers, if the node has cores for them" if computing > COMPUTING else \
        "the prepared videos on each node's own disk, or on a faster file system (docs/data.md, how fast a site reads)"
    yield Finding(part, "clips", "note" if more else "ok",
                  f"{clips:,.0f} read a second, in {computing:.0%} of the time the processes computed: feeds {fed:.1f} "
                  f"GPUs of {GPU_CLIPS} clips a second; this site's node has {gpus}", more)
