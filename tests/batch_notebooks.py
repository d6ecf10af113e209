"""Four small notebooks that end in different ways, and what is left of them when they have been run."""
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat

PARAMETERS = 'params = "toy/egomcq"\nsite = "tiny"\noverrides = ""\nrun_name = "demo"'
CELLS = {
    "90_good": ["print('hello', run_name)", "import time\nstart = time.monotonic()"],
    "91_fails": ["print('as far as here')", "raise ValueError('broken on purpose')", "print('never')"],
    "92_hangs": ["import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(600)", "print('never')"],
    "93_dies": ["import os\nos.kill(os.getpid(), 9)"],
}
BROKEN = "cell In[4] (raise ValueError('broken on purpose')): ValueError: broken on purpose"  # what 91_fails reports


@contextlib.contextmanager
def four_more(project: Path) -> Iterator[Path]:
    """Add four notebooks of a few cells each to the project for a while."""
    paths = []
    for name, cells in CELLS.items():
        kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
        book = nbformat.v4.new_notebook(metadata={"kernelspec": kernelspec})
        book.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
                      *map(nbformat.v4.new_code_cell, cells)]
        paths.append(project / f"notebooks/{name}.ipynb")
        nbformat.write(book, paths[-1])
    yield project
    for path in paths:
        path.unlink()


def command(*arguments):
    return [sys.executable, "-m", "egokit.cli", "run", *arguments]


def printed(path: Path) -> str:
    book = nbformat.read(path, as_version=4)
    return "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))


def kernel(path: Path) -> int:
    """Return the kernel's process id, once the hanging notebook has printed it to its log."""
    deadline = time.monotonic() + 120
    while not (path.exists() and (match := re.search(r"kernel (\d+)", path.read_text()))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return int(match[1])


def gone(process: int) -> bool:
    """Whether a process ends within a few seconds."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
