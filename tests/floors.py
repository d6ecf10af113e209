"""Print the oldest versions that pyproject.toml promises, as constraints for pip.

`make test-lowest` installs them. Packages that pyproject.toml does not name come at whatever version pip chooses.
"""
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
    print(requirement.replace(">=", "=="))
