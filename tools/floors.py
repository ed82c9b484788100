"""Print the oldest versions that pyproject.toml allows, as pip reads them: `>=2.10` becomes `==2.10.*`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
tested = {extra: what for extra, what in project["optional-dependencies"].items() if extra != "bench"}
for requirements in (project["dependencies"], *tested.values()):
    for requirement in requirements:
        if not requirement.startswith(project["name"]):  # the extra `test` takes the other extras in
            print(re.sub(r">=([\d.]+).*", r"==\1.*", requirement))
