"""The command line: `python -m s8lib train` and `evaluate`, in the vocabulary of the library."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from s8lib.checkpoint import RunError, RunFolder
from s8lib.data import Cifar100, DataError, load_cifar100
from s8lib.epoch_log import EpochLog
from s8lib.hardware import DeviceError, pick_device
from s8lib.metrics import Metrics, evaluate
from s8lib.models import build_model, load_model
from s8lib.recipe import PRESETS, Recipe, RecipeError
from s8lib.synthetic import synthetic_cifar100
from s8lib.trainer import NonFiniteLoss, train
from s8lib.weights import ModelError

DONE, FAULT, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is what a scheduler sends before it kills."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input, 1 fault, 130/143 interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # an epoch's line is there when the epoch is, in a file too
    try:
        options.command(options)
    except (RecipeError, ModelError, DataError, DeviceError, RunError) as error:
        return _say_error(error, BAD_INPUT)
    except (NonFiniteLoss, OSError) as error:
        return _say_error(error, FAULT)
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def _train(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    recipe = _recipe(options, "quick" if device.type == "cpu" else "seed-100")
    data = _data(options.data, may_stand_in=options.recipe is None and device.type == "cpu")
    model = build_model(recipe.model, len(data.classes), recipe.at(0).dropout, seed=recipe.seed)
    stand_in = "-synthetic" if data.source.startswith("synthetic") else ""
    run = options.run or Path("runs", f"{recipe.name}-{recipe.model}{stand_in}-seed{recipe.seed}")
    if os.environ.get("RANK", "0") == "0":
        print(f"run folder: {run}")
    train(
        recipe,
        model,
        data,
        run=RunFolder(run),
        device=device,
        precision=options.precision,
        compile=options.compile,
        deterministic=options.deterministic,
        holdout=options.holdout,
        sync_batchnorm=options.sync_batchnorm,
    )


def _evaluate(options: argparse.Namespace) -> None:
    data = _data(options.data)
    source: str | Path = options.model
    if options.run:
        run = RunFolder(options.run)
        best = run.best_weights()
        if best is None:
            raise RunError(f"{options.run} holds no finished epoch: train there first")
        epoch, source = best
        print(f"{options.run}: {EpochLog.read(run.path / 'epoch_log.csv').summary()}")
        print(f"measuring the best weights, epoch {epoch}")
    model = load_model(source)
    metrics = evaluate(model, data.test, pick_device(options.device), options.precision)
    print(f"{model.name} on the {metrics.n:,} test images of {data.source}")
    print(_table(metrics, data))
    if options.json:
        options.json.write_text(json.dumps(dataclasses.asdict(metrics), indent=2) + "\n", encoding="utf-8")


def _recipe(options: argparse.Namespace, default: str) -> Recipe:
    name = options.recipe or default
    if name in PRESETS:
        recipe = PRESETS[name]
    elif name.endswith(".json"):
        recipe = Recipe.load(name)
    else:
        raise RecipeError(f"there is no recipe {name!r}: use {', '.join(PRESETS)}, or a recipe.json")
    if options.epochs is not None:
        if options.epochs < 1:
            raise RecipeError(f"epochs = {options.epochs}: must be at least 1")
        recipe = recipe.stretched(options.epochs / recipe.epochs)
    settings = dict(options.set or [])
    settings |= {key: value for key in ("model", "seed") if (value := getattr(options, key)) is not None}
    return recipe.with_settings(settings)


def _data(where: str | None, may_stand_in: bool = False) -> Cifar100:
    if where == "synthetic":
        return synthetic_cifar100()
    try:
        return load_cifar100(where, download=where is None)
    except DataError as error:
        if where is not None or "S8_DATA" in os.environ or not may_stand_in:
            raise
        print(
            f"NOTE: CIFAR-100 cannot be had: {error}\n"
            "NOTE: training on the SYNTHETIC stand-in instead. It shows that everything works; its accuracy says "
            "nothing about CIFAR-100."
        )
        return synthetic_cifar100()


def _table(metrics: Metrics, data: Cifar100) -> str:
    low, high = metrics.top1_interval
    ranked = sorted(zip(metrics.per_class, data.classes, strict=True))
    worst = ", ".join(f"{name} {accuracy:.0f}%" for accuracy, name in ranked[:5])
    rows = {
        "top-1": f"{metrics.top1:.2f}%  (95% interval {low:.2f} to {high:.2f}%)",
        "top-5": f"{metrics.top5:.2f}%",
        "superclass top-1": f"{metrics.superclass_top1:.2f}%",
        "NLL": f"{metrics.loss:.4f} nats",
        "calibration error": f"{metrics.ece:.2f}%  (15 bins)",
        "worst classes": worst,
    }
    return "\n".join(f"  {name:<18}{value}" for name, value in rows.items())


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} should look like lr_peak=0.05 or dropout=0.3,0.2")
    values = [_primitive(part) for part in value.split(",")]
    return name, values[0] if len(values) == 1 else values


def _primitive(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m s8lib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--data", metavar="DIR|synthetic", help="CIFAR-100's folder; default $S8_DATA, the cache, or a download")
    add("--device", help="such as cuda, cuda:1, mps, cpu; default the best here")
    add("--precision", default="auto", help="auto, bf16, fp16 or fp32")

    command = commands.add_parser("train", parents=[common], help="train, or go on with, a run")
    add = command.add_argument
    add("--recipe", metavar="NAME|FILE", help=f"{', '.join(PRESETS)} or a recipe.json; default by device")
    add("--model", help="wrn-28-10, resnet-42 or any wrn-D-K; default the recipe's")
    add("--run", type=Path, metavar="DIR", help="the run's folder; default runs/RECIPE-MODEL-seedN")
    add("--epochs", type=int, metavar="N", help="stretch or shorten the whole recipe to N epochs")
    add("--seed", type=int, metavar="N", help="of weights, data order and noise; default the recipe's")
    add("--set", type=_setting, action="append", metavar="KEY=VALUE", help="any field of the recipe")
    add("--holdout", type=int, default=0, metavar="N", help="choose the best epoch on N held-out training images")
    add("--compile", default="auto", help="torch.compile: auto, on or off")
    add("--deterministic", action="store_true", help="equal runs are equal to the bit on a GPU too; slower")
    add("--sync-batchnorm", action="store_true", help="normalise over all ranks' images; several GPUs only")
    command.set_defaults(command=_train)

    command = commands.add_parser("evaluate", parents=[common], help="measure saved weights on the test set")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, metavar="DIR", help="a run's folder: its best weights")
    source.add_argument("--model", metavar="DIR|USER/NAME", help="a saved model, or one on the Hub")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write every number here")
    command.set_defaults(command=_evaluate)
    return parser


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _say_error(error: Exception, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":  # every rank finds the same error
        print(f"error: {error}", file=sys.stderr)
    return code
