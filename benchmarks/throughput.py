"""Where the time of a training step goes: `python -m benchmarks.throughput`.

SEED_100's step as the trainer runs it (augmentation, MixUp and optimizer included) for precision x memory layout x
compiler, beside a loop as other repositories write it. All loops are built first and then take turns, so a device
that slows down slows all of them, and a ratio compares neighbours in time. Prints tables; writes only --json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
from torch._inductor.utils import fresh_cache

import s8lib as s8
from benchmarks.checkout import commit_of_checkout
from benchmarks.performance import matrix_rate, training_flops
from benchmarks.plain_loop import WARM_UP, PlainLoop
from benchmarks.trainer_loop import TrainerLoop
from s8lib.machine.device import PRECISIONS, deterministic_algorithms, environment, pick_device, pick_precision


@dataclass
class Variant:
    """A row of the table; `samples` are images/s, one a round."""

    loop: str
    precision: str
    layout: str
    compiled: bool
    compile_seconds: float | None = None
    peak_memory_gib: float | None = None
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def compare(
    recipe: s8.Recipe,
    device: torch.device,
    *,
    steps: int,
    rounds: int,
    precisions: Sequence[str],
    compiling: Sequence[bool],
) -> list[Variant]:
    """Time every loop in `rounds` rounds of `steps` steps each, after at least one that does not count."""
    train_set = s8.synthetic_cifar100(train=(WARM_UP + steps) * recipe.batch_size).train
    built: list[tuple[Variant, PlainLoop | TrainerLoop]] = []
    with (
        deterministic_algorithms(False),  # as in training: cuDNN chooses its algorithms by trying them
        torch._dynamo.config.patch(recompile_limit=64),  # each variant is one more compilation of one function
        fresh_cache(),  # compile seconds are those of a first run
    ):
        taken = _allocated(device)
        for variant, loop in _loops(recipe, train_set, steps, device, precisions, compiling):
            loop.images_per_s()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                loop.images_per_s()
                variant.peak_memory_gib = (torch.cuda.max_memory_allocated(device) - taken) / 2**30
            taken = _allocated(device)
            built.append((variant, loop))
        for _ in range(rounds):
            for variant, loop in built:
                variant.samples.append(loop.images_per_s())
    torch._dynamo.reset()
    return [variant for variant, _ in built]


def _loops(
    recipe: s8.Recipe,
    train_set: s8.Split,
    steps: int,
    device: torch.device,
    precisions: Sequence[str],
    compiling: Sequence[bool],
) -> Iterator[tuple[Variant, PlainLoop | TrainerLoop]]:
    for precision in plain_precisions(device):
        yield Variant("plain", precision, "NCHW", False), PlainLoop(recipe, train_set, steps, device, precision)
    there = train_set.to(device)
    for precision, channels_last, compiled in itertools.product(precisions, (False, True), compiling):
        loop = TrainerLoop(recipe, there, steps, device, precision, channels_last, compiled)
        layout = "channels last" if channels_last else "NCHW"
        yield Variant("s8lib", precision, layout, compiled, loop.compile_seconds), loop


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def plain_precisions(device: torch.device) -> list[str]:
    """What others train in: fp32, and autocast to fp16 on a GPU, to bf16 on a CPU that computes in it."""
    return list(dict.fromkeys(["fp32", "fp16" if device.type == "cuda" else pick_precision(device)]))


def ratios(variants: Sequence[Variant]) -> list[list[float]]:
    """For each variant, images/s over those of the faster plain loop (by median), round by round."""
    base = max((variant for variant in variants if variant.loop == "plain"), key=lambda variant: variant.median)
    return [[a / b for a, b in zip(variant.samples, base.samples, strict=True)] for variant in variants]


def table(variants: Sequence[Variant], flops: int, rate: float) -> str:
    """Markdown: medians over the rounds, in brackets the smallest and the largest."""
    lines = [
        "| loop | precision | layout | compiler | images/s | times plain | MFU | peak memory | compiling |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, ratio in zip(variants, ratios(variants), strict=True):
        cells = [
            variant.loop,
            variant.precision,
            variant.layout,
            "on" if variant.compiled else "off",
            _spread(variant.samples, ",.0f"),
            _spread(ratio, ".2f"),
            f"{100 * variant.median * flops / rate:.1f}%",
            "-" if variant.peak_memory_gib is None else f"{variant.peak_memory_gib:.2f} GiB",
            "-" if variant.compile_seconds is None else f"{variant.compile_seconds:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], form: str) -> str:
    median, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} to {high})"


def described(report: dict[str, Any], name: str) -> str:
    """Markdown: what a report, as --json has it, says of one network."""
    rate, found = report["matrix_flops_per_s"], report["networks"][name]
    variants = [Variant(**variant) for variant in found["variants"]]
    rounds, steps, batch_size = len(variants[0].samples), report["steps"], report["batch_size"]
    lines = [
        f"{name}: median (and range) of {rounds} rounds of {steps} steps of {batch_size} images",
        "",
        table(variants, training_flops(name), rate),
    ]
    if "epoch" in found:
        spent = (f"{found['epoch'][f'{what}_seconds']:.2f} s to {what}" for what in ("train", "evaluate", "save"))
        speed = f"{found['epoch']['images_per_s']:,.0f} images/s"
        lines += ["", f"The second epoch of `s8.train` with a run folder: {', '.join(spent)}; {speed}."]
    return "\n".join(lines)


def described_machine(report: dict[str, Any]) -> str:
    """What a report was measured on, and what its MFU is of."""
    machine, rate = report["environment"], report["matrix_flops_per_s"]
    return (
        f"{machine['device_name']}, torch {machine['torch']}; 100% MFU is {rate / 1e12:.2f} TFLOP/s, measured in "
        f"{report['matrix_precision']} matrix products"
    )


def whole_epoch(recipe: s8.Recipe, images: int, device: torch.device) -> dict[str, float]:
    """What an epoch of `s8.train` with a run folder spends its seconds on: the second of two epochs."""
    two = dataclasses.replace(recipe, epochs=2, phase1_epochs=2, warmup_epochs=0)
    data = s8.synthetic_cifar100(train=images, test=max(1, images // 5))
    model = s8.build_model(two.model, dropout=two.at(0).dropout, seed=two.seed)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = s8.RunFolder(folder, say=lambda line: None)
        log = s8.train(
            two, model, data, run, device=device, watch=lambda _: ends.append(time.perf_counter()), say=run.say
        )
    train = images // two.batch_size * two.batch_size / log[-1].images_per_s
    return {
        "images_per_s": log[-1].images_per_s,
        "train_seconds": train,
        "evaluate_seconds": log[-1].seconds - train,
        "save_seconds": ends[1] - ends[0] - log[-1].seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    device = pick_device(options.device)
    on_gpu = device.type != "cpu"
    models = options.models or (["wrn-28-10", "resnet-42"] if on_gpu else ["wrn-16-2"])
    batch_size = options.batch_size or (s8.SEED_100.batch_size if on_gpu else 64)
    steps = options.steps or (20 if on_gpu else 4)
    precisions = options.precisions or list(dict.fromkeys([pick_precision(device), *plain_precisions(device)]))
    compiling = {"both": (False, True), "on": (True,), "off": (False,)}[
        options.compile or ("both" if on_gpu else "off")
    ]
    matrix_precision, rate = matrix_rate(device)
    report: dict[str, Any] = {
        "commit": commit_of_checkout(),
        "environment": environment(device),
        "matrix_precision": matrix_precision,
        "matrix_flops_per_s": rate,
        "batch_size": batch_size,
        "steps": steps,
        "networks": {},
    }
    print(described_machine(report))
    for name in models:
        recipe = dataclasses.replace(s8.SEED_100, model=name, batch_size=batch_size)
        variants = compare(
            recipe, device, steps=steps, rounds=options.rounds, precisions=precisions, compiling=compiling
        )
        found: dict[str, Any] = {"variants": [dataclasses.asdict(variant) for variant in variants]}
        if options.epoch:
            found["epoch"] = whole_epoch(recipe, options.epoch, device)
        report["networks"][name] = found
        print(f"\n{described(report, name)}")
        if options.json:  # after every network: half a table is better than none
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", metavar="NAME", help="default wrn-28-10 and resnet-42; on a CPU wrn-16-2")
    add("--precisions", nargs="+", choices=PRECISIONS, help="default fp32 and what this device is fast in")
    add("--compile", choices=("both", "on", "off"), help="default both; on a CPU off, as it takes a minute")
    add("--batch-size", type=int, metavar="N", help="default 256; on a CPU 64")
    add("--steps", type=int, metavar="N", help="of every loop in a round; default 20, on a CPU 4")
    add("--rounds", type=int, default=5, metavar="N", help="default 5")
    add("--epoch", type=int, metavar="IMAGES", help="also take apart an epoch of s8.train on so many images")
    add("--device", help="such as cuda, cpu; default the best here")
    add("--json", type=Path, metavar="FILE", help="every sample, and what it was measured on")
    return parser


if __name__ == "__main__":
    sys.exit(main())
