"""The tables in results/README.md and README.md, made from the files under results/: no figure is typed in.

`python -m benchmarks.results_table` writes both anew, and the poster of the film in README.md; a test compares the
tables with the files.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from imageio_ffmpeg import get_ffmpeg_exe

import s8lib as s8
from benchmarks import speed

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "results" / "README.md"
IN_README = ("run", "network", "hardware", "seed", "target", "final epoch", "best epoch", "chosen on", "minutes")
TARGETS = {"seed-100": "74-75%", "seed-200": "82%", "quick": "75%", "quick-long": "78%"}  # the commission's
POSTER = ROOT / "docs" / "poster.jpg"
BEGIN = "<!-- python -m benchmarks.results_table writes from here -->"
END = "<!-- to here -->"
UNKNOWN = "-"


@dataclass(frozen=True)
class Result:
    """A run's folder; `report` is empty where only what training itself writes was kept."""

    folder: Path
    log: s8.EpochLog
    recipe: s8.Recipe
    machine: dict[str, Any]
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Result:
        report = folder / "report.json"
        return cls(
            folder,
            s8.EpochLog.read(folder / "epoch_log.csv"),
            s8.Recipe.load(folder / "recipe.json"),
            json.loads((folder / "environment.json").read_text(encoding="utf-8"))[-1],
            json.loads(report.read_text(encoding="utf-8")) if report.exists() else {},
        )

    def row(self, page: Path) -> dict[str, str]:
        """Titles and cells, for a table on `page`."""
        log, machine = self.log, self.machine
        final, best = log[-1], log.best
        link = self.folder.relative_to(page.parent).as_posix()
        name = self.folder.relative_to(ROOT / "results").as_posix()
        count = machine["cpu_threads"]
        threads = f", {count} thread{'s' * (count > 1)}" if machine["device"] == "cpu" else ""
        unfinished = "" if len(log) == self.recipe.epochs else f" of {self.recipe.epochs}"
        performance = self.report.get("performance", {})
        return {
            "run": f"[{name}]({link})",
            "network": self.recipe.model,
            "hardware": f"{machine['device_name']}{threads}, {machine['precision']}, torch {machine['torch']}",
            "seed": f"{self.recipe.seed}",
            "target": TARGETS.get(self.recipe.name, UNKNOWN),
            "final epoch": f"{final.test_acc:.2f}% @{final.epoch}{unfinished}",
            "best epoch": f"{best.test_acc:.2f}% @{best.epoch}",
            "chosen on": "test set" if best.holdout_acc is None else "held-out images",
            "final top-5": f"{final.test_top5:.2f}%",
            "final ECE": _measured(self.report.get("final_measured_again", {}).get("ece"), ".2f", "%"),
            "minutes": f"{sum(row.seconds for row in log) / 60:.1f}",
            "with start and saving": _measured(performance.get("minutes"), ".1f"),
            "images/s": f"{statistics.harmonic_mean([row.images_per_s for row in log]):,.0f}",
            "with evaluation": _measured(performance.get("images_per_s_with_evaluation"), ",.0f"),
            "MFU": _measured(performance.get("mfu_percent"), ".1f", "%"),
        }


def results() -> list[Result]:
    """Every run under results/, by folder."""
    return [Result.read(path.parent) for path in sorted((ROOT / "results").rglob("epoch_log.csv"))]


def tables(page: Path) -> str:
    """The runs, in README.md the first seed of each kind, and below them the mean of those with several seeds."""
    kinds = [[*members] for _, members in groupby(results(), key=lambda result: result.folder.parent)]
    rows = [result.row(page) for members in kinds for result in (members[:1] if page == README else members)]
    titles = IN_README if page == README else tuple(rows[0])
    lines = [_line(titles), "|---" * len(titles) + "|", *(_line(row[title] for title in titles) for row in rows)]
    for members in kinds:
        finals = [result.log[-1].test_acc for result in members]
        if len(finals) > 1:
            lines += [
                "",
                f"`{members[0].folder.parent.name}`, final epoch: mean {statistics.mean(finals):.2f}%, standard "
                f"deviation {statistics.stdev(finals):.2f} (n = {len(finals)}).",
            ]
    return "\n".join([*lines, *speed_tables(page)])


def speed_tables(page: Path) -> list[str]:
    """What `benchmarks.speed --json` left in results/speed/, with its plots; in README.md the ratios alone."""
    lines = []
    for path in sorted((ROOT / "results" / "speed").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if page == README:
            ratios = {row: speed.ratios(samples).get("s8lib") for row, samples in report["rows"].items()}
            cells = [(row, speed.number(statistics.median(found))) for row, found in ratios.items() if found]
            machine, precision = report["environment"], report["matrix_precision"]
            where = f"{machine['device_name']}, {machine['cpu_threads']} threads, {precision}"
            lines += ["", f"| beside a plain loop, {where} | times the loop |", "|---|---|", *map(_line, cells)]
        else:
            plot = f"![times the best loop of others](speed/{path.stem}.png)"
            lines += ["", f"## Speed: {path.stem}", "", speed.table(report), "", plot]
    return lines


def written(page: Path) -> str:
    """The text of `page` with the tables between its two marks brought up to date."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}, between which the tables go")
    return f"{before}{BEGIN}\n\n{tables(page)}\n\n{END}{after}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _measured(value: float | None, form: str, unit: str = "") -> str:
    return UNKNOWN if value is None else format(value, form) + unit


def main() -> int:
    for page in (README, RESULTS):
        page.write_text(written(page), encoding="utf-8")
    film = min((ROOT / "results").rglob("epoch_log.mov"))  # of which this is the last picture
    subprocess.run(
        [get_ffmpeg_exe(), "-v", "error", "-y", "-sseof", "-0.2", "-i", film, "-update", "1", POSTER], check=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
