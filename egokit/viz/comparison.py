"""Evaluated models beside one another: the ledger's rows of them, and how sure their differences are."""
from egokit.notebook.safe_html import Tables, styled
from egokit.runs.ledger import Ledger, read_run
from egokit.runs.ledger_table import tables
from egokit.runs.run_folder import Run
from egokit.tasks import significance
from egokit.viz.queries import sides
from egokit.viz.tables import benchmark_table


def comparison(task, run: Run, *evaluated):
    """Return evaluated models' numbers beside the published ones, and how sure their differences are.

    Nothing is evaluated: the differences are of the rows that the evaluations have left.

    Args:
        task: The task that was evaluated.
        run: The run of a notebook.
        *evaluated: Its sections of metrics.json; or (run, section), where the run is a Run, a folder, or the name of a
            run beside this one.

    Returns:
        The tables, to display.

    Raises:
        ValueError: Nothing is named, the sections were not scored on the same queries, or a file is damaged.
        FileNotFoundError: A run, or the rows of a section, are not there.
    """
    if not evaluated:
        raise ValueError('comparison: expected sections of the run, such as "zeroshot", "finetune", or (run, section)')
    for one in evaluated:
        if not isinstance(one, str) and not (isinstance(one, (tuple, list)) and len(one) == 2):
            raise ValueError(f"comparison: expected a section's name or (run, section), got {repr(one)[:60]}")
    compared = [sides(run, one, None)[0] if isinstance(one, str) else sides(run, one[1], one)[1] for one in evaluated]
    rows = [row for side in compared for row in read_run(side.run.path / "metrics.json", everything=True)
            if row.section == side.section]
    ledger = Ledger([row for row in rows if row.result.in_ledger], [],
                    tuple(row for row in rows if not row.result.in_ledger))
    shows = [benchmark_table(benchmark, lines) for benchmark, lines in tables(ledger, unmeasured=False).items()]
    names = {row.result.name for row in ledger.entries}
    found = significance.of_runs(task, {side.name: side[1:] for side in compared},
                                 list(dict.fromkeys(row.result.metric for row in rows if row.result.name in names)))
    return Tables([*shows, *([difference_table(found)] if found else [])])


def difference_table(found: list[tuple]):
    """Return what `significance.of_runs` found as a styled table."""
    columns = ["metric", "models", "difference", "95 % from", "to", "p"]
    lines = [(metric, f"{second} – {first}", difference.value, difference.low, difference.high,
              significance.p_value(difference.p)) for metric, first, second, difference in found]
    return styled(lines, columns, columns[:2], dict.fromkeys(columns[2:5], "{:+.2f}"), [significance.title(found)])
