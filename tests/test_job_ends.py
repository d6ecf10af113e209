"""Why a job ended is said, even if nothing was left to say it: a full disk, a process that was killed."""
import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import MODEL
from fake_slurm import made
from test_jobs import LOST, OWN
from training import run_of, wait_for

import egokit
from egokit import cli
from egokit.jobs import code_snapshot, requeue, status
from egokit.model import checkpoints
from egokit.runs.explain import written
from egokit.runs.files import temporary_path, write_text
from egokit.runs.run_folder import Run

WARNING = "egokit/tasks/egoclip.py:43: UserWarning: 5 malformed rows\n  self.table = EgoClipTable(path)\n"
SILENT = "its process ended without a word (signal 9: out of memory?)"


def ended(folder, *logs, failures=()):
    """Return (the reason, the whole message) of a job of SLURM whose ranks have left these logs."""
    handle = made(Run(folder / "outputs/nb/mine"), cluster="slurm", job_id="3")
    for rank, text in enumerate(logs):
        (handle.folder / f"submitit/3_{rank}_log.err").write_text(text)
    for name, text in failures:
        write_text(handle.folder / "failures" / name, text)
    return status.failure_reason(handle.folder), status.error_message(handle.folder)


@pytest.mark.parametrize("logs, rank", [
    ([WARNING], 0), ([""], 0),
    ([LOST, WARNING, LOST], 1),                                            # the others only lost it
    ([f"egokit: start 3-0\n{OWN}egokit: start 3-1\n{WARNING}"], 0)])       # of an earlier attempt
def test_a_process_that_was_killed_left_no_word(tmp_path, logs, rank):
    reason, message = ended(tmp_path, *logs)
    assert reason == f"{SILENT}: jobs/pretrain/submitit/3_{rank}_log.err"
    assert message.startswith(f"{SILENT}\n") and message.endswith(f"submitit/3_{rank}_log.err")


@pytest.mark.parametrize("logs, said", [
    ([f"{WARNING}slurmstepd: error: *** JOB 3 ON node1 CANCELLED AT noon ***"], "CANCELLED AT noon"),
    ([WARNING, "slurmstepd: error: Detected 1 oom_kill event in StepId=3.0."], "oom_kill event"),
    ([f"{WARNING}Fatal Python error: Segmentation fault\n\nCurrent thread"], "Fatal Python error: Segmentation fault"),
    ([f"{requeue.TRACEBACK}\n  File\nKeyboardInterrupt\n"], "KeyboardInterrupt"),
    ([f"{requeue.TRACEBACK}\n  File\negokit.runs.run_folder.RunTakenOver: it is another's\n"], "RunTakenOver: it is")])
def test_what_others_say_of_a_process_is_its_reason(tmp_path, logs, said):
    reason, message = ended(tmp_path, *logs)
    assert said in reason and said in message and SILENT not in message


def test_an_error_that_the_log_had_no_room_for_is_read_from_its_record(tmp_path):
    cut_off = f"egokit: start 3-1\n{requeue.TRACEBACK}\n  File\nOSError: [Errno 28] No space left on device\n  Fi"
    whole = f"{requeue.TRACEBACK}\n  File\nValueError: x could not be written: at least 5 MiB are needed\n"
    reason, message = ended(tmp_path, cut_off, failures=[("3-1-rank0.txt", whole), ("3-0-rank0.txt", OWN)])
    assert reason == "ValueError: x could not be written: at least 5 MiB are needed"
    assert message.splitlines()[0] == reason


@pytest.fixture
def small_disk(tmp_path):
    """A function: size -> an empty file system of that size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
        if done.returncode:
            pytest.skip("a full disk needs the right to mount one")
        return disk
    yield mount
    subprocess.run(["umount", disk], capture_output=True)


def test_no_room_for_the_code_is_one_line_and_leaves_nothing(resolve, small_disk, monkeypatch, capsys):
    disk = small_disk("300k")
    monkeypatch.setenv("EGOKIT_OUTPUTS", str(disk))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["submit", "toy/pretrain", "--site", "tiny", "--run", "full", "--overrides", MODEL])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"egokit: {disk}/02_pretrain/full/jobs/pretrain/code could not be written (No space left")
    assert "at least " in line and " MiB are needed" in line and len(line) < 500
    assert {path.name for path in disk.rglob("*") if path.is_file()} == {"params.yaml", "lock"}


FILLS = """
import sys
from pathlib import Path
from egokit.jobs.requeue import record_failure
folder = Path(sys.argv[1])
with record_failure(folder, 0), open(folder / "checkpoint", "wb", 0) as file:
    while True:
        file.write(bytes(2**16))
