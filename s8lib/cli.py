"""The command line: `python -m s8lib train`, `evaluate`, `report`, `publish`, in the library's vocabulary."""

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

import torch

from s8lib.data.cifar100 import Cifar100, DataError, load_cifar100
from s8lib.data.synthetic import choose_data
from s8lib.defaults import choose_recipe, run_name
from s8lib.machine.device import DeviceError, pick_device
from s8lib.metrics import evaluate
from s8lib.models.networks import build_model, load_model
from s8lib.models.weights import ModelError
from s8lib.presets import PRESETS
from s8lib.publish.publisher import UPLOAD_LIMIT, HubError, HubPublisher
from s8lib.recipe import Recipe, RecipeError
from s8lib.run.folder import RunError, RunFolder
from s8lib.trainer import NonFiniteLoss, train

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
    except (RecipeError, ModelError, DataError, DeviceError, RunError, HubError) as error:
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
    recipe = _recipe(options, device)
    data = choose_data(options.data, may_stand_in=options.recipe == "auto" and device.type == "cpu")
    model = build_model(recipe.model, len(data.classes), recipe.at(0).dropout, seed=recipe.seed)
    run, hub = RunFolder(options.run or Path("runs", run_name(recipe, data))), None
    if os.environ.get("RANK", "0") == "0":
        print(f"run folder: {run.path}")
        if options.hub_repo:
            hub = HubPublisher(options.hub_repo, private=options.hub_private)
    train(
        recipe,
        model,
        data,
        run=run,
        hub=hub,
        device=device,
        precision=options.precision,
        compile=options.compile,
        deterministic=options.deterministic,
        holdout=options.holdout,
        sync_batchnorm=options.sync_batchnorm,
    )


def _recipe(options: argparse.Namespace, device: torch.device) -> Recipe:
    chosen = choose_recipe(
        options.recipe, model=options.model, seed=options.seed, epochs=options.epochs, device=device
    )
    return chosen.with_settings(dict(options.set or []))


def _evaluate(options: argparse.Namespace) -> None:
    data = choose_data(options.data)
    source: str | Path = options.model
    if options.run:
        run = RunFolder(options.run)
        run.refuse_other_data(data)
        epoch, source = run.best_weights()
        print(f"{options.run}: {run.log().summary()}")
        print(f"measuring the best weights, epoch {epoch}")
    model = load_model(source)
    metrics = evaluate(model, data.test, pick_device(options.device), options.precision)
    print(f"{model.name} on the {metrics.n:,} test images of {data.source}")
    print(metrics.table(data.classes))
    if options.json:
        options.json.write_text(json.dumps(dataclasses.asdict(metrics), indent=2) + "\n", encoding="utf-8")


def _report(options: argparse.Namespace) -> None:
    from s8lib import report  # here: matplotlib is slow to load

    run = RunFolder(options.run)
    data = choose_data(options.data) if options.data else _data_at_hand(run)
    report.write(
        run,
        data,
        target=options.target,
        film=not options.no_video,
        device=pick_device(options.device),
        precision=options.precision,
    )
    print(report.contents(run))


def _data_at_hand(run: RunFolder) -> Cifar100 | None:
    """What the run was trained on, if that can be had without being named and without a download."""
    try:
        data = load_cifar100(download=False)
        run.refuse_other_data(data)
    except (DataError, RunError) as error:
        print(f"without --data nothing is measured and no images are shown: {error}")
        return None
    return data


def _publish(options: argparse.Namespace) -> None:
    HubPublisher(options.hub_repo, private=options.hub_private, wait=UPLOAD_LIMIT).publish(RunFolder(options.run))


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
    add("--recipe", default="auto", metavar="NAME|FILE", help=f"auto, {', '.join(PRESETS)} or a recipe.json")
    add("--model", help="wrn-28-10, resnet-42 or any wrn-D-K; default the recipe's")
    add("--run", type=Path, metavar="DIR", help="the run's folder; default runs/RECIPE-MODEL-seedN")
    add("--epochs", type=int, metavar="N", help="stretch or shorten the whole recipe to N epochs")
    add("--seed", type=int, metavar="N", help="of weights, data order and noise; default the recipe's")
    add("--set", type=_setting, action="append", metavar="KEY=VALUE", help="any field of the recipe")
    add("--holdout", type=int, default=0, metavar="N", help="choose the best epoch on N held-out training images")
    add("--compile", default="auto", help="torch.compile: auto, on or off")
    add("--deterministic", action="store_true", help="equal runs are equal to the bit on a GPU too; slower")
    add("--sync-batchnorm", action="store_true", help="normalise over all ranks' images; several GPUs only")
    add("--hub-repo", metavar="USER/NAME", help="publish there; an empty run folder goes on from what it holds")
    add("--hub-private", action="store_true", help="if that repository has to be made, make it private")
    command.set_defaults(command=_train)

    command = commands.add_parser("evaluate", parents=[common], help="measure saved weights on the test set")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, metavar="DIR", help="a run's folder: its best weights")
    source.add_argument("--model", metavar="DIR|USER/NAME", help="a saved model, or one on the Hub")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write every number here")
    command.set_defaults(command=_evaluate)

    command = commands.add_parser("report", parents=[common], help="draw, film and tabulate what a run left")
    add = command.add_argument
    add("--run", type=Path, metavar="DIR", required=True, help="the run's folder; everything is written there")
    add("--target", type=float, metavar="PERCENT", help="a test accuracy to draw as a line")
    add("--no-video", action="store_true", help="leave out epoch_log.mov")
    command.set_defaults(command=_report)

    command = commands.add_parser("publish", help="send what a run holds to the Hugging Face Hub")
    command.add_argument("--run", type=Path, metavar="DIR", required=True, help="the run's folder")
    command.add_argument("--hub-repo", metavar="USER/NAME", required=True, help="the repository; made if need be")
    command.add_argument("--hub-private", action="store_true", help="if it has to be made, make it private")
    command.set_defaults(command=_publish)
    return parser


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _say_error(error: Exception, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":  # every rank finds the same error
        print(f"error: {error}", file=sys.stderr)
    return code
