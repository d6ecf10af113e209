"""`egokit compare`: what is checked, what each model gets, and two models through the command, with their table."""
import os
import re
import subprocess
import sys
from argparse import Namespace

import pytest
from conftest import ROOT
from fake_slurm import ON_SLURM, put_into_path
from tiny_peers import tiny_file, tokenizer_for

from egokit import cli, tasks, viz
from egokit.config.build import ConfigError
from egokit.config.resolve import resolve
from egokit.jobs import launch
from egokit.model import sources, weights
from egokit.model.sources import Described
from egokit.notebook import compare
from egokit.runs.run_folder import Run


def arguments(notebook="03_ek100", **changes):
    """What the command line gives."""
    return Namespace(**{"notebook": notebook, "init": ["a.pt", "b.pt"], "params": None, "site": None,
                        "overrides": None, "run_name": "compare"} | changes)


@pytest.mark.parametrize("inits, names", [
    (["w/a.pt", "v/b.pth"], ["a", "b"]),
    (["hf:openai/clip-vit-base-patch16"], ["openai-clip-vit-base-patch16"]),
    (["x/clip.narrator.ep_0005.md5sum_d73a9c.pth"], ["clip.narrator.ep_0005"]),
    (["../../..", "…/ä ö.pt", ".hidden.pt"], ["model", "model", "hidden"]),
    (["w/a.pt", "v/a.pt", "u/A.pth"], ["a", "a", "A"]),
])
def test_a_models_short_name_can_be_in_a_folders(project, inits, names):
    found = compare.short_names(inits)
    assert len({name.casefold() for name in found}) == len(inits) and all(
        re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,70}", name) for name in found)
    alike = [name for name in names if [*map(str.casefold, names)].count(name.casefold()) > 1]
    for name, short in zip(names, found, strict=True):
        assert re.fullmatch(re.escape(name) + r"-[0-9a-f]{6}", short) if name in alike else short == name
    assert compare.short_names(inits) == found, "a second call finds the same folders"


@pytest.mark.parametrize("changes, message", [
    ({"notebook": "77"}, "no notebook '77'"), ({"init": ["a.pt", "a.pt"]}, "a.pt is named twice: expected different"),
    ({"overrides": "init=c.pt"}, "give each model as --init"), ({"params": "toy/none"}, "no recipe 'toy/none'"),
    ({"overrides": "data.eval_framse=4"}, "eval_frames"), ({"run_name": "a/b"}, "run 'a/b'"),
    ({"notebook": "02"}, "runs no encoder, so there are no models to compare"),
    ({"params": "toy/egotaskqa_head"}, "runs no encoder, so there are no models to compare")])
def test_a_mistake_is_told_before_anything_starts(project, changes, message):
    with pytest.raises(ConfigError, match=message):
        compare.check(arguments(**changes))


def test_the_recipe_is_the_notebooks_on_the_toy_and_the_published_one_elsewhere(project):
    assert compare.check(arguments()).params == "toy/ek100_finetune"
    assert compare.check(arguments(site="example")).params == "ek100_finetune"
    assert compare.check(arguments("05", site="example")).params == "egomcq"
    given = compare.check(arguments(site="example", params="toy/ek100_finetune", overrides="data.eval_frames=2"))
    assert (given.params, given.section, given.notebook) == ("toy/ek100_finetune", "zeroshot", "03_ek100")
    assert given.config(given.models[0]).data.eval_frames == 2


def test_each_model_gets_its_familys_keys_unless_the_user_states_them(project, monkeypatch):
    keys = {"data.eval_resize": 256, "model.image_size": 224, "data.eval_max_tokens": 77}
    monkeypatch.setattr(sources, "describe", lambda init: Described("egovlp", 224, 4, keys))
    known, other = "EgoVLP_PT_BEST.pth", "own.pth"
    free = compare.check(arguments("05", site="example", init=[known, other]))
    assert compare.own_keys(free, free.models[0]) == keys | {"data.eval_frames": 4}, "its number is of 4 frames"
    assert compare.own_keys(free, free.models[1]) == keys, "nothing is published of another file"
    stated = compare.check(arguments("05", site="example", init=[known, other],
                                     overrides="data.eval_resize=230 data.eval_frames=8"))
    left = {key: value for key, value in keys.items() if key != "data.eval_resize"}
    assert compare.own_keys(stated, stated.models[0]) == left
    stated.models[0].keys = left
    config = stated.config(stated.models[0])
    assert (config.data.eval_resize, config.data.eval_frames, config.data.eval_max_tokens) == (230, 8, 77)
    of_ek100 = compare.check(arguments(site="example", init=[known]))
    assert compare.own_keys(of_ek100, of_ek100.models[0]) == keys, "there is a number for the recipe's 16 frames"


def test_what_can_be_no_model_fails_alone_in_one_line_each(project, capsys):
    wrong = ["x" * 300, "a\0b", "hf:../x", "nowhere.py:Class", "", "a\nb.pt", "run:02_pretrain/nobodys"]
    with pytest.raises(SystemExit, match="1"):
        cli.main(["compare", "03", "--site", "tiny", "--run", "wrong", *(f"--init={init}" for init in wrong)])
    told, table = (part.splitlines() for part in capsys.readouterr().out.split("\n\n", 1))
    assert len(told) == len(wrong) and all(": failed: " in line for line in told), told
    assert [line for line in table if line] == told and len(set(told)) == len(told)
    assert not [*(project / "outputs/03_ek100").glob("wrong*/jobs/*/job.json")]


