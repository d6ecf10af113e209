"""The toy's settings are for the toy's root alone, and what is prepared is said before the work."""
import contextlib
import shutil

import pytest
from full_videos import four_videos

import egokit
from egokit import cli, prep
from egokit.config import resolve as resolve_module
from egokit.config.resolve import resolve


@pytest.fixture(autouse=True)
def say_again():
    resolve_module._say_once.cache_clear()


def test_another_root_has_nothing_of_the_toy(project, tmp_path, capsys):
    toy = resolve("toy/pretrain", "toy")
    assert toy.site.toy and toy.site.short_side == 72 and not capsys.readouterr().err
    for overrides in (f"site.root={tmp_path}", {"site": {"root": str(tmp_path)}}, [f"site.root={tmp_path}"]):
        site = resolve("toy/pretrain", "toy", overrides).site
        assert (site.root, site.toy, site.short_side, site.chunk_seconds) == (str(tmp_path), False, 256, 600)
        assert (site.tokenizer, site.vit, site.roberta) == ("roberta-base", "", "")
    notice = capsys.readouterr().err
    assert notice.count("for the embedded data set alone") == 1 and f"site.root is {tmp_path}" in notice
    assert "site.short_side" in notice and "site.tokenizer" in notice
    kept = resolve("toy/pretrain", "toy", f"site.root={tmp_path} site.short_side=64 site.vit=random").site
    assert (kept.short_side, kept.vit, kept.chunk_seconds) == (64, "random", 600)


def test_a_recipe_of_ones_own_with_a_root(project, tmp_path):
    (project / "params/mine.yaml").write_text(f"task: {{name: egomcq}}\nsite: {{root: {tmp_path}}}\n")
    assert resolve("mine", "toy").site.chunk_seconds == 600 and not resolve("mine", "toy").site.toy
    (project / "params/mine.yaml").unlink()


def test_the_toys_root_by_another_name_and_another_toy(project, tmp_path, capsys):
    same = resolve("toy/pretrain", "toy", "site.root=./outputs/../outputs/toy").site
    assert same == resolve("toy/pretrain", "toy").site
    (tmp_path / "toy.json").write_text("{}")
    other = resolve("toy/pretrain", "toy", f"site.root={tmp_path}").site
    assert other.short_side == 72 and other.tokenizer.endswith("outputs/toy/tokenizer") and not other.toy
    assert not capsys.readouterr().err


def test_other_sites_keep_their_settings(project, tmp_path, capsys):
    site = resolve("toy/pretrain", "tiny", f"site.root={tmp_path}").site
    assert (site.short_side, site.chunk_seconds) == (72, 30) and not capsys.readouterr().err


def test_a_notebook_on_another_root_makes_no_toy_there(project, tmp_path, capsys):
    root = tmp_path / "root"
    (root / "Ego4D_Chunked").mkdir(parents=True)
    run = egokit.open_run("toy/pretrain", "toy", f"site.root={root}", "other-root")
    assert not run.config.site.toy and "embedded data set alone" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="nothing to prepare under"):
        prep.prepare(run.config)
    assert [path.name for path in root.iterdir()] == ["Ego4D_Chunked"]


def test_how_videos_are_prepared_is_said_before_the_work(project, tmp_path, capsys):
    full = four_videos(project, tmp_path / "full")
    for name in "bcd":
        (full / f"{name}.mp4").unlink()
    keys = "site.short_side=48 site.chunk_seconds=20 site.encoding=original"
    with pytest.raises(SystemExit, match="0"):
        cli.main(["prep", "ego4d", "--source", str(full), "--root", str(tmp_path / "root"), "--overrides", keys])
    printed = capsys.readouterr().out
    line = printed.partition("\n")[0]
    for expected in (str(full), f"{tmp_path / 'root'}/Ego4D_256", "pieces of 20 s", "48 pixels", "encoding original"):
        assert expected in line
    assert printed.index(line) < printed.index('"videos": 1')
    shutil.move(full, tmp_path / "root/Ego4D")
    prep.prepare(resolve("toy/pretrain", "toy", f"site.root={tmp_path / 'root'} {keys}"), progress=False)
    assert "short side 48 pixels" in capsys.readouterr().out
    array = prep.submit_array(resolve("toy/pretrain", "tiny", f"site.root={tmp_path / 'root'} site.short_side=64"), 1)
    assert "short side 64 pixels, encoding random_access" in capsys.readouterr().out
    array.wait(progress=False)


def test_what_is_started_without_a_site_says_that_the_data_are_the_toys(project, capsys):
    for shown in (["submit", "pretrain", "--print"], ["sweep", "pretrain", "--over", "seed=0,1", "--print"]):
        with contextlib.suppress(SystemExit):
            cli.main(shown)
        assert "embedded data set" not in capsys.readouterr().err  # only what would be started
    for started in (["submit", "egomcq"], ["sweep", "egomcq", "--over", "seed=0,1"], ["profile", "ek100_finetune"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*started, "--run", "never"])
        assert capsys.readouterr().err.count("on the embedded data set in") == 1, started
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sweep", "toy/egomcq", "--over", "seed=0,1", "--overrides", "init=run:02_pretrain/never"])
    assert "on the embedded data set in" not in capsys.readouterr().err
