"""Train, keep and publish a WideResNet on CIFAR-100. `s8lib COMMAND --help` tells more of each command."""

import argparse
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import s8lib as s8  # whose names load torch when they are first used: seconds that --help need not take
from s8lib.presets import PRESETS, choose_recipe, run_name
from s8lib.validation import BadInput, user_path

if TYPE_CHECKING:
    from s8lib.models.networks import Network
    from s8lib.report.card import Export

FIRST_STEPS = "first steps: `s8lib train --run runs/first`, then `s8lib predict --run runs/first photo.jpg`"
KINDS = ("onnx", "program")  # of exports
DONE, FAULT, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is what a scheduler sends before it kills."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input, 1 fault, 130/143 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An epoch's line is there when the epoch is, in a file too, and no letter of a name ends a run.
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    options = _parser().parse_args(arguments if arguments or sys.argv[1:] else ["--help"])
    own = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys()
    if "torch" not in sys.modules and not own:
        # Threads that wait for each other sleep: spinning, they starve beside any other busy process.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if "device" in options:
            from s8lib.machine.device import pick_device  # here: it loads torch

            options.device = pick_device(options.device)
        options.command(options)
    except (BadInput, s8.RunFault, OSError, ImportError) as error:  # ImportError: an extra, such as gradio
        # Every rank of a node finds the same, but for its GPU and what ended it alone, such as that GPU's memory.
        alone = isinstance(error, s8.DeviceError) or (isinstance(error, s8.RunFault) and error.__cause__)
        if os.environ.get("LOCAL_RANK", "0") == "0" or alone:
            print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, BadInput | ImportError) else FAULT
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def _train(options: argparse.Namespace) -> None:
    recipe, device = _recipe(options), options.device
    network = partial(s8.build_model, recipe.model, dropout=recipe.at(0).dropout, seed=recipe.seed)
    network()  # what is mistyped or missing, on the Hub too, is told before the data, which may be a download
    hub = None
    if options.hub_repo is not None and _is_first_rank():
        hub = s8.HubPublisher(options.hub_repo, private=options.hub_private, overwrite=options.overwrite)
    there = options.run and s8.RunFolder(options.run)
    if there and there.data_fingerprint:
        data = s8.data_of(there, options.data)
    else:
        data = s8.choose_data(options.data, may_stand_in=options.recipe == "auto" and device.type == "cpu")
    model = network(len(data.classes))
    run = there or s8.RunFolder(Path("runs", run_name(recipe, data)))
    if _is_first_rank():
        print(f"run folder: {run.path}")
    passed_on = ("precision", "compile", "deterministic", "holdout", "sync_batchnorm")
    s8.train(recipe, model, data, run, hub, device, **{name: getattr(options, name) for name in passed_on})


def _recipe(options: argparse.Namespace) -> s8.Recipe:
    named = {name: getattr(options, name) for name in ("model", "seed", "epochs", "device")}
    return choose_recipe(options.recipe, **named).with_settings(dict(map(_setting, options.set)))


def _evaluate(options: argparse.Namespace) -> None:
    # What may be a download comes last: the data that no option names, or the weights of a repository.
    named = s8.choose_data(options.data) if options.model and options.data is not None else None
    model = _network(options)
    data = named or (s8.data_of(s8.RunFolder(options.run), options.data) if options.run else s8.choose_data())
    trained_on = {*model.class_names}
    model.name_classes(data.classes)  # ModelError, if these are not as many as it has
    if trained_on and (others := trained_on ^ {*data.classes}):
        raise s8.ModelError(f"{data.source} has other classes than {model.name} knows, such as {min(others)!r}")
    metrics = s8.evaluate(model, data.test, options.device, options.precision, flips=options.flips)
    views = ", each averaged with its mirror image, which adds about a point" if options.flips else ""
    print(f"{model.name} on the {metrics.n:,} test images of {data.source}{views}")
    print(metrics.table(data.classes))


