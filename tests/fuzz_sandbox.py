"""Read mutated files in forked processes with little memory and time, that report whatever a file must not bring about.

    python tests/fuzz_sandbox.py KIND FOLDER SEED COUNT

FOLDER holds the kind's whole files (fuzz_readers.py). A line of JSON is printed for each finding, then one with counts.
What a file may bring about: an answer, or one line of a promised exception that names the file.
"""
import collections
import contextlib
import json
import os
import random
import resource
import select
import signal
import sys
import warnings
from pathlib import Path

import fuzz_mutations
import fuzz_readers

SECONDS = 10           # for one file
MEMORY = 512 << 20     # bytes of address space beyond what the process has before; the whole files have at most a MB
BATCH = 100            # files that one process reads, unless one ends it
LONGEST = 2000         # characters of a message
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "subprocess.", "ctypes.",
             "socket.connect", "socket.bind", "socket.sendto", "pty.", "webbrowser.", "os.kill", "code.")
LURES = ("antigravity", "this", "turtle")  # modules that nobody but a hostile file imports
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


class Guard:
    """Python's audit hook: notes code that is run and files that are written, outside `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.noted, self.active = str(folder), [], False

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if event.startswith(FORBIDDEN) or ((writes or event in CHANGES) and not self.inside(arguments[0])):
            self.note(event, arguments)
        elif event == "import" and arguments[0] not in sys.modules:
            name = arguments[0].partition(".")[0]
            if name not in sys.stdlib_module_names or name in LURES:
                self.note(event, arguments[:1])
        elif event == "compile" and "PWNED" in str(arguments[0]):
            self.note(event, arguments)

    def inside(self, path) -> bool:
        return not isinstance(path, str | bytes | os.PathLike) or os.path.abspath(os.fsdecode(path)).startswith(
            (self.folder, "/dev/null"))

    def note(self, event: str, arguments: tuple) -> None:
        self.noted.append(f"{event} {str(arguments)[:200]}")


def judge(kind, path: Path, guard: Guard) -> str:
    """Return what is wrong with how the file is read, or "" if nothing is."""
    guard.noted.clear()
    guard.active = True
    try:
        kind.read(path)
        outcome = ""
    except kind.promised as error:
        text = str(error)
        wrong = next((fault for fault, there in (
            ("no line", not text.strip()), ("several lines", len(text.splitlines()) > 1),
            ("too long", len(text) > LONGEST),
            ("no file", path.name not in text and guard.folder not in text),
            ("out of memory", "MemoryError" in text or "allocate" in text)) if there), "")
        if getattr(error, "report", None) and wrong in ("several lines", "too long"):
            wrong = ""  # a checkpoint's keys
        if not type(error).__module__.startswith(("builtins", "egokit")):
            wrong = "another exception"
        outcome = f"{wrong}: {type(error).__name__}: {text[:300]!r}" if wrong else ""
    except BaseException as error:
        import traceback
        last = traceback.extract_tb(error.__traceback__)[-1]
        outcome = f"{type(error).__name__} at {last.filename.rpartition('/')[2]}:{last.lineno}: {str(error)[:200]!r}"
    guard.active = False
    return "; ".join(filter(None, (outcome, *guard.noted)))


def child(kind, folder: Path, cases, pipe: int) -> None:
    """Read the cases and write what is wrong to the pipe: a line before each, and one after it."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard = Guard(folder)
    sys.addaudithook(guard)
    for number, name, data in cases:
        os.write(pipe, f"{number}\t\n".encode())
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # its signal ends the process
        outcome = judge(kind, path, guard)
        signal.setitimer(signal.ITIMER_REAL, 0)
        path.write_bytes(whole)
        os.write(pipe, f"{number}\t{json.dumps(outcome)}\n".encode())
    os._exit(0)


def mutated(folder: Path, names: list[str], seed: str) -> tuple[str, bytes]:
    """Return the name and the mutated bytes of a seed's file."""
    dice = random.Random(seed)
    name = dice.choice(names)
    others = [(folder / other).read_bytes() for other in names if other.rpartition(".")[2] == name.rpartition(".")[2]]
    return name, fuzz_mutations.mutate((folder / name).read_bytes(), name, dice, others)


def campaign(kind_name: str, folder: Path, seed: int, count: int):
    """Yield (seed, file's name, what is wrong or "") of `count` mutated files."""
    kind = fuzz_readers.KINDS[kind_name]
    names = sorted(kind.files(folder))
    whole = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        kind.read(folder / name)  # whole files are read, and what is imported late is imported
        for bad in (b"", b"\xff" * 9):
            (folder / name).write_bytes(bad)
            with contextlib.suppress(*kind.promised):
                kind.read(folder / name)
            (folder / name).write_bytes(whole[name])
    number = 0
    while number < count:
        cases = []
        for case in range(number, min(number + BATCH, count)):
            cases.append((case, *mutated(folder, names, f"{kind_name}-{seed}-{case}")))
        read, write = os.pipe()
        process = os.fork()
        if not process:
            os.close(read)
            try:
                child(kind, folder, cases, write)
            finally:
                os._exit(99)
        os.close(write)
        text = b""
        while select.select([read], [], [])[0] and (part := os.read(read, 1 << 16)):
            text += part
        os.close(read)
        _, status = os.waitpid(process, 0)
        names_of = {case: name for case, name, _ in cases}
        current = None
        for line in text.decode().splitlines():
            case, _, outcome = line.partition("\t")
            current = int(case)
            if outcome:
                yield f"{kind_name}-{seed}-{current}", names_of[current], json.loads(outcome)
                current, number = None, int(case) + 1
        if status and current is None and number == cases[0][0]:
            raise RuntimeError(f"the process of {kind_name} ended before its first file: status {status}")
        if status:
            how = f"signal {signal.Signals(status & 127).name}" if status & 127 else f"exit {status >> 8}"
            how = f"no end in {SECONDS} s" if status & 127 == signal.SIGALRM else how
            for name, content in whole.items():
                (folder / name).write_bytes(content)
            if current is not None:
                yield f"{kind_name}-{seed}-{current}", names_of[current], how
                number = current + 1


def main(kind: str, folder: str, seed: str, count: str) -> None:
    warnings.simplefilter("ignore")
    counts, out = collections.Counter(), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print is no finding
    for name, file, outcome in campaign(kind, Path(folder), int(seed), int(count)):
        counts["wrong" if outcome else "right"] += 1
        if outcome:
            print(json.dumps({"seed": name, "file": file, "wrong": outcome}), file=out)
    print(json.dumps(counts), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
