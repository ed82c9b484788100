"""The model card: README.md of a published run, made anew from what the run left on disk.

Its text is the Jinja template `card.md`, beside this file.
"""

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData, hf_hub_url
from jinja2 import StrictUndefined, Template

from s8lib.data.augment import MEAN, SIDE, STD
from s8lib.data.cifar100 import CIFAR100_FINGERPRINT, CLASSES
from s8lib.data.pictures import PREPARATION
from s8lib.metrics import wilson_interval
from s8lib.models.networks import Network
from s8lib.run.checkpoint import Epoch, EpochLog
from s8lib.run.folder import RunFolder

BEGIN, END = "<!-- s8lib writes from here -->", "<!-- to here: what stands outside is yours, and stays -->"
OF_BEFORE = "trained with s8lib by the recipe"  # in cards without these marks

TEMPLATE = Template(
    Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
TEMPLATE.globals.update(begin=BEGIN, end=END, preparation=PREPARATION, side=SIDE, mean=MEAN, std=STD)


@dataclass(frozen=True)
class Export:
    """The network in a file of another format, and how far that file's logits were from the network's."""

    path: Path
    format: str
    versions: dict[str, str]  # of the packages that made it
    verified_with: str
    max_abs_difference: float
    opset: int | None = None  # of ONNX only


def make_card(
    run: RunFolder,
    repo_id: str,
    log: EpochLog | None = None,
    exports: Sequence[Export] = (),
    beside: Collection[str] = (),
    license: str | None = None,
) -> ModelCard:
    """The card of a run's best weights; every figure in it is one that the run logged, or follows from those.

    Args:
        repo_id: "user/name", where they are published.
        log: by default the run's own.
        exports: the files of other formats that are published beside the weights.
        beside: the names of what else is: `publish.publisher.beside`.
        license: of the weights, as the Hub calls it; by default "mit".
    Raises:
        RunError: the folder holds no finished epoch, or is damaged.
        RecipeError: its recipe cannot be read.
    """
    log, recipe, sessions = log or run.log(), run.recipe(), run.sessions()
    best_epoch, weights = run.best_weights()
    best, final = log[best_epoch - 1], log[-1]
    goes_on = final.epoch < recipe.epochs and not recipe.out_of_patience([row.selection_acc for row in log])
    # A session that trained no epoch to its end is not named: the next one, or the log, begins where it did.
    after = [*(one.get("from_epoch", len(log)) for one in sessions[1:]), len(log) + 1]
    trained = [one for one, end in zip(sessions, after, strict=False) if one.get("from_epoch", 0) < end]
    session, is_cifar = sessions[-1] if sessions else {}, run.data_fingerprint == CIFAR100_FINGERPRINT
    data = "CIFAR-100" if is_cifar else f"other data ({session.get('data', 'unnamed')})"
    test_images = 10_000 if is_cifar else session.get("test_images")
    task, dataset = "image-classification", "uoft-cs/cifar100" if is_cifar else "other"
    scores = {"top-1 accuracy (%)": best.test_acc, "top-5 accuracy (%)": best.test_top5}
    metadata = ModelCardData(
        license=license or "mit",
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

    def interval(row: Epoch) -> str:
        if not test_images:
            return "not known"
        low, high = wilson_interval(round(row.test_acc * test_images / 100), test_images)
        return f"{low:.2f} to {high:.2f}%"

    text = TEMPLATE.render(
        metadata=metadata.to_yaml().strip(),
        repo_id=repo_id,
        wheel=next((hf_hub_url(repo_id, name) for name in beside if name.endswith(".whl")), None),
        with_transformers="preprocessor_config.json" in beside,
        recipe=recipe,
        data=data,
        is_cifar=is_cifar,
        test_images=test_images,
        log=log,
        best=best,
        final=final,
        goes_on=goes_on,
        held_out=(run.manifest().identity or {"data": {}})["data"].get("holdout", 0),
        interval=interval,
        machines=[(next(its).get("from_epoch", 1), what) for what, its in itertools.groupby(trained, machine_of)],
        files=[path.name for path in run.path.iterdir()],
        exports=exports,
        classes=CLASSES if is_cifar else Network.without_weights(str(weights)).class_names,
    )
    return ModelCard(text)


def merged(theirs: str, ours: str, license: str | None = None) -> str:
    """The card `ours` in the place of what s8lib wrote into `theirs`; the rest, of its metadata too, stays.

    Args:
        license: of the weights; by default the one that `theirs` names, if it does.
    Raises:
        ValueError: the metadata of `theirs` cannot be read.
    """
    try:
        there, here = ModelCard(theirs, ignore_metadata_errors=True), ModelCard(ours)
    except (ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"the metadata at the top of its README.md cannot be read ({why}): repair it") from None
    old, new = there.data.to_dict(), here.data.to_dict()
    if old.get("datasets") == ["uoft-cs/cifar100"]:  # ours, of a run that may have been another one's
        del old["datasets"]
    tags = old.get("tags") if isinstance(old.get("tags"), list) else []
    own = [tag for tag in tags if not re.fullmatch(r"cifar-100|wrn-[0-9]+-[0-9]+|resnet-(11|42)", str(tag))]
    new["tags"] = list(dict.fromkeys([*new["tags"], *own]))
    new["license"] = license or old.get("license") or new["license"]
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    (part,) = between.findall(here.text)
    if (BEGIN in there.text) != (END in there.text):
        raise ValueError(f"its README.md has lost one of the lines {BEGIN} and {END}: bring it back")
    text, found = between.subn(lambda _: part, there.text)
    if not found:
        text = part if OF_BEFORE in there.text else f"{there.text.rstrip()}\n\n{part}"
    return f"---\n{CardData(**old | new).to_yaml()}\n---\n\n{text.strip()}\n"


def machine_of(session: dict[str, Any]) -> str:
    """A session's machine and software in words: sessions that are alike in them were just resumes."""
    words = {"device_name": "{}", "precision": "{}", "ranks": "ranks: {}", "cpu_threads": "CPU threads: {}"}
    words |= {name: f"{name} {{}}" for name in ("torch", "cuda", "cudnn", "driver", "python", "s8lib")}
    parts = [word.format(session[name]) for name, word in words.items() if session.get(name) is not None]
    parts += ["compiled"] if session.get("compile") else []
    return ", ".join(parts) or "a machine that is not named"
