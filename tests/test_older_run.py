"""A run that an older egokit began goes on with its own copy of egokit."""
import json

import pytest
from conftest import MODEL

import egokit
from egokit.config.build import to_dict
from egokit.jobs import launch
from egokit.runs.files import write_text
from egokit.runs.run_folder import Run


def test_a_run_of_an_older_egokit_goes_on_with_it(resolve, tmp_path, monkeypatch, capsys):
    """The run's copy of egokit refuses unknown keys, so it gets none.

    The run's spec survives a job that can't start.
    """
    run = Run(tmp_path / "02_pretrain/old")
    config, started = resolve(overrides=MODEL), {}
    (run.path / "checkpoints").mkdir(parents=True)
    (run.path / "checkpoints/step-0000001.pt").touch()
    handle = launch.Handle(run, "pretrain")

    def refused(module, *args):
        started["config"], started["module"] = handle.spec()["config"], module
        raise launch.NotSubmitted("no")

    monkeypatch.setattr(launch, "start_job", refused)
    earlier = to_dict(config)
    del earlier["train"]["deterministic"]
    earlier["launch"]["processes"] = earlier["launch"].pop("tasks_per_node")
    earlier["data"]["tokens"] = earlier["data"].pop("max_tokens")
    earlier_spec = {"config": earlier, "action": "train", "init_sha256": ""}
    write_text(handle.folder / "spec.json", json.dumps(earlier_spec))
    (handle.folder / "code").mkdir()
    with pytest.raises(launch.NotSubmitted):
        egokit.submit(config, run, "train", "pretrain")
    assert started["config"] == earlier and started["module"] == "egokit.job" and handle.spec() == earlier_spec
    assert "the copy of egokit that it began with, which doesn't know deterministic" in capsys.readouterr().out
