"""Steps of a notebook that not every model can take: a notebook goes on without them, and says why."""
from egokit.jobs import launch
from egokit.jobs.handle import Handle
from egokit.runs.run_folder import Run


def submit_training(run: Run, section: str) -> Handle | None:
    """Submit a run's training, or attach to it; of a model that is only evaluated print a sentence, and return None.

    Args:
        run: the run of `egokit.open_run`.
        section: the job's name, and its section of metrics.json.

    Raises:
        ConfigError, NotSubmitted: as `egokit.submit`.
    """
    config = run.config
    if config.init:
        from egokit.model import sources
        known = sources.describe(config.init)
        if known.family != "egovlpv2":
            family = sources.WRITTEN[known.family]
            print(f"not trained: init names {sources.name(config.init)} ({family}), and only EgoVLPv2 models are "
                  "trained; what follows shows it as it is")
            return None
    return launch.submit(config, run, "train", section)


def scored(run: Run, *sections: str) -> list[str]:
    """Return those of the sections that have been evaluated, in their order; the others were left out before."""
    return [section for section in sections if (run.path / f"rows-{section}.npz").is_file()] or [*sections[:1]]
