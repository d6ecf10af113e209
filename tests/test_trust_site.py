"""Only launch.setup and launch.slurm hold code, and only a project of this user's own is found by itself."""
import os
import subprocess

import pytest
import yaml
from fake_slurm import ON_SLURM

from egokit.config.build import ConfigError
from egokit.config.resolve import project_root, resolve
from egokit.config.schema import LaunchConfig
from egokit.jobs import slurm

HOSTILE = "a\ntouch executed"


@pytest.mark.parametrize("key, value", [
    *((f"launch.{key}", HOSTILE) for key in ("partition", "account", "qos", "constraint")),
    ("launch.partition", "a\rb"), ("launch.qos", "a\x1b[2Jb"), ("launch.account", "a\u2028b"), ("site.root", HOSTILE),
    ("launch.setup", ["module load cuda", "a\rb"]), ("launch.setup", ["a\u2028b"]),
    ("launch.slurm", {"exclude": HOSTILE}),
    ("launch.slurm", {"srun_args": ["-v", HOSTILE]}), ("launch.slurm", {"additional_parameters": {HOSTILE: "x"}}),
    ("launch.slurm", {"additional_parameters": {"comment": {"x": [HOSTILE]}}})])
def test_a_site_with_control_characters_is_refused_by_its_key(project, tmp_path, key, value):
    section, _, name = key.partition(".")
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump({section: {name: value}}))
    with pytest.raises(ConfigError, match=rf"^{key} \(in site .*evil\.yaml\): expected one line without control"):
        resolve("toy/pretrain", str(tmp_path / "evil.yaml"))


def test_what_a_site_says_is_not_executed_but_its_setup(tmp_path):
    """The script is executed by a shell, with no SLURM: it creates what its setup creates, and nothing else."""
    words = {key: f"x; touch {key} #$(touch {key})`touch {key}`" for key in ("partition", "account", "constraint")}
    options = {"exclude": "$(touch exclude)", "srun_args": ["-v; touch srun"], "comment": "`touch comment`",
               "additional_parameters": {"comment": "'; touch value"}}
    folder = tmp_path / "$(touch folder)"
    launch = LaunchConfig(cluster="slurm", gpus_per_task=0, setup=("touch setup",), slurm=options, **words)
    script = slurm.script(launch, folder, "$(touch name)")
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run(["bash", "-c", script], cwd=work, capture_output=True,
                   env={"PATH": os.environ["PATH"], "PYTHONPATH": ""}, timeout=60)
    assert [path.name for path in work.iterdir()] == ["setup"]


@pytest.mark.parametrize("options, named", [
    *(({"additional_parameters": {key: "y"}}, "additional_parameters") for key in (
        "comment=x --output=elsewhere", "x y", "x;touch key", "--output", "", "é", 7)),
    *(({"srun_args": value}, "srun_args") for value in (["sh", "-c", "touch executed"], ["-v", "sh"], "-v", [""]))])
def test_an_option_is_one_option(tmp_path, options, named):
    with pytest.raises(ConfigError, match=rf"^launch\.slurm\.{named}.*: expected "):
        slurm.script(LaunchConfig(cluster="slurm", slurm=options), tmp_path, "name")


def test_a_block_of_setup_is_lines(project, tmp_path):
    """Lines of a here-document keep their order, and the empty ones among them."""
    (tmp_path / "mine.yaml").write_text("launch:\n  cluster: slurm\n  setup:\n    - |\n      cat <<END\n\n      a\n"
                                        "      END\n    - module load cuda\n")
    launch = resolve("toy/pretrain", str(tmp_path / "mine.yaml")).launch
    assert launch.setup == ("cat <<END", "", "a", "END", "module load cuda")
    assert LaunchConfig(setup=["a\r\nb"]).setup == ("a", "b") and LaunchConfig(setup=launch.setup) == LaunchConfig(
        setup=["cat <<END\n\na\nEND", "module load cuda\n"])
    assert "\ncat <<END\n\na\nEND\nmodule load cuda\n" in slurm.script(launch, tmp_path, "name")


@pytest.mark.parametrize("folder, name", [("a\nb", "name"), ("a", "name\nb")])
def test_a_folder_with_a_line_end_is_refused(tmp_path, folder, name):
    with pytest.raises(ConfigError, match="control characters"):
        slurm.script(LaunchConfig(cluster="slurm"), tmp_path / folder, name)


@pytest.fixture
def found(tmp_path, monkeypatch):
    """The project's folder, which is found from a folder below it."""
    monkeypatch.delenv("EGOKIT_HOME", raising=False)
    (tmp_path / "found/params/sites").mkdir(parents=True)
    (tmp_path / "found/below").mkdir()
    monkeypatch.chdir(tmp_path / "found/below")
    return tmp_path / "found"


@pytest.fixture
def no_checkout(tmp_path, monkeypatch):
    """An installed egokit has no project beside it."""
    monkeypatch.setattr("egokit.config.resolve.__file__", str(tmp_path / "lib/egokit/config/resolve.py"))


@pytest.mark.parametrize("part", ["", "params", "params/sites"])
def test_a_project_where_everybody_may_write_is_not_found_by_itself(found, no_checkout, monkeypatch, part):
    assert project_root() == found
    (found / part).chmod(0o777)
    with pytest.raises(ConfigError, match=f"but {found / part} is writable by everybody.*EGOKIT_HOME={found}"):
        project_root()
    monkeypatch.setenv("EGOKIT_HOME", str(found))
    assert project_root() == found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
@pytest.mark.parametrize("part", ["", "params", "params/sites"])
def test_a_project_of_another_user_is_not_found_by_itself(found, no_checkout, monkeypatch, part):
    os.chown(found / part, 12345, -1)
    with pytest.raises(ConfigError, match=f"but {found / part} belongs to 12345, .*EGOKIT_HOME={found}"):
        project_root()
    with pytest.raises(ConfigError, match="EGOKIT_HOME"):
        resolve("toy/pretrain", "toy", ON_SLURM)
    monkeypatch.setenv("EGOKIT_HOME", str(found))
    assert project_root() == found


def test_the_next_project_is_used_instead_and_the_skipped_one_named_once(found, capsys):
    """One's own project above it, or the checkout."""
    (found / "params").chmod(0o777)
    assert (project_root() / "egokit/config/resolve.py").is_file() and project_root() != found
    notice = capsys.readouterr().err
    assert notice.count(f"{found / 'params'} is writable by everybody") == 1 == notice.count("\n")
    (found.parent / "params/sites").mkdir(parents=True)
    assert project_root() == found.parent and not capsys.readouterr().err
