"""The doctor measures how fast a site gives video, with real files and processes, and says how many GPUs that feeds."""
import os
import re
import shutil
import time

import pytest

from egokit import cli
from egokit.data.loader import Samples
from egokit.data.site_checks import Checks
from egokit.data.video import open_video
from egokit.prep import doctor, speed


@pytest.fixture
def site(resolve, copied):
    """Return a config whose root is a copy of the tiny data set, and that root."""
    on_copy, root = copied
    return on_copy(resolve()), root


class Counted(Samples):
    """Samples that take 20 ms each, half of it computing, of files that are open for as long."""

    def __init__(self, paths):
        super().__init__(len(paths), 0, train=False)
        self.paths = paths

    def read(self, index, rng):
        open_video.on_open(str(self.paths[index]))
        time.sleep(0.01)
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass
        return {}


def test_rates_are_those_of_the_processes_together(tmp_path):
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(b"x" * 100_000)
    files, samples, computing = speed.rates(Counted(paths), 2, 2.0)
    assert files > 100
    assert 20 < samples <= 101  # 100, on idle cores
    assert 0.05 < computing < 0.7


def test_pages_are_dropped_before_a_file_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    assert speed.drop_pages(str(path)) == path.read_bytes()[:speed.BEGINNING]


def test_the_doctor_says_how_many_gpus_are_fed(site, monkeypatch, capsys):
    config, _ = site
    began = time.monotonic()
    files, clips = speed.check(Checks(config), seconds=2.0)
    assert time.monotonic() - began < 20
    assert files.state == "ok" and re.match(r"[\d,]+ opened a second by 1 processes: enough for", files.message)
    number = float(re.match(r"([\d,]+) read a second", clips.message)[1].replace(",", ""))
    fed = float(re.search(r"feeds ([\d.]+) GPUs", clips.message)[1])
    assert number > 1 and abs(fed - number / speed.GPU_CLIPS) < 0.06
    assert (clips.state == "ok") == (fed >= 1) and bool(clips.fix) == (fed < 1)
    assert open_video.on_open is None
    monkeypatch.setattr(speed, "SECONDS", 1.0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--speed", "--site", "tiny", "--overrides", f"site.root={config.site.root} data.limit=24"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "speed\n" in out and "read a second" in out and "egoclip.csv: found" not in out


def test_what_cannot_be_measured_is_said(site):
    config, root = site
    shutil.rmtree(root / "Ego4D_Chunked")
    (root / "Ego4D_Chunked").mkdir()
    (finding,) = doctor.examine(config, parts=["speed"])
    assert finding.state == "wrong" and "0.mp4 is missing" in finding.message.replace("1.mp4", "0.mp4")
    assert "egokit prep" in finding.message

    class Silent(Counted):
        def read(self, index, rng):
            return {}
    assert speed.rates(Silent(["a"]), 1, 0.5)[1] == 0


def test_a_process_that_hangs_or_dies_is_ended(monkeypatch):
    class Hanging(Counted):
        def read(self, index, rng):
            time.sleep(60)
    monkeypatch.setattr(speed, "GRACE", 0.5)
    with pytest.raises(TimeoutError, match=r"did not answer within 1 s"):
        speed.rates(Hanging(["a"]), 1, 0.5)

    class Dying(Counted):
        def read(self, index, rng):
            os._exit(3)
    with pytest.raises(RuntimeError, match=r"ended without a word.*data\.workers"):
        speed.rates(Dying(["a"]), 1, 0.5)
