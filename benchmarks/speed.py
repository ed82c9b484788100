"""How fast s8lib is beside a loop as other repositories write it: `python -m benchmarks.speed --json FILE`.

Every variant of a row is measured in a process of its own (measure.py), the variants take turns, round by round,
and a ratio is of neighbours in time: median and quartiles over the rounds. What fails, for want of memory or of a
library, is told, and the rest goes on. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkout import ROOT, commit_of_checkout
from benchmarks.performance import matrix_rate, training_flops
from s8lib.machine.device import environment, pick_device, pick_precision

Report = dict[str, Any]
PEER = "plain"  # begins the name of what s8lib is measured against
LIMIT = 1800  # seconds that one measurement may take
SCALING: dict[str, dict[str, list[Any]]] = {
    "batch": {"batch_size": [16, 32, 64, 128, 256, 512]},
    "depth": {"model": ["wrn-10-2", "wrn-16-2", "wrn-22-2", "wrn-28-2", "wrn-40-2"]},
    "width": {"model": ["wrn-16-1", "wrn-16-2", "wrn-16-4", "wrn-16-8"]},
    "ranks": {"ranks": [1, 2]},
}


def rows(on_gpu: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """Row, variant, and what `benchmarks.measure` is told of it. Higher is better but where a row says seconds."""
    workers = {f"{PEER}, {n} workers": {"loop": "plain", "workers": n} for n in {0, 2, os.cpu_count() or 1}}
    ours: dict[str, dict[str, Any]] = {"s8lib": {}}
    if on_gpu:
        ours = {
            f"s8lib, {p}, compile {c}": {"precision": p, "compile": c}
            for p in ("bf16", "fp16")
            for c in ("on", "off")
        }
    half = pick_precision(torch.device("cuda" if on_gpu else "cpu"))
    two = {f"{PEER}, 2 workers": {"loop": "plain", "workers": 2}}
    if half != "fp32":
        workers[f"{PEER}, 2 workers, {half}"] = two[f"{PEER}, 2 workers"] | {"precision": half}
    tricks: dict[str, dict[str, Any]] = {  # that a CPU needs: each is left out in a variant of its own
        "s8lib, torch's masks": {"without": "masks"},
        "s8lib, memory given back": {"without": "memory"},
        "s8lib, threads that spin": {"without": "threads"},
    }
    if on_gpu:
        tricks = {}
    batch = 256 if on_gpu else 32
    small = {"what": "step", "model": "wrn-16-2", "batch_size": 128}
    large = {"what": "step", "model": "wrn-28-10", "batch_size": batch, "steps": 0 if on_gpu else 2}
    quick = {"what": "step", "model": "resnet-11", "batch_size": 512}
    torchs = {} if on_gpu else {"s8lib, torch's convolutions": {"without": "convolutions"}}
    found = {
        "step of wrn-16-2, batch 128": {
            name: small | variant for name, variant in (workers | ours | tricks).items()
        },
        f"step of wrn-28-10, batch {batch}": {name: large | variant for name, variant in (two | ours).items()},
        "step of resnet-11, batch 512": {name: quick | variant for name, variant in (two | ours | torchs).items()},
        "step of wrn-16-2 beside a busy process": {
            name: small | variant | {"busy": 1} for name, variant in (two | ours | tricks).items()
        },
    }
    for what in ("augmentation", "evaluation", "epoch"):
        found[what] = {loop: {"what": what, "model": "wrn-16-2", "loop": loop} for loop in (PEER, "s8lib")}
    found["save of wrn-28-10, seconds that training waits"] = {
        loop: {"what": "save", "model": "wrn-28-10", "loop": loop}
        for loop in (PEER, "s8lib", "s8lib, on the disk")
    }
    found["seconds from the start"] = {
        name: {"what": "start", "model": "wrn-16-2", "resume": resume, "compile": "on" if on_gpu else "off"}
        for name, resume in (("to the first step", False), ("to the first step of a resumed run", True))
    }
    if on_gpu:
        found["seconds of compiling wrn-28-10"] = {
            name: {"what": "compiling", "model": "wrn-28-10", "batch_size": batch, "phases": phases}
            for name, phases in (("one phase", 1), ("both phases", 2))
        }
    return found


def measure(variant: Mapping[str, Any], device: str) -> Report:
    """What a process of its own measures: `value` and `memory_gib`, or `error`."""
    told = json.dumps({"device": device, **variant})
    ours = variant.get("loop") != PEER and variant.get("without") != "threads"
    asleep = {"OMP_WAIT_POLICY": "PASSIVE"} if ours else {}  # as the command line sets it
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.measure", told],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=asleep | os.environ,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done in {LIMIT} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ratios(row: Mapping[str, Sequence[Report]]) -> dict[str, list[float]]:
    """For each variant its values over those of the best peer (by median), round by round; all over 1 is more."""
    values = {name: [sample["value"] for sample in samples if "value" in sample] for name, samples in row.items()}
    peers = {name: statistics.median(found) for name, found in values.items() if name.startswith(PEER) and found}
    if not peers:
        return {}
    base = values[max(peers, key=lambda name: peers[name])]
    return {name: [a / b for a, b in zip(found, base, strict=False)] for name, found in values.items() if found}


def table(report: Report) -> str:
    """Markdown, one line a variant."""
    machine, rate = report["environment"], report["matrix_flops_per_s"]
    lines = [
        f"{machine['device_name']}, torch {machine['torch']}, {report['rounds']} rounds; 100% MFU is "
        f"{rate / 1e12:.2f} TFLOP/s, measured in {report['matrix_precision']} matrix products.",
        "",
        "| row | variant | images/s, median (quartiles) | times the best peer (quartiles) | peak memory |",
        "|---|---|---|---|---|",
    ]
    for title, row in report["rows"].items():
        compared = ratios(row)
        for name, samples in row.items():
            values = [sample["value"] for sample in samples if "value" in sample]
            memory = max((sample.get("memory_gib", 0) for sample in samples), default=0)
            cells = [title, name, spread(values) or samples[0]["error"], spread(compared.get(name, [])) or "-"]
            lines.append(f"| {' | '.join([*cells, f'{memory:.2f} GiB' if memory else '-'])} |")
    lines += ["", "| scaling | images/s | MFU | peak memory |", "|---|---|---|---|"]
    for name, (variant, sample) in report["scaling"].items():
        if "error" in sample:
            lines.append(f"| {name} | {sample['error']} | - | - |")
        else:
            mfu = sample["value"] * training_flops(variant["model"]) / rate
            lines.append(f"| {name} | {sample['value']:,.0f} | {mfu:.1%} | {sample['memory_gib']:.2f} GiB |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Median, and in brackets the quartiles; "" for nothing."""
    if len(values) < 2:
        return "".join(number(value) for value in values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{number(middle)} ({number(low)} to {number(high)})"


def number(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(report: Report, path: Path) -> None:
    """Ratios as bars with their quartiles, and images/s against what is scaled."""
    from matplotlib.figure import Figure

    bars = {
        f"{title}\n{name}": found
        for title, row in report["rows"].items()
        for name, found in ratios(row).items()
        if not name.startswith(PEER)
    }
    rates = {name: sample["value"] for name, (_, sample) in report["scaling"].items() if "value" in sample}
    figure = Figure(figsize=(14, 1.5 + 0.4 * max(len(bars), len(rates))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for at, (label, found) in enumerate(bars.items()):
        low, middle, high = statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else found * 3
        colour = "tab:orange" if "seconds" in label else "tab:blue"
        left.barh(at, middle, xerr=[[middle - low], [high - middle]], color=colour, capsize=3)
        left.text(high, at, f"  {middle:.2f}", va="center")
    left.set(
        yticks=range(len(bars)),
        yticklabels=list(bars),
        xlabel="times the best loop of others (blue: more is better; orange, seconds: less is better)",
    )
    left.axvline(1, color="black", linewidth=1)
    right.bar_label(right.barh(list(rates), list(rates.values())), fmt=" %.0f")
    right.set_xlabel("images/s, trained")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.margins(x=0.12)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rows", nargs="+", default=[""], metavar="WORD", help="only rows whose titles hold a word"
    )
    parser.add_argument("--scaling", action="store_true", help="batch, depth, width and ranks too")
    parser.add_argument("--device", help="such as cuda, cpu; default the best here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample; a plot goes beside it")
    options = parser.parse_args(arguments)
    device = pick_device(options.device)
    precision, rate = matrix_rate(device)
    report: Report = {
        "commit": commit_of_checkout(),
        "environment": environment(device),
        "matrix_precision": precision,
        "matrix_flops_per_s": rate,
        "rounds": options.rounds,
        "rows": {},
        "scaling": {},
    }
    for title, variants in rows(device.type == "cuda").items():
        if any(word in title for word in options.rows):
            taken: dict[str, list[Report]] = {name: [] for name in variants}
            for _, name in itertools.product(range(options.rounds), variants):
                if not any("error" in sample for sample in taken[name]):
                    taken[name].append(measure(variants[name], str(device)))
            report["rows"][title] = taken
            print(f"{title}: {'; '.join(f'{n} {spread(r)}' for n, r in ratios(taken).items())}", flush=True)
            _write(report, options.json)
    for kind, values in SCALING.items() if options.scaling else ():
        ((field, points),) = values.items()
        for point in points:
            variant = {"what": "step", "model": "wrn-16-2", "batch_size": 128, field: point}
            where = device.type if kind == "ranks" else str(device)  # each rank takes a GPU of its own
            report["scaling"][f"{kind} {point}"] = variant, measure(variant, where)
            _write(report, options.json)
    print(f"\n{table(report)}")
    if options.json:
        plot(report, options.json.with_suffix(".png"))
    return 0


def _write(report: Report, path: Path | None) -> None:
    if path:  # after every row: half a table is better than none
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
