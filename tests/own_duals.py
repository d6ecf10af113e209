"""Tasks whose `init` is the user's model of own_dual.py."""
import pytest
from conftest import ROOT

from egokit import tasks
from egokit.model import weights

OWN = f"init={ROOT}/tests/own_dual.py:Colours data.limit=0"


@pytest.fixture
def made(project, resolve):
    """A function: (recipe, overrides) -> a task whose init is the user's model, and that model."""
    def make(recipe, overrides=""):
        config = resolve(f"toy/{recipe}", f"{OWN} {overrides}")
        return tasks.make(config), weights.initial_model(config).eval()
    return make
