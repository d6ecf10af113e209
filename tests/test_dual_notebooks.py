"""The notebooks with a user's model as init: what needs fusion or training is left out, with a sentence."""
import json

import pytest
from conftest import ROOT
from test_notebooks import errors, html_outputs, run_notebook

OWN = f"init={ROOT}/tests/own_dual.py:Colours launch.tasks_per_node=1 data.limit=4"
__all__ = ["run_notebook"]  # a fixture


def texts(book) -> str:
    """What a notebook prints."""
    return "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))


@pytest.mark.slow
@pytest.mark.parametrize("name, said", [
    ("03_ek100", "not trained: init names own_dual.py:Colours (own)"),
    ("05_egomcq", ""), ("07_search_your_videos", "not re-ranked: Colours has no fusion encoder")])
def test_notebooks_go_on_with_a_users_model(run_notebook, name, said):
    book, run = run_notebook(name, OWN, "own-dual")  # other tests of this worker have runs "small"
    assert not errors(book) and said in texts(book)
    shown, metrics = "".join(html_outputs(book)), run.metrics()
    if name == "03_ek100":
        assert "zeroshot" in metrics and "finetune" not in metrics and 'class="egokit-sides' in shown
    elif name == "05_egomcq":
        assert "what dual chose" in shown and metrics["egomcq"]["score"] == "dual_intra" in metrics["egomcq"]
    else:
        manifest = json.loads((run.path / "features/manifest.json").read_text())
        assert manifest["dimension"] == 24 and len((run.path / "hits.csv").read_text().splitlines()) > 1
