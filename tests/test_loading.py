"""Workers: a reader that hangs ends in an error that names the file, or in one bad file.

It never ends in a hang of the run.
"""
import ctypes
import os
import signal
import time

import pytest
import torch
from conftest import MODEL, rarest

from egokit import tasks
from egokit.data import loader
from egokit.data.video import open_video
from egokit.runs.run_folder import Run
from egokit.tasks.egoclip import Clips
from egokit.train.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture
def hanging(resolve, monkeypatch):
    """Return (config, uid) of a video whose chunks can't be read.

    Reading them hangs in native code with the GIL held, as decord can.
    """
    config = resolve(overrides=f"{MODEL} data.limit=0 train.batch_size=20 train.precision=fp32 "
                               "data.workers=2 data.read_timeout=8")
    uid = rarest(Clips(tasks.make(config)).table)

    class Hanging(open_video.PyAVReader):
        def read(self, indices):
            if self.path.parent.name == uid:
                ctypes.PyDLL(None).sleep(1000)
            return super().read(indices)
    monkeypatch.setitem(open_video.READERS, "pyav", Hanging)
    monkeypatch.setattr(open_video, "unreadable", set())
    open_video._open.clear()
    yield config, uid
    open_video._open.clear()


def test_a_reader_that_never_returns_is_an_error_that_names_the_file(hanging):
    config, uid = hanging
    task = tasks.make(config)
    dataset = task.dataset("train")
    batches = loader.training_batches(len(dataset), 20, 0, 0, 0, 1)
    began = time.monotonic()
    message = rf"{uid}/\d\.mp4: no answer from its reader within 8 s.*max_bad_fraction"
    with pytest.raises(open_video.VideoError, match=message):
        list(loader.build_loader(dataset, batches, task.collate, 2, timeout=8.0))
    assert time.monotonic() - began < 60


def test_a_tolerant_run_goes_on_without_that_file(hanging, tmp_path):
    import dataclasses
    config, uid = hanging
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_bad_fraction=0.9))
    metrics = train(config, tasks.make(config), Run(tmp_path), "pretrain", torch.device("cpu"))
    bad = [event["said"] for event in Run(tmp_path).read_log() if event["kind"] == "bad"]
    assert metrics["bad_samples"] == len(bad) > 0
    assert all(uid in message and "left out, as it did not answer" in message for message in bad)
    steps = [event["step"] for event in Run(tmp_path).read_log() if event["kind"] == "step"]
    assert steps == list(range(1, metrics["steps"] + 1))


def test_a_slow_batch_is_not_a_hang(resolve, monkeypatch):
    """A batch may take longer than the timeout, as long as none of its files does."""
    config = resolve(overrides=f"{MODEL} train.batch_size=8")
    task = tasks.make(config)
    dataset = task.dataset("train")
    original = open_video.PyAVReader.read
    monkeypatch.setattr(open_video.PyAVReader, "read",
                        lambda self, indices: (time.sleep(0.3), original(self, indices))[1])
    batches = list(loader.training_batches(len(dataset), 8, 0, 0, 0, 1))
    assert len(list(loader.build_loader(dataset, batches, task.collate, 1, timeout=1.5))) == len(batches)


class Stuck(loader.Samples):
    """A data set whose sample 5 hangs with the GIL held, while earlier batches wait."""
    tolerant = True

    def read(self, index, rng):
        open_video.on_open(f"{index}.mp4")
        if index == 5:
            if "5.mp4" in open_video.unreadable:
                raise open_video.VideoError("5.mp4: left out")
            ctypes.PyDLL(None).sleep(1000)
        return {"pixels": torch.full((3, 100, 100), index)}


@pytest.mark.parametrize("tolerant", [False, True])
def test_batches_already_read_are_given_though_their_process_is_stuck(tolerant, monkeypatch):
    """Batches from before the hang are not lost.

    A batch in shared memory is fetched through a thread of its worker, which can't respond while the GIL is held.
    """
    monkeypatch.setattr(open_video, "unreadable", set())
    dataset = Stuck(8, seed=0, train=True)
    dataset.tolerant = tolerant
    batches = loader.build_loader(dataset, [[(0, i)] for i in range(8)], torch.utils.data.default_collate, 1,
                                  timeout=4.0)
    received = [next(batches)]
    time.sleep(2)
    if not tolerant:
        with pytest.raises(open_video.VideoError, match=r"^5\.mp4: no answer from its reader within 4 s"):
            list(batches)
        return
    received += batches
    assert [int(batch["pixels"].flatten()[0]) for batch in received if "bad" not in batch] == [0, 1, 2, 3, 4, 6, 7]
    assert [batch["bad"] for batch in received if "bad" in batch] == [["5.mp4: left out"]]


class Dying(Stuck):
    """A data set whose sample 5 crashes its worker."""

    def read(self, index, rng):
        open_video.on_open(f"{index}.mp4")
        if index == 5:
            if "5.mp4" in open_video.unreadable:
                raise open_video.VideoError("5.mp4: left out")
            os.kill(os.getpid(), signal.SIGSEGV)
        return {"index": index}


def test_a_decoder_that_ends_its_process_does_not_end_a_step(monkeypatch):
    """A worker's death raises only where a batch is awaited.

    PyTorch's own handler raises wherever the main thread is; here, that would be in the middle of a step.
    """
    monkeypatch.setattr(open_video, "unreadable", set())
    before = signal.getsignal(signal.SIGCHLD)
    received = []
    batches = [[(0, i)] for i in range(8)]
    for batch in loader.build_loader(Dying(8, seed=0, train=True), batches, torch.utils.data.default_collate, 1):
        began = time.monotonic()
        while time.monotonic() - began < 0.3:  # the step
            pass
        received.append(batch)
        assert signal.getsignal(signal.SIGCHLD) is before
    assert [batch["bad"] for batch in received if "bad" in batch] == [["5.mp4: left out"]] and len(received) == 8
