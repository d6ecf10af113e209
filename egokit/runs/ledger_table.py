"""The ledger as tables: one a benchmark, models as rows, published numbers beside those that were measured here."""
import math
import textwrap
from typing import NamedTuple

from egokit.runs.ledger import Ledger, LedgerRow, registered
from egokit.runs.recipe_differences import DUAL_SOFTMAX
from egokit.runs.shown_text import shown

MAX_NAME = 42  # characters of a name, which is not wrapped: a line has 120
NOTHING = "no run has a number that was published: evaluate one with notebooks 03, 04 or 05"


class TableRow(NamedTuple):
    """One line of a benchmark's table."""
    metric: str                 # as readers know it, without the benchmark's name
    model: str
    run: str                    # notebook/run; "": published, and not measured here
    published: float | None     # %
    value: float | None         # %, measured here
    recipe: str                 # in what the recipe differs; or where the number is published

    @property
    def difference(self) -> float | None:
        """Return how much more was measured here than published, in points of %."""
        return None if self.published is None or self.value is None else self.value - self.published


def tables(ledger: Ledger, unmeasured: bool = True) -> dict[str, list[TableRow]]:
    """Return the rows of each benchmark that has a run, ordered by metric: runs, then what is only published.

    Args:
        ledger: of all runs, or of some.
        unmeasured: show also the published models that have no run here.
    """
    out: dict[str, list[TableRow]] = {}
    names = dict.fromkeys((entry.benchmark, entry.result.name) for entry in ledger.entries)
    for benchmark, name in names:
        entries = [entry for entry in [*ledger.entries, *ledger.beside]
                   if (entry.benchmark, entry.result.name) == (benchmark, name)]
        rows = out.setdefault(benchmark, [])
        rows += [_measured(entry, _metric(benchmark, name)) for entry in entries]
        if unmeasured:
            rows += _unmeasured(benchmark, name, entries)
    return out


def _metric(benchmark: str, name: str) -> str:
    """Return the name of a metric without that of its benchmark."""
    return name.removeprefix(benchmark).lstrip(" ,") or name


def _measured(entry: LedgerRow, metric: str) -> TableRow:
    """Return the row of a run."""
    result = entry.result
    published = None if result.published is None or math.isnan(result.published) else result.published
    phrases = entry.recipe or ["the published recipe"]
    if not result.model or (result.conditions and published is None):
        phrases = [*entry.recipe, "no number is published for it"]
    elif result.source and result.conditions:
        phrases = [*phrases, f"published in {result.source}"]
    return TableRow(metric, with_frames(entry.model, result.frames), entry.run, published, entry.value,
                    "; ".join(phrases))


def _unmeasured(benchmark: str, name: str, entries: list[LedgerRow]) -> list[TableRow]:
    """Return the published models of a metric that no run is beside, the best last."""
    of_name = [result for task, result in registered() if (task.title or task.__name__) == benchmark]
    of_name += [peer for task in {task for task, _ in registered()} if task.title == benchmark for peer in task.peers]
    key = {(entry.model, entry.result.frames, entry.result.source) for entry in entries}
    left = {(result.model, result.frames, result.source): result for result in of_name
            if result.name == name and result.published is not None and not result.metric.endswith(DUAL_SOFTMAX)}
    return [TableRow(_metric(benchmark, name), with_frames(result.model, result.frames), "", result.published, None,
                     "; ".join(filter(None, (result.source, result.checkpoint))))
            for found, result in sorted(left.items(), key=lambda item: item[1].published) if found not in key]


def with_frames(model: str, frames: int) -> str:
    """Return a model's name with the frames for which its number is published."""
    return shown(f"{model}, {frames} frames" if frames else model, MAX_NAME)


def format_ledger(ledger: Ledger, unmeasured: bool = True) -> str:
    """Return the ledger's tables as text; differences between recipes are wrapped at 120 columns."""
    by_benchmark = tables(ledger, unmeasured)
    blocks = [format_table(benchmark, rows) for benchmark, rows in by_benchmark.items()] or [NOTHING]
    return "\n\n".join(blocks + (["\n".join(ledger.left_out)] if ledger.left_out else []))


def format_table(benchmark: str, rows: list[TableRow]) -> str:
    """Return one benchmark's table as text."""
    title = f"{shown(benchmark, MAX_NAME)}, %"
    names = max(len(title), *(len(row.model) + 2 for row in rows)) + 2
    seen: set[tuple[str, str, str]] = set()
    runs = max(len("run"), *(len(shown(row.run, MAX_NAME)) for row in rows)) + 2
    out, metric = [f"{title:{names}}{'run':{runs}}{'published':>10}{'here':>10}{'difference':>12}"], None
    for row in rows:
        if row.metric != metric:
            out.append(shown(metric := row.metric, MAX_NAME))
        numbers = f"{_number(row.published):>10}{_number(row.value):>10}{_number(row.difference, '+.1f'):>12}"
        recipe = "as above" if (key := (row.model, row.run, row.recipe)) in seen else row.recipe
        seen.add(key)
        out += [f"{'  ' + row.model:{names}}{shown(row.run, MAX_NAME) or '–':{runs}}{numbers}",
                *textwrap.wrap(recipe, 120, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)]
    return "\n".join(out)


def _number(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None else format(value, form)
