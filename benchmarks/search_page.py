"""Measure how fast a page of 100 hits opens in Chromium, with a picture and a loaded clip each, and as it is now.

    python benchmarks/search_page.py [HITS] [CLIPS]     (needs Chromium and playwright)

Videos are made up, and deleted at the end. The hits are of so many different clips, by default all; to make fewer takes
less time.

Before, every hit had its clip and its picture in the page, and the browser opened every clip at once. Now the pictures
are one image, a clip's player is made when its picture is clicked, and only the best hits have one. Both pages are made
from the same clips and opened in turn; what it printed stands at the end of this file.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from egokit.notebook.safe_html import page
from egokit.prep.video import ffmpeg
from egokit.search import Hit, write_page
from egokit.search.page import figures

HITS = int(([*sys.argv[1:2], "100"])[0])
CLIPS = int(([*sys.argv[2:3], HITS])[0])
TIMES = 5
VIDEOS, SECONDS = 5, 4  # of a clip
# each video moves, has another hue, and noise that costs bytes, as a camera's
PATTERN = "testsrc2=size=640x360:rate=15:duration={seconds},hue=h={hue},noise=alls=6:allf=t"
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
LAST = """() => document.querySelectorAll('figure')[document.querySelectorAll('figure').length - 1].scrollIntoView()"""


def made_up(folder: Path) -> list[Hit]:
    """Make videos, and return hits in them."""
    each, hits = -(-CLIPS // VIDEOS), []
    for number in range(VIDEOS):
        path = folder / f"video {number}.mp4"
        pattern = PATTERN.format(seconds=each * SECONDS, hue=70 * number)
        subprocess.run([ffmpeg(), "-loglevel", "error", "-f", "lavfi", "-i", pattern, "-pix_fmt", "yuv420p", "-preset",
                        "veryfast", "-crf", "30", str(path)], check=True)
        hits += [Hit(path.name, SECONDS * i, SECONDS * (i + 1), 0.5, None, path) for i in range(each)]
    return [hits[number % CLIPS] for number in range(HITS)]


def opened(browser, path: Path) -> tuple[float, float, float]:
    """Return seconds until a page is loaded and painted, until its last hit is painted, and MB of memory that it takes.

    Each time the browser starts with an empty cache; an empty page shows what that takes.
    """
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    began = time.perf_counter()
    tab.goto(path.as_uri(), wait_until="load", timeout=120_000)
    tab.evaluate(PAINTED)
    tab.screenshot()
    shown = time.perf_counter() - began
    tab.evaluate(LAST)
    tab.evaluate(PAINTED)
    tab.screenshot()
    last = time.perf_counter() - began
    memory = memory_of(browser_processes())
    context.close()
    return shown, last, memory


def browser_processes() -> list[str]:
    """Return the processes that this one has started, and those that they have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[stat.parent.name] = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
    def is_below(process: str | None) -> bool:
        return process is not None and (process == str(os.getpid()) or is_below(parents.get(process)))
    return [process for process in parents if process != str(os.getpid()) and is_below(parents[process])]


def memory_of(processes: list[str]) -> float:
    """Return the MB that processes take, of which shared memory is counted once."""
    total = 0
    for process in processes:
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1000


def main() -> None:
    """Make both pages, open them in turn, and print what they cost."""
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        hits, pages, made = made_up(folder), {}, {}
        began = time.perf_counter()
        pages["now"] = write_page(hits, folder / "now.html", "now")
        made["now"] = time.perf_counter() - began
        began = time.perf_counter()  # the clips that are in the other page are not made again
        pages["before"] = folder / "before.html"
        pages["before"].write_text(page("before", "".join(figures(hits, 1e6, few=len(hits)).shown)))
        made["before"] = made["now"] + time.perf_counter() - began
        pages["empty"], made["empty"] = folder / "empty.html", 0
        pages["empty"].write_text(page("empty", "<figure>nothing</figure>"))
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        seen = {name: [] for name in pages}
        for _ in range(TIMES):
            for name, path in pages.items():
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                seen[name].append(opened(browser, path))
                browser.close()
        print(f"{len(hits)} hits of {len(set(hits))} clips of {SECONDS} s, medians of {TIMES}; {os.cpu_count()} cores, "
              f"load {os.getloadavg()[0]:.0f}")
        for name in ("empty", "before", "now"):
            shown, last, memory = (statistics.median(column) for column in zip(*seen[name], strict=True))
            print(f"{name:6}  {pages[name].stat().st_size / 1e6:5.1f} MB, made in {made[name]:4.0f} s, "
                  f"{pages[name].read_text().count('<video')} clips; shown after {shown:.2f} s, its last hit after "
                  f"{last:.2f} s, {memory:.0f} MB of memory")
        if target := os.environ.get("PAGE"):
            Path(target).write_bytes(pages["now"].read_bytes())


if __name__ == "__main__":
    main()

# Printed for 100 25 at the lowest priority on a machine of 2 cores that other work kept busy. The page as it is now,
# but with the players there from the start, took 2.2 to 3.0 s there, and 1.0 to 1.1 s without their controls: these
# are what costs, not the bytes.
#
# 100 hits of 25 clips of 4 s, medians of 5; 2 cores, load 9
# empty     0.0 MB, made in    0 s, 0 clips; shown after 0.39 s, its last hit after 0.57 s, 373 MB of memory
# before   10.0 MB, made in   12 s, 100 clips; shown after 3.91 s, its last hit after 4.71 s, 506 MB of memory
# now       4.9 MB, made in   11 s, 49 clips; shown after 0.74 s, its last hit after 1.05 s, 441 MB of memory
