"""The model card: README.md of a published run, made anew from what the run left on disk."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from s8lib.data.augment import MEAN, SIDE, STD
from s8lib.data.cifar100 import CIFAR100_FINGERPRINT, CLASSES
from s8lib.inference import PREPARATION
from s8lib.metrics import wilson_interval
from s8lib.recipe import Recipe
from s8lib.run.folder import RunFolder
from s8lib.run.log import Epoch, EpochLog, selector

# These steps are PREPARATION, but for transparent pictures.
WITHOUT_S8LIB = """
### Without s8lib

```python
import numpy as np
from PIL import Image, ImageOps

photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
photo = ImageOps.fit(photo, (32, 32), Image.Resampling.BICUBIC)
images = np.array(photo).transpose(2, 0, 1)[None]  # uint8 [1, 3, 32, 32]; any number of images will do
```
"""
WRN = """@inproceedings{zagoruyko2016wide,
  title = {Wide Residual Networks}, author = {Sergey Zagoruyko and Nikos Komodakis},
  booktitle = {British Machine Vision Conference}, year = {2016}, note = {arXiv:1605.07146}
}"""
RESNET = """@inproceedings{he2016deep,
  title = {Deep Residual Learning for Image Recognition},
  author = {Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun},
  booktitle = {Computer Vision and Pattern Recognition}, year = {2016}, note = {arXiv:1512.03385}
}"""
CIFAR = """

@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images}, author = {Alex Krizhevsky},
  institution = {University of Toronto}, year = {2009}
}"""


class Exported(Protocol):
    """A file in another format, published beside the weights; `publish.export` makes them."""

    def how_to_run(self) -> str:
        """Markdown: what it is, and the lines that take `images` to `logits`."""


def make_card(
    run: RunFolder, repo_id: str, log: EpochLog | None = None, exports: Sequence[Exported] = ()
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
    best, final = log[run.best_weights()[0] - 1], log[-1]
    identity, session = run.manifest().identity, sessions[-1] if sessions else {}
    is_cifar = identity is not None and identity["data"]["sha256"] == CIFAR100_FINGERPRINT
    data, test_images = f"other data ({session.get('data', 'unnamed')})", session.get("test_images")
    network, paper, citation = "WideResNet", "arXiv:1605.07146", WRN
    if recipe.model == "resnet-42":
        network, paper, citation = "ResNet42", "arXiv:1512.03385", RESNET
    trained = f"`{recipe.name}`"
    if final.epoch < recipe.epochs:
        trained += f", {final.epoch} of whose {recipe.epochs} epochs are done"
    picture = "![Accuracy, loss and learning rate over the epochs](graph.jpg)\n\n"
    picture = picture if (run.path / "graph.jpg").exists() else ""
    report = ", every figure in `report.json`" if (run.path / "report.json").exists() else ""
    warning = classes = people = source = ""
    if is_cifar:
        data, test_images, citation = "CIFAR-100", 10_000, citation + CIFAR
        classes = (
            f"\n<details><summary>The {len(CLASSES)} classes, in the order of the outputs</summary>\n\n"
            f"{', '.join(CLASSES)}\n\n</details>\n"
        )
        people = (
            "\n- Its classes of people (baby, boy, girl, man, woman) are labels of tiny pictures: no means to "
            "judge anyone."
        )
        source = (
            " Data: [CIFAR-100](https://huggingface.co/datasets/uoft-cs/cifar100), of the University of Toronto, "
            "whose terms are its own."
        )
    else:
        warning = (
            f"**This is not a CIFAR-100 network.** It was trained and tested on {data}, so its figures say "
            "nothing about CIFAR-100.\n\n"
        )
    counted = "How many test images there were is not known."
    if test_images:
        counted = f"There were {test_images:,} test images. The interval is Wilson's: what another {test_images:,}"
        counted += " might have given, and not what another seed would."
    return ModelCard(f"""---
{_metadata(recipe, data, is_cifar, best, repo_id).to_yaml().strip()}
---

# {recipe.model} on {data}

{warning}An image classifier: `{recipe.model}` ({paper}), trained with s8lib by the recipe {trained}.
**{best.test_acc:.2f}% top-1** and {best.test_top5:.2f}% top-5 on the test set.

## Results

{_results(best, final, test_images)}

The best epoch was chosen on {selector(best.holdout_acc is not None)}. {counted}

{picture}Every epoch is in `epoch_log.csv`{report}.

## Use

```python
import s8lib as s8
model = s8.{network}.from_pretrained("{repo_id}")
print(s8.predict(model, "photo.jpg"))  # the five likeliest classes with their probabilities
```

`revision="..."`, a commit, pins the weights; `map_location="cuda"` puts them on a GPU. They come from
`model.safetensors` and load strictly: every tensor has to be there and to fit. No pickle is opened on the way. The
checkpoint under `checkpoints/` is for going on with training only.
{WITHOUT_S8LIB if exports else ""}{"".join(export.how_to_run() for export in exports)}
### Images

A picture of any size is {PREPARATION}.
Pixels, divided by 255, are then normalised with mean {MEAN} and standard deviation {STD} per channel.
{classes}
## Training

{_settings(recipe)}

`recipe.json` holds all of it, for `python -m s8lib train --recipe recipe.json`.

{len(log)} epochs took {log.minutes:.1f} minutes, evaluation included, on:

{_machines(sessions)}

## Limits

- It sees {SIDE}x{SIDE} pixels: of a larger picture, what is left of it at that size.
- It answers every picture with one of its classes, and cannot say that none of them fits.
- The figures are those of one run, with seed {recipe.seed}.{people}

## Licence, data, citation

The weights are under the MIT licence.{source}

```bibtex
{citation}
```
""")


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


def _results(best: Epoch, final: Epoch, test_images: int | None) -> str:
    rows = []
    for what, row in (("best: the weights here", best), ("final", final)):
        interval = "not known"
        if test_images:
            low, high = wilson_interval(round(row.test_acc * test_images / 100), test_images)
            interval = f"{low:.2f} to {high:.2f}%"
        figures = f"{row.test_acc:.2f}%", interval, f"{row.test_top5:.2f}%", f"{row.test_loss:.4f}"
        rows.append([what, str(row.epoch), *figures])
    return _table(["", "epoch", "top-1", "95% interval", "top-5", "loss (nats)"], rows)


def _settings(recipe: Recipe) -> str:
    settings = {name: value if isinstance(value, list) else [value] for name, value in recipe.to_dict().items()}
    rows = [[f"`{name}`", " then ".join(map(str, dict.fromkeys(values)))] for name, values in settings.items()]
    return _table(["setting", "value (phase 1 then phase 2)"], rows)


def _machines(sessions: list[dict[str, Any]]) -> str:
    """A line for each change of the machine or its software; a session without one was just a resume."""
    groups = itertools.groupby(sessions, key=_machine)
    return "\n".join(f"- from epoch {next(group).get('from_epoch', 1)}: {machine}" for machine, group in groups)


def _machine(session: dict[str, Any]) -> str:
    words = {"device_name": "{}", "precision": "{}", "ranks": "ranks: {}", "cpu_threads": "CPU threads: {}"}
    words |= {name: f"{name} {{}}" for name in ("torch", "cuda", "cudnn", "driver", "python", "s8lib")}
    parts = [word.format(session[name]) for name, word in words.items() if session.get(name) is not None]
    parts += ["compiled"] if session.get("compile") else []
    return ", ".join(parts) or "a machine that is not named"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
