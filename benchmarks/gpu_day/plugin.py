"""A pytest plugin for a machine without ffmpeg: tests use the data of prepare.sh.

    python -m pytest -p gpu_day.plugin
"""
import shutil

from gpu_day.common import DATA


def pytest_configure(config) -> None:
    """Have the fixture `project` copy the prepared data set instead of making it."""
    import egokit.prep
    import egokit.toy

    def make(root, *args, **options) -> None:
        shutil.copytree(DATA, root, dirs_exist_ok=True)

    egokit.toy.make = make
    egokit.prep.prepare = lambda *args, **options: None
