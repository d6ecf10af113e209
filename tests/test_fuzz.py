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