def _network(options: argparse.Namespace) -> "Network":
    """What `--model` names, or the best weights of `--run`."""
    if not options.run:
        return s8.load_model(options.model)
    run = s8.RunFolder(options.run)
    epoch, weights = run.best_weights()
    print(f"{options.run}: {run.log().summary()}\nthese are the best weights, of epoch {epoch}")
    return s8.load_model(weights)


def _predict(options: argparse.Namespace) -> None:
    from s8lib.data.pictures import prepare  # here: it loads torch

    images = prepare(options.pictures)  # before the weights, which may be a download
    for picture, guesses in zip(options.pictures, s8.predict(_network(options), images), strict=True):
        names = ", ".join(f"{guess.name.replace('_', ' ')} {guess.probability:.0%}" for guess in guesses)
        print(f"{picture}: {names}")


def _export(options: argparse.Namespace) -> None:
    if "onnx" in options.to:
        s8.publish.need("exporting to ONNX")  # before the weights, which may be a download
    for export in _exports(_network(options), options.to, options.out):
        print(export.path)


def _exports(model: "Network", kinds: Sequence[str], folder: Path) -> "Iterator[Export]":
    from s8lib.publish.export import export_onnx, export_program

    folder.mkdir(parents=True, exist_ok=True)
    if "onnx" in kinds:
        yield export_onnx(model, folder / "model.onnx")
    if "program" in kinds:
        yield export_program(model, folder / "model.pt2")


def _demo(options: argparse.Namespace) -> None:
    from s8lib.publish.demo import build_demo

    s8.publish.need("the demo")  # before the weights, which may be a download
    build_demo(_network(options)).launch(inbrowser=True)


def _checks(options: argparse.Namespace) -> None:
    s8.colab.checks()


def _report(options: argparse.Namespace) -> None:
    run, measuring = s8.RunFolder(options.run), {"device": options.device, "precision": options.precision}
    summary = run.log().summary()  # before the data: there may be no run
    try:
        data = s8.data_of(run, options.data, download=False)
    except (s8.DataError, s8.RunError) as error:
        if options.data:
            raise
        print(f"without --data nothing is measured and no images are shown: {error}")
        data = None
    s8.report.write(run, data, target=options.target, film=not options.no_video, **measuring)
    print(s8.report.contents(run))
    print(summary)


def _publish(options: argparse.Namespace) -> None:
    run = s8.RunFolder(options.run)
    weights = run.best_weights()[1]  # before the Hub is asked: there may be no run
    told = {"private": options.hub_private, "overwrite": options.overwrite, "license": options.license}
    hub = s8.HubPublisher(options.hub_repo, **told)
    exports = _exports(s8.load_model(weights), options.export, run.path) if options.export else ()
    hub.publish(run, [*exports])


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise s8.RecipeError(f"--set {text}: should look like lr_peak=0.05 or dropout=0.3,0.2")
    if re.fullmatch("0,0*[1-9][0-9]*", value):
        raise s8.RecipeError(f"--set {text}: a decimal comma? Write {value.replace(',', '.')}, or 0.0,... for two")
    values = [_primitive(part) for part in value.split(",")]
    return name, values[0] if len(values) == 1 else values


