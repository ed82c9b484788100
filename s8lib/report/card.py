"""The model card: README.md of a published run, made anew from what the run left on disk.

Its text is the Jinja template `card.md`, beside this file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from s8lib.data.augment import MEAN, SIDE, STD
from s8lib.data.cifar100 import CIFAR100_FINGERPRINT, CLASSES
from s8lib.data.pictures import PREPARATION
from s8lib.metrics import wilson_interval
from s8lib.models.network import Config, names_in
from s8lib.models.weights import CONFIG, ModelError
from s8lib.recipe import Recipe
from s8lib.run.folder import RunFolder
from s8lib.run.log import Epoch, EpochLog
from s8lib.validation import read_json

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Export:
    """The network in a file of another format, and how far that file's logits were from the network's.

    `verified_with` and `max_abs_difference` are None where nothing was there to run it.
    """

    path: Path
    format: str
    versions: dict[str, str]  # of the packages that made it
    verified_with: str | None
    max_abs_difference: float | None
    opset: int | None = None  # of ONNX only


def make_card(
    run: RunFolder, repo_id: str, log: EpochLog | None = None, exports: Sequence[Export] = ()
) -> ModelCard:
    """The card of a run's best weights; every figure in it is one that the run logged, or follows from those.

    Args:
        repo_id: "user/name", where they are published.
        log: by default the run's own.
        exports: the files of other formats that are published beside the weights.
    Raises:
        RunError: the folder holds no finished epoch, or is damaged.
        RecipeError: its recipe cannot be read.
    """
    log, recipe, sessions = log or run.log(), run.recipe(), run.sessions()
    best_epoch, weights = run.best_weights()
    best = log[best_epoch - 1]
    session, is_cifar = sessions[-1] if sessions else {}, run.data_fingerprint == CIFAR100_FINGERPRINT
    data = "CIFAR-100" if is_cifar else f"other data ({session.get('data', 'unnamed')})"
    test_images = 10_000 if is_cifar else session.get("test_images")
    values = {name: value if isinstance(value, list) else [value] for name, value in recipe.to_dict().items()}

    def interval(row: Epoch) -> str:
        if not test_images:
            return "not known"
        low, high = wilson_interval(round(row.test_acc * test_images / 100), test_images)
        return f"{low:.2f} to {high:.2f}%"

    text = TEMPLATES.get_template("card.md").render(
        metadata=_metadata(recipe, data, is_cifar, best, repo_id).to_yaml().strip(),
        repo_id=repo_id,
        recipe=recipe,
        settings={name: " then ".join(map(str, dict.fromkeys(phases))) for name, phases in values.items()},
        data=data,
        is_cifar=is_cifar,
        test_images=test_images,
        log=log,
        best=best,
        final=log[-1],
        interval=interval,
        machines=_machines(sessions),
        files=[path.name for path in run.path.iterdir()],
        exports=exports,
        classes=CLASSES if is_cifar else names_in(read_json(Config, weights / CONFIG, ModelError)) or (),
        preparation=PREPARATION,
        side=SIDE,
        mean=MEAN,
        std=STD,
    )
    return ModelCard(text)


def _metadata(recipe: Recipe, data: str, is_cifar: bool, best: Epoch, repo_id: str) -> ModelCardData:
    task, dataset = "image-classification", "uoft-cs/cifar100" if is_cifar else "other"
    scores = {"top-1 accuracy (%)": best.test_acc, "top-5 accuracy (%)": best.test_top5}
    return ModelCardData(
        license="mit",
        library_name="s8lib",
        pipeline_tag=task,
        tags=[task, "pytorch", recipe.model] + (["cifar-100"] if is_cifar else []),
        datasets=[dataset] if is_cifar else None,
        metrics=["accuracy"],
        model_name=repo_id.rpartition("/")[2],
        eval_results=[
            EvalResult(task, dataset, data, "accuracy", round(acc, 2), dataset_split="test", metric_name=name)
            for name, acc in scores.items()
        ],
    )


def _machines(sessions: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Each change of the machine or its software, from its epoch; a session without one was just a resume."""
    groups = itertools.groupby(sessions, key=_machine)
    return [(next(group).get("from_epoch", 1), machine) for machine, group in groups]


def _machine(session: dict[str, Any]) -> str:
    words = {"device_name": "{}", "precision": "{}", "ranks": "ranks: {}", "cpu_threads": "CPU threads: {}"}
    words |= {name: f"{name} {{}}" for name in ("torch", "cuda", "cudnn", "driver", "python", "s8lib")}
    parts = [word.format(session[name]) for name, word in words.items() if session.get(name) is not None]
    parts += ["compiled"] if session.get("compile") else []
    return ", ".join(parts) or "a machine that is not named"
