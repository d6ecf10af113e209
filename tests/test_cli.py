"""The command line: help with examples, one-line errors with exit code 2, toy and prep."""
import contextlib

import pytest

from egokit import cli
from egokit.runs.explain import explained


@pytest.mark.parametrize("command", ["demo", "toy", "prep", "run", "submit", "sweep", "profile", "search", "score"])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"example:\n  egokit {command}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["submit", "toy/pretrian", "--site", "tiny"], "did you mean 'toy/pretrain'"),
    (["submit", "toy/pretrain", "--site", "tinny"], "did you mean 'tiny'"),
    (["submit", "toy/pretrain", "--site", "tiny", "--overrides", "optim.lrr=1"], "did you mean 'lr'"),
    (["submit", "toy/egomcq", "--site", "tiny", "--action", "train"], "no action 'train': expected evaluate"),
    (["submit", "toy/egomcq", "--site", "tiny", "--run", "never-trained"], "02_pretrain"),
    (["run", "05_egomqc"], "did you mean '05_egomcq'"),
    (["run", "05_egomcq", "--site", "tiny", "--run", "a b"], "use letters, digits"),
    (["run", "01_data_prep", "05_egomcq:toy/egomcqq", "--site", "tiny"], "did you mean 'toy/egomcq'"),
    (["prep", "--site", "tiny", "--root", "nowhere-at-all"], "does not exist"),
    (["prep", "ego4d", "--site", "tiny", "--wait"], "give --array N, too"),
    (["prep", "--site", "tiny", "--shard", "1/2"], "--source, --shard and --array are for Ego4D only"),
    (["prep", "ego4d", "--site", "tiny", "--source", "nowhere", "--root", "nowhere-at-all"], "no videos in nowhere"),
    (["prep", "ego4d", "--source", "nowhere", "--root", "nowhere-at-all"], "name a site of your own"),
    (["prep", "ego4d", "--root", "nowhere-at-all"], "name a site of your own"),
    (["prep", "--root", "nowhere-at-all"], "name a site of your own"),
    (["prep", "ek100", "--overrides", "site.root=nowhere-at-all"], "name a site of your own"),
    (["prep", "ego4d", "--source", "nowhere"], "name a site of your own"),
    (["prep", "ego4d", "--source", "nowhere", "--site", "toy"], "name a site of your own"),
    (["prep", "ego4d", "--root", "nowhere-at-all", "--overrides", "site.short_side=64"], "name a site of your own"),
])
def test_mistakes_are_one_line_and_exit_code_2(project, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.startswith("egokit: ") and "Traceback" not in error


@pytest.mark.parametrize("given", ["17/16", "0/16", "3", "a/b"])
def test_a_malformed_shard_is_refused(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["prep", "ego4d", "--shard", given])
    assert f"'{given}': write NUMBER/COUNT, from 1/16 to 16/16" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan"])
def test_a_malformed_timeout_is_refused(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "05_egomcq", f"--timeout={given}"])
    assert f"'{given}': expected a number of minutes above 0" in capsys.readouterr().err


def test_toy_and_prep_from_the_command_line(tmp_path, project, capsys):
    cli.main(["toy", str(tmp_path / "toy"), "--size", "tiny", "--seed", "3"])
    with pytest.raises(SystemExit, match="0"):
        cli.main(["prep", "ego4d", "--root", str(tmp_path / "toy")])
    assert '"videos": 9' in capsys.readouterr().out and (tmp_path / "toy/Ego4D_Chunked").is_dir()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["toy", str(tmp_path / "toy"), "--size", "tiny", "--seed", "4"])
    assert "toy.json says that this root holds" in capsys.readouterr().err


LONG = "x" * 300


@pytest.mark.parametrize("command", [
    ["runs", "--outputs", LONG], ["ledger", "--outputs", LONG], ["trust", LONG], ["doctor", "--site", LONG],
    ["submit", "toy/pretrain", "--run", LONG], ["submit", LONG], ["submit", "toy/pretrain", "--run", "é" * 81],
    ["submit", "toy/pretrain", "--overrides", f"init={LONG}"], ["submit", "a\nb"], ["search", LONG, "a"],
    ["submit", "toy/pretrain", "--overrides", "task=a\nb.py:A"], ["convert", LONG, "a.pt"],
    ["runs", "--outputs", "a\0"], ["trust", "a\nb\nc\nd"], ["convert", "a.pt", f"{LONG}.pt"],
    ["compare", LONG, "--init", "a.pt"], ["compare", "03", "--init", "a.pt", "--run", LONG],
    ["run", LONG], ["prep", "--root", LONG], ["toy", LONG]])
def test_a_name_that_is_too_long_or_has_line_ends_is_one_line(command, project, capsys):
    with contextlib.suppress(SystemExit):
        cli.main(command)
    error = capsys.readouterr().err
    assert len([line for line in error.splitlines() if "egokit: " in line]) <= 1 and "Traceback" not in error
    assert len(error.splitlines()) < 3, error


def test_an_error_whose_file_can_not_be_looked_at_is_itself():
    for name in ("x" * 300, "a\0b", 7, b"x"):
        error = OSError(36, "File name too long", name)
        assert explained(error) is error


def test_the_ledger_has_a_line_for_each_run_that_it_leaves_out(tmp_path, capsys):
    (tmp_path / "nb/a\negokit: all is well").mkdir(parents=True)
    (tmp_path / "nb/a\negokit: all is well/metrics.json").write_text("5")
    cli.main(["ledger", "--outputs", str(tmp_path)])
    assert r"a\negokit: all is well/metrics.json: " in capsys.readouterr().out.splitlines()[-1]
