"""Configuration: layers, strict names and types, helpful errors, renamed keys."""
import dataclasses

import pytest
import torch

import egokit
from egokit import tasks
from egokit.config.build import ConfigError, build, comparable, differences, flatten, merge, nest, to_dict
from egokit.config.registry import TASKS, build_config, restore
from egokit.config.resolve import parse_overrides, resolve
from egokit.config.schema import RENAMED, Config
from egokit.config.yaml_file import to_yaml


def test_layers_in_order(project):
    config = resolve("toy/pretrain", "tiny", "train.epochs=3 optim.lr=5e-4", "mine")
    assert config.site.chunk_seconds == 30 and config.model.width > 0      # site, recipe
    assert config.train.epochs == 3 and config.optim.lr == 5e-4            # overrides
    assert config.optim.betas == (0.9, 0.98) and config.task.itm_weight == 2  # defaults


def test_yaml_exponents_without_a_point_are_numbers():
    assert build(Config, {"optim": {"lr": "3e-5"}}).optim.lr == 3e-5


def test_round_trip(project):
    config = resolve("toy/pretrain", "tiny")
    import yaml
    assert build_config(yaml.safe_load(to_yaml(config))) == config
    other = resolve("toy/pretrain", "tiny", "seed=1 data.workers=7")
    assert differences(comparable(config), comparable(other)) == ["seed: 0 -> 1"], "workers change no number"