"""


def test_a_full_disk_keeps_room_for_the_message(small_disk, tmp_path):
    """The file that fills the disk stays open until the message is written, as a checkpoint does."""
    disk = small_disk("2m")
    with open(disk / "log.err", "w") as log:
        done = subprocess.run([sys.executable, "-c", FILLS, disk], stderr=log,
                              env=os.environ | {"SUBMITIT_LOCAL_JOB_ID": "7", "SLURM_JOB_ID": "7"})
    last = (disk / "log.err").read_text().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"OSError: {disk} could not be written (No space left on device): ")
    assert (disk / "failures/7-0-rank0.txt").read_text().strip().splitlines()[-1] == last
    assert not (disk / requeue.RESERVE).exists() and shutil.disk_usage(disk).free < 2**18


@pytest.mark.parametrize("line, reason", [
    ("[rank0]: egokit.model.checkpoints.WeightsError: /a/long/folder/of/outputs/02_pretrain/full/checkpoints/"
     "step-0000004.pt could not be written (No space left on device): at least 12.0 MiB are needed",
     "WeightsError: step-0000004.pt could not be written (No space left on device): "),
    (f"OSError: [Errno 5] Input/output error: '{'/x' * 60}/a.mp4'", "OSError: [Errno 5] Input/output error: 'a.mp4'"),
    ("ValueError: expected 3/4 or 1 / 2 of https://a.org/b/c, and/or /", None)])
def test_a_short_reason_has_short_paths(tmp_path, line, reason):
    """`egokit runs` has room for 100 characters: folders must not take that of the reason."""
    short, _ = ended(tmp_path, f"{requeue.TRACEBACK}\n  File\n{line}\n")
    assert short.startswith(reason or line) and len(short) <= 100


@pytest.mark.parametrize("name", ["step-1.pt", "step-1.safetensors"])
def test_a_checkpoint_that_has_no_room_names_the_cause(small_disk, name):
    """Of libraries that name another error, or none, when the disk is full."""
    disk, content = small_disk("3m"), {"state_dict": {"weight": torch.zeros(2**18)}}
    checkpoints.write(disk / name, content)
    before = (disk / name).read_bytes()
    content["state_dict"]["weight"] = torch.zeros(2**21)
    with pytest.raises(checkpoints.WeightsError, match=rf"{name} could not be written \(.*No space left on device"):
        checkpoints.write(disk / name, content)
    assert [path.name for path in disk.iterdir()] == [name] and (disk / name).read_bytes() == before


def test_a_full_disk_names_the_file_and_not_its_temporary_one(tmp_path, monkeypatch, capsys):
    def fails(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    for path in (tmp_path / "a.b" / "params.yaml", tmp_path / "params.v2.yaml", tmp_path / "code"):
        monkeypatch.setattr(cli.commands, "runs", lambda _, path=path: fails(temporary_path(path)))
        with pytest.raises(SystemExit, match="2"):
            cli.main(["runs"])
        line = capsys.readouterr().err
        assert line.startswith(f"egokit: {path} could not be written (No space left on device): ") and "MiB" in line
    assert written(temporary_path(tmp_path / "code") / "egokit/cli.py") == tmp_path / "code/egokit/cli.py"


@pytest.mark.slow
def test_a_training_on_a_disk_that_fills_up_says_how_much_is_needed(resolve, small_disk):
    run = Run(small_disk("6m") / "02_pretrain/full")
    job = egokit.submit(resolve(overrides=f"{MODEL} train.epochs=2 train.checkpoint_steps=1"), run)
    with pytest.raises(egokit.launch.JobFailed, match=r"could not be written \(.*\): at least [\d.]+ MiB are needed"):
        job.wait(progress=False)
    assert "could not be written" in job.log_tail(1) and "WeightsError" in job.status()[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "loader"])
def test_kill_9_is_given_as_the_reason(resolve, request, victim):
    run = run_of(request)
    job = egokit.submit(resolve(overrides=f"{MODEL} train.epochs=99 data.workers=1 launch.cpus_per_task=1"), run)
    # the log's first line comes before the loader's process; later ones are of validations, and end by themselves
    wait_for(lambda: any(event["kind"] == "step" for event in run.read_log()))

    def parent(process):
        with open(f"/proc/{process}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    processes = status.processes(job.folder)
    controller, = (process for process in processes if parent(process) not in processes)
    rank, = (process for process in processes if parent(process) == controller)
    loaders = [process for process in status.processes(job.folder) if parent(process) == rank]
    os.kill(rank if victim == "rank" else min(loaders), signal.SIGKILL)
    with pytest.raises(egokit.launch.JobFailed, match=r"process ended without a word \(signal 9: out of memory\?\)"):
        job.wait(progress=False)
    state, reason = job.status()
    assert state == "failed" and "ended without a word (signal 9: out of memory?)" in reason
    assert code_snapshot.read_copy(job.folder / "code")


def test_a_log_leads_to_no_file_elsewhere(tmp_path):
    """Neither a start's name nor a link does, and a named pipe is waited for by nobody."""
    secret = f"{requeue.TRACEBACK}\n  File\nValueError: secret\n"
    (tmp_path / "elsewhere").mkdir()
    for name in ("x-rank0.txt", "3_1_log.err"):
        (tmp_path / "elsewhere" / name).write_text(secret)
    for number, start in enumerate((f"{tmp_path}/elsewhere/x", "../../../../../elsewhere/x", "a" * 5000)):
        reason, message = ended(tmp_path / str(number), f"egokit: start {start}\n{OWN}")
        assert "secret" not in message and reason in OWN
    folder = tmp_path / "0/outputs/nb/mine/jobs/pretrain"
    (folder / "submitit/3_1_log.err").symlink_to(tmp_path / "elsewhere/3_1_log.err")
    os.mkfifo(folder / "submitit/3_2_log.err")
    (folder / "failures").mkdir()
    os.mkfifo(folder / "failures/3-1-rank0.txt")
    (folder / "submitit/3_0_log.err").write_text(f"egokit: start 3-1\n{OWN}")
    assert [file.name for file in status.rank_logs(folder)] == ["3_0_log.err"]
    shutil.rmtree(folder / "submitit")
    (folder / "submitit").symlink_to(tmp_path / "elsewhere")
    assert status.rank_logs(folder) == {}


def test_the_end_of_a_long_log_is_read(tmp_path):
    noise = "\x01\n" * 2**19
    log = f"egokit: start 3-0\n{noise}egokit: start 3-1\n{noise}{OWN}"
    began = time.process_time()
    for number in (1, 12):
        reason, _ = ended(tmp_path / str(number), *[log] * number)
        assert reason in OWN
    texts = status.rank_logs(tmp_path / "12/outputs/nb/mine/jobs/pretrain")
    assert len(texts) == 12 and sum(map(len, texts.values())) < 40 * 2**20 and time.process_time() - began < 5