def test_one_file_in_two_spellings_is_one_model(project, tmp_path, monkeypatch):
    (tmp_path / "w").mkdir()
    (tmp_path / "w/a.pt").write_bytes(b"")
    (tmp_path / "link.pt").symlink_to(tmp_path / "w/a.pt")
    for other in ("w/../w/a.pt", "link.pt"):
        with pytest.raises(ConfigError, match="named twice in other words: expected different"):
            compare.check(arguments(init=[str(tmp_path / "w/a.pt"), f"{tmp_path}/{other}"]))


def test_a_mistake_in_the_last_model_is_told_before_the_first_one_runs(project, checkpoint, monkeypatch, capsys):
    def submit(config, *rest):
        raise launch.NotSubmitted(f"{capsys.readouterr().out} stood there")
    monkeypatch.setattr(launch, "submit", submit)
    with pytest.raises(SystemExit):
        cli.main(["compare", "03", "--init", str(checkpoint), "--init", "nowhere.pt", "--site", "tiny", "--params",
                  "toy/ek100_finetune", "--run", "early"])
    assert "nowhere: failed: checkpoint nowhere.pt does not exist" in capsys.readouterr().out.partition("stood")[0]


def test_on_slurm_all_are_submitted_and_the_command_returns(project, checkpoint, tmp_path, monkeypatch, capsys):
    cluster = put_into_path(tmp_path / "slurm", monkeypatch)
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    for path in (first, second):
        path.write_bytes(checkpoint.read_bytes())
    monkeypatch.setattr(launch.Handle, "wait", lambda *given, **options: pytest.fail("nothing is waited for"))
    (cluster / "queue").write_text("42|PENDING|main|1|N/A|Priority")
    cli.main(["compare", "03", "--init", str(first), "--init", str(second), "--site", "tiny", "--params",
              "toy/ek100_finetune", "--run", "cluster", "--overrides", ON_SLURM])
    lines = capsys.readouterr().out
    for name in ("first", "second"):
        folder = project / "outputs/03_ek100" / f"cluster-{name}"
        assert (folder / "jobs/zeroshot/job.json").is_file() and f"{name}: <zeroshot of 03_ek100/cluster-" in lines
    assert "pending" in lines and "paired bootstrap" not in lines


@pytest.mark.slow
def test_models_through_the_command(project, checkpoint, tmp_path):
    """One after another, with one that is missing; a second call evaluates nothing again; notebooks show the same."""
    import torch
    second, recipe = tmp_path / "other.pt", ["--site", "tiny", "--params", "toy/ek100_finetune", "--run", "both"]
    model = weights.load(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    weights.save(model, second)
    lavila = tiny_file(tmp_path / "clip_openai_timesformer_base.narrator_rephraser.ep_0005.pth", "lavila_tsfb")
    recipe += ["--overrides", f"site.clip_tokenizer={tokenizer_for('lavila_tsfb', tmp_path / 'tokenizer')}"]
    inits = [part for init in (checkpoint, tmp_path / "missing.pt", second, lavila) for part in ("--init", str(init))]

    def command():
        done = subprocess.run([sys.executable, "-m", "egokit.cli", "compare", "03_ek100", *inits, *recipe],
                              capture_output=True, text=True, cwd=project, timeout=300,
                              env=os.environ | {"PYTHONPATH": str(ROOT)})
        return done.returncode, done.stdout + done.stderr

    code, text = command()
    runs = [Run(project / "outputs/03_ek100" / f"both-{name}") for name in ("02_pretrain-random", "other")]
    values = [run.metrics()["zeroshot"] for run in runs]
    assert code == 1 and re.search(r"^missing: failed: checkpoint \S+/missing.pt does not exist", text, re.MULTILINE)
    for metric, published in (("mAP", 26.7), ("nDCG", 29.1)):
        for run, section in zip(runs, values, strict=True):
            value = section[metric]
            row = rf"03_ek100/{run.path.name} +{published} +{value:.1f} +{re.escape(f'{value - published:+.1f}')}$"
            assert re.search(row, text, re.MULTILINE), (row, text)
        difference = values[1][metric] - values[0][metric]
        found = re.search(rf"^{metric} +other\.pt – 02_pretrain/random +(\S+)  \[(\S+), +(\S+)\] +(.*)$", text,
                          re.MULTILINE)
        assert float(found[1]) == pytest.approx(difference, abs=0.006) and float(found[2]) <= difference
    assert re.search(r"^  LaViLa TSF-B, 4 frames +03_ek100/both-clip_openai\S* … +29\.7 +\d", text, re.MULTILINE), text
    assert "resized to 64 px, published 224" in text and "data.eval_resize=64" in text
    assert re.search(r"^mAP +LaViLa TSF-B – other\.pt ", text, re.MULTILINE)
    made = [(run.path / "jobs/zeroshot/job.json").stat().st_mtime_ns for run in runs]
    assert command()[0] == 1
    assert made == [(run.path / "jobs/zeroshot/job.json").stat().st_mtime_ns for run in runs]
    config = resolve("toy/ek100_finetune", "tiny", {"init": str(checkpoint)}, "both-02_pretrain-random")
    shows = viz.comparison(tasks.make(config), runs[0], "zeroshot", ("both-other", "zeroshot"))
    table, differences = (part.data for part in shows.tables)
    here = [section[metric] for metric in ("mAP", "nDCG") for section in values]
    assert table["here"].tolist() == pytest.approx(here)
    assert differences["difference"].tolist() == pytest.approx([values[1][metric] - values[0][metric]
                                                                for metric in ("mAP", "nDCG")])
    assert "both-other" in shows.to_html() and "paired bootstrap" in shows.to_html()
    with pytest.raises(ValueError, match="expected sections of the run"):
        viz.comparison(tasks.make(config), runs[0])
