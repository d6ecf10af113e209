"""Mutated files of every kind: an answer or one line that names the file, and nothing else happens.

`python tests/fuzz_campaign.py` mutates thousands; here are some hundred, each from its seed.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_readers
import pytest

SEED, COUNT = int(os.environ.get("EGOKIT_FUZZ_SEED", 0)), os.environ.get("EGOKIT_FUZZ_COUNT")


HOSTILE = r"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import fuzz_readers, fuzz_sandbox
def read(path):
    text = path.read_text()
    if text == "whole":
        return
    {"system": lambda: os.system("true"), "write": lambda: open("/tmp/fuzz-outside", "w"),
     "spin": lambda: time.sleep(9), "crash": lambda: os.kill(os.getpid(), 11), "memory": lambda: bytes(1 << 30),
     "import": lambda: __import__("pip"), "lure": lambda: __import__("this"), "lines": lambda: fail(f"{path}: a\nb"),
     "nameless": lambda: fail("x"),
     "key": lambda: {}["x"], "right": lambda: None, "named": lambda: fail(f"{path}: x")}.get(
     text, lambda: fail(str(path)))()
def fail(text):
    raise ValueError(text)
kind = fuzz_readers.KINDS["hostile"] = fuzz_readers.Kind(None, read, ("*.x",))
fuzz_sandbox.SECONDS = 1
fuzz_sandbox.mutated = lambda folder, names, seed: (names[0], WORDS[int(seed.rpartition("-")[2])].encode())
WORDS = sys.argv[3].split()
fuzz_sandbox.main("hostile", sys.argv[2], "0", str(len(WORDS)))
"""
WRONG = {"system": "os.system", "write": "open ('/tmp/fuzz-outside'", "spin": "no end in 1 s",
         "crash": "signal SIGSEGV", "memory": "MemoryError", "import": "import ('pip',)", "lure": "import ('this',)", 
         "lines": "several lines", "nameless": "no file", "key": "KeyError at <string>"}


@pytest.mark.slow
def test_the_sandbox_sees_what_a_file_must_not_bring_about(tmp_path):
    (tmp_path / "a.x").write_text("whole")
    words = " ".join(["right", *WRONG, "named"])
    done = subprocess.run([sys.executable, "-c", HOSTILE, Path(__file__).parent, tmp_path, words], text=True,
                          stdout=subprocess.PIPE, check=True)
    *findings, counts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seed"] for line in findings] == [f"hostile-0-{number}" for number in range(1, len(WRONG) + 1)]
    for line, text in zip(findings, WRONG.values(), strict=True):
        assert text in line["wrong"], line
    assert counts == {"right": 2, "wrong": len(WRONG)} and (tmp_path / "a.x").read_text() == "whole"
    Path("/tmp/fuzz-outside").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz_readers.KINDS)
def test_mutated_files(project, checkpoint, tmp_path, kind):
    folder = tmp_path / "files"
    folder.mkdir()
    fuzz_readers.KINDS[kind].make(folder, checkpoint)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache"),
                                "TMPDIR": str(folder), "ARROW_NUM_THREADS": "1"}
    count = COUNT or fuzz_readers.KINDS[kind].count
    sandbox = Path(__file__).with_name("fuzz_sandbox.py")
    done = subprocess.run([sys.executable, sandbox, kind, folder, str(SEED), str(count)], env=environment, cwd=folder,
                          stdout=subprocess.PIPE, text=True)
    *findings, counts = [json.loads(line) for line in done.stdout.splitlines()] or [None]
    print(kind, counts)
    assert not findings, "\n".join(f"{line['seed']}  {line['file']}  {line['wrong']}" for line in findings)
    assert not done.returncode and counts["right"] == int(count)