def _primitive(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _named(text: str) -> Path:
    if not text:  # an unset variable of the shell; as a path it would be the working folder
        raise argparse.ArgumentTypeError("names nothing")
    return user_path(text)


def _kinds(text: str) -> list[str]:
    if strangers := {*text.split(",")} - {*KINDS}:
        raise argparse.ArgumentTypeError(f"{', '.join(strangers)}: write {', '.join(KINDS)} or {','.join(KINDS)}")
    return text.split(",")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s8lib", description=__doc__, epilog=FIRST_STEPS)
    parser.add_argument("--version", action="version", version=f"s8lib {s8.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(does: Callable[[argparse.Namespace], None], what: str, *parents: argparse.ArgumentParser) -> Any:
        """Add what `does` is named for; `what` it does is told in the list of all and on top of its own help."""
        name, description = does.__name__.removeprefix("_"), f"{what[0].upper()}{what[1:]}."
        added = commands.add_parser(name, parents=parents, help=what, description=description)
        added.set_defaults(command=does)
        return added.add_argument

    common, weights, run = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    add = common.add_argument
    add(
        "--data",
        metavar="DIR|synthetic",
        help="CIFAR-100's folder, or train/CLASS/ and test/CLASS/ of your own; "
        "default the run's own, $S8_DATA, the cache, or (not for a report) a download",
    )
    add("--device", help="such as cuda, cuda:1, mps, cpu; default $S8_DEVICE, or the best here")
    add("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="default the best here")
    add = weights.add_mutually_exclusive_group(required=True).add_argument
    add("--run", type=_named, metavar="DIR", help="a run's folder: its best weights")
    add("--model", metavar="DIR|USER/NAME", help="a saved model, such as a run's best/, or one on the Hub")
    run.add_argument("--run", type=_named, metavar="DIR", required=True, help="the run's folder")

    add = train = command(_train, "train a run, or go on with it", common)
    add("--recipe", default="auto", metavar="NAME|FILE", help=f"auto, {', '.join(PRESETS)} or a recipe.json")
    add("--model", help="wrn-28-10, resnet-42, resnet-11 or any wrn-D-K; default the recipe's")
    add("--run", type=_named, metavar="DIR", help="the run's folder; default runs/RECIPE-MODEL[-DATA]-seedN")
    add("--epochs", type=int, metavar="N", help="stretch or shorten the whole recipe to N epochs")
    add("--seed", type=int, metavar="N", help="of weights, data order and noise; default the recipe's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any field of the recipe; repeatable")
    add("--holdout", type=int, default=0, metavar="N", help="choose the best epoch on N held-out training images")
    add("--compile", default="auto", choices=("auto", "on", "off"), help="torch.compile; auto: on most GPUs")
    add("--deterministic", action="store_true", help="equal runs are equal to the bit on a GPU too; slower")
    add("--sync-batchnorm", action="store_true", help="normalise over all ranks' images; several GPUs only")
    add("--hub-repo", metavar="USER/NAME", help="publish there; an empty run folder goes on from what it holds")

    add = command(_evaluate, "measure weights on test images", common, weights)
    add("--flips", action="store_true", help="average each image's answer with its mirror's")

    add = command(_report, "draw, film and tabulate what a run left", common, run)
    add("--target", type=float, metavar="PERCENT", help="a test accuracy to draw as a line")
    add("--no-video", action="store_true", help="leave out epoch_log.mov")

    add = command(_predict, "say what is on pictures", weights)
    add("pictures", nargs="+", metavar="PICTURE", help="image files of any size")

    add = command(_export, "write weights as ONNX and torch.export", weights)
    add("--to", nargs="+", choices=KINDS, default=KINDS, help="model.onnx, model.pt2; default both")
    add("--out", type=_named, default=Path(), metavar="DIR", help="default: here")

    command(_demo, "open a page to try weights on (gradio)", weights)
    command(_checks, "say what this machine can do")

    add = publish = command(_publish, "send what a run holds to the Hugging Face Hub", run)
    add("--hub-repo", metavar="USER/NAME", required=True, help="the repository; made if need be")
    add("--license", metavar="NAME", help="of the weights; default what the card says, or mit")
    add("--export", type=_kinds, default=(), metavar=",".join(KINDS), help="with model.onnx, model.pt2, or both")
    for add in (train, publish):
        add("--hub-private", action="store_true", help="if that repository has to be made, make it private")
        add("--overwrite", action="store_true", help="replace what that repository holds, whosever it is")
    return parser


def _terminate(*signal_and_frame: object) -> None:
    raise Terminated


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
