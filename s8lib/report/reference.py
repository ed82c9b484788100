"""The project's own runs, shown from the files that they left in `results/`."""

from __future__ import annotations

from pathlib import Path

from s8lib.recipe import Recipe
from s8lib.run.folder import RunFolder
from s8lib.run.log import EpochLog


def reference_runs(folder: str | Path = "results") -> None:
    """Print what each run in `folder` reached, on which hardware and commit; in a notebook show its curves."""
    logs = sorted(Path(folder).rglob("epoch_log.csv"))
    if not logs:
        print(f"there are no results in {folder} beside this notebook; the project's copy has them")
    for path in logs:
        recipe = Recipe.load(path.parent / "recipe.json")
        folder_of_run = RunFolder(path.parent)
        machine = folder_of_run.read_json("environment.json", default=[{}])[-1]
        commit = str(folder_of_run.read_json("report.json", default={}).get("commit", "unrecorded"))[:10]
        print(f"{recipe.name}, {recipe.model}, seed {recipe.seed}")
        print("   ", EpochLog.read(path).summary().replace("; ", "\n    "))
        print(f"    on {_hardware(machine)}, torch {machine.get('torch')}, commit {commit}")
    for graph in sorted(Path(folder).rglob("graph.jpg")):
        from IPython.display import Image, display

        display(Image(graph))


def _hardware(machine: dict[str, object]) -> str:
    threads = f", {machine['cpu_threads']} threads" if machine.get("device") == "cpu" else ""
    return f"{machine.get('device_name', 'unknown hardware')}{threads}, {machine.get('precision')}"