@pytest.mark.parametrize("overrides, message", [
    ("train.epoch=1", "'train.epoch'.*did you mean 'epochs'"),
    ("optin.lr=1", "'optin'.*did you mean 'optim'"),
    ("train.epochs=many", "train.epochs.*expected a valid integer.*'many'"),
    ("train.epochs=1.5", "train.epochs.*expected a valid integer.*1.5"),
    ("train.precision=fp8", "train.precision.*'fp8'.*fp16"),
    ("task=ek100 task.retrieval_loss=max-margin", "task.retrieval_loss.*'max-margin'.*did you mean 'max_margin'"),
    ("task=ek100 task.dual_softmax=-1", "task.dual_softmax.*expected 0 or more"),
    ("task.margin=0.2", "unknown key 'task.margin'.*known: .*itm_weight"),
    ("train.epochs=true", "train.epochs.*expected a number, not true or false, got True"),
    ("data.flip=1", "data.flip.*expected a valid boolean"),
    ("optim.lr=nan", r"optim.lr \(in overrides\): expected a finite number, got nan"),
    ("optim.lr=.inf", "optim.lr.*expected a finite number, got inf"),
    ("task.temperature=-.inf", "task.temperature.*expected a finite number, got -inf"),
    ("optim.lr=0", "optim.lr.*expected more than 0, got 0"),
    ("task.temperature=0", "task.temperature.*expected more than 0, got 0"),
    ("task.temperature=cold", "task.temperature.*expected a valid number.*got 'cold'"),
    ("evaluate.batch_size=0", "evaluate.batch_size.*expected 1 or more, got 0"),
    ("train.epochs=-1", "train.epochs.*expected 0 or more, got -1"),
    ("data.workers=-2", "data.workers.*expected 0 or more, got -2"),
    ("data.max_tokens=2", "data.max_tokens.*expected 3 or more, got 2"),
    ("data.max_bad_fraction=1.5", "data.max_bad_fraction.*expected 1 or less, got 1.5"),
    ("data.crop_scale=[0.0,1.0]", "data.crop_scale.*expected more than 0, got 0.0"),
    ("optim.betas=[0.9,.nan]", "optim.betas.*expected a finite number, got nan"),
    ("model.heads=5", r"expected width \(96\) a multiple of heads \(5\)"),
    ("task=egomqc", "task.*'egomqc'.*did you mean 'egomcq'|did you mean"),
    ("train=3", "train.*expected a section"),
    ("epochs", "section.key=value"),
])
def test_mistakes_name_the_key_and_its_closest_match(project, overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve("toy/pretrain", "tiny", overrides)


def test_every_number_has_its_bounds():
    """Of every section and of every task's own keys: a number without bounds accepts what can't work."""
    classes = [type(section) for section in vars(Config()).values() if dataclasses.is_dataclass(section)]
    classes += [tasks.find(name).Params for name in TASKS]
    numbers = {f"{cls.__qualname__}.{name}": field for cls in classes for name, field in cls.__pydantic_fields__.items()
               if field.annotation in (int, float)}
    assert len(numbers) > 50
    for name, field in numbers.items():
        assert any(hasattr(bound, "ge") or hasattr(bound, "gt") for bound in field.metadata), name


def test_wrong_file_names_name_the_closest_match(project):
    with pytest.raises(ConfigError, match="did you mean 'toy/pretrain'"):
        resolve("toy/pretrian", "tiny")
    with pytest.raises(ConfigError, match="did you mean 'charades_finetune'"):
        resolve("charades_finetune_of_an_older_egokit_version", "tiny")
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        resolve("toy/pretrain", "tinny")
    with pytest.raises(ConfigError, match="names a folder"):
        resolve("toy/pretrain", "tiny", "", "../evil")


def test_unknown_key_in_a_file_names_the_file(project):
    (project / "params" / "broken.yaml").write_text("task: egoclip\ntrain: {epochz: 3}\n")
    with pytest.raises(ConfigError, match=r"train.epochz.*broken.*did you mean 'epochs'"):
        resolve("broken", "tiny")
    (project / "params" / "broken.yaml").write_text("task: [unclosed\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        resolve("broken", "tiny")
    (project / "params" / "broken.yaml").unlink()


def test_overrides_and_merge():
    assert parse_overrides("a.b=1 a.c=x") == {"a": {"b": 1, "c": "x"}} == parse_overrides(["a.b=1", "a.c=x"])
    assert parse_overrides({"a.b": 1, "a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert merge({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


def test_every_recipe_and_site_resolves(project):
    recipes = [path.relative_to(project / "params").with_suffix("") for path in (project / "params").rglob("*.yaml")
               if path.parent.name != "sites"]
    assert len(recipes) >= 10
    for recipe in recipes:
        for site in ("toy", "example", "cluster_example"):
            assert resolve(str(recipe), site).task


@pytest.mark.parametrize("overrides, expected", [
    ("task.videos=/my videos/at home train.epochs=3",
     {"task": {"videos": "/my videos/at home"}, "train": {"epochs": 3}}),
    ("  train.epochs=3\n optim.lr=1e-4 ", {"train": {"epochs": 3}, "optim": {"lr": "1e-4"}}),
    ("task.videos=/a=b/c init=", {"task": {"videos": "/a=b/c"}, "init": ""}),
    ("", {})])
def test_values_with_spaces(overrides, expected):
    assert parse_overrides(overrides) == expected


@pytest.mark.parametrize("value", ["[1, 2", "{a", "*x", "a: b: c"])
def test_values_that_are_not_yaml(value):
    with pytest.raises(ConfigError, match=r"override 'init=.*its value is not YAML"):
        parse_overrides(f"train.epochs=3 init={value}")


def test_old_key_names_are_accepted_with_a_warning(project, tmp_path):
    """A recipe or site of an older egokit still works; the Config has the present names."""
    site = tmp_path / "older.yaml"
    site.write_text((project / "params/sites/tiny.yaml").read_text().replace("tasks_per_node", "processes"))
    with pytest.warns(FutureWarning) as warned:
        config = resolve("toy/pretrain", str(site), "data.evaluation_frames=2 launch.cpus=3")
    assert [str(warning.message).partition(" (")[0] for warning in warned] == [
        "launch.processes", "data.evaluation_frames", "launch.cpus"]
    messages = {str(warning.message) for warning in warned}
    assert "data.evaluation_frames (in overrides) is called data.eval_frames now" in messages
    assert (config.data.eval_frames, config.launch.cpus_per_task, config.launch.tasks_per_node) == (2, 3, 2)
    assert resolve("toy/pretrain", str(site), "launch.tasks_per_node=5").launch.tasks_per_node == 5
    message = r"launch.cpus \(in overrides\) is called launch.cpus_per_task now, which is given, too"
    with pytest.raises(ConfigError, match=message):
        resolve("toy/pretrain", "tiny", "launch.cpus=3 launch.cpus_per_task=4")
    known = {key for name in TASKS for key in flatten(to_dict(build_config({"task": {"name": name}})))}
    assert set(RENAMED.values()) <= known


def test_old_configs_are_compared_by_present_names():
    before = {"data": {"tokens": 15, "frames": 4}, "launch": {"slurm": {"gpus": 1}, "gpus": 0}, "task": "egoclip"}
    assert nest(flatten(before)) == {"data": {"max_tokens": 15, "frames": 4}, "task": {"name": "egoclip"},
                                     "launch": {"slurm": {"gpus": 1}, "gpus_per_task": 0}}
    recipe = {"data.evaluation_frames": 4, "seed": 0}  # metrics.json has dotted keys
    assert flatten(recipe) == {"data.eval_frames": 4, "seed": 0}


def test_an_earlier_run_gets_the_defaults_of_new_keys_and_drops_other_tasks():
    """A key that egokit adds must not disown the runs from before; other tasks' keys stood in every config once."""
    earlier = {"task": "ek100", "train": {"margin": 0.3, "temperature": 0.05, "epochs": 3}, "search": {"window": 4.0}}
    config = restore(earlier)
    assert (config.task.name, config.task.margin, config.train.epochs) == ("ek100", 0.3, 3)
    assert differences(comparable(config), comparable(build_config(
        {"task": {"name": "ek100", "margin": 0.3}, "train": {"epochs": 3}}))) == []


def test_a_checkpoint_with_old_key_names_is_loaded(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    old = {RENAMED[f"model.{name}"].partition(".")[2]: name for name in ("fused", "vocabulary", "positions")}
    content["model_config"] = {old.get(key, key): value for key, value in content["model_config"].items()}
    assert content["model_config"]["fused"] == 1
    torch.save(content, tmp_path / "older.pt")
    assert egokit.load(tmp_path / "older.pt").config == egokit.load(checkpoint).config
