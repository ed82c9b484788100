"""One measurement of `benchmarks.speed`, in this process: `python -m benchmarks.measure JSON` prints JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.data import DataLoader

import s8lib as s8
from benchmarks.checkout import ROOT
from benchmarks.masks import MASKS
from benchmarks.performance import peak_memory_gib
from benchmarks.plain_loop import AS_TENSORS, WARM_UP, PilImages, PlainLoop
from benchmarks.trainer_loop import TrainerLoop
from s8lib.data import augment
from s8lib.machine.device import keep_memory, pick_precision
from s8lib.models import layers
from s8lib.models.networks import Network
from s8lib.models.weights import save_model
from s8lib.optimizer import make_optimizer
from s8lib.recipe import POLICIES
from s8lib.run.checkpoint import COLUMNS, Checkpoint, snapshot
from s8lib.session import Writer


@dataclasses.dataclass
class Setting:
    """What is measured; see `speed.rows`."""

    what: str
    model: str
    device: str = "cpu"
    loop: str = "s8lib"
    batch_size: int = 128
    steps: int = 0  # of training; 0 for few on a CPU, and more on a GPU
    workers: int = 2  # of the plain loop
    precision: str = "auto"
    compile: str = "off"
    phases: int = 2  # that are compiled
    without: str = ""  # of what speeds up a CPU: masks, convolutions, memory; threads are `speed.measure`'s
    busy: int = 0  # processes that compute beside it
    ranks: int = 0  # 0 for the loop alone, without `s8.train` around it
    resume: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        self.on_gpu = self.device.startswith("cuda")
        self.at = torch.device(self.device)
        self.plain = self.loop == "plain"
        self.steps = self.steps or (50 if self.on_gpu else 3)
        self.images = 10_000 if self.on_gpu else 2000  # that are evaluated, or augmented
        if self.plain:
            self.precision = "fp32" if self.precision == "auto" else self.precision
        else:
            self.precision = pick_precision(self.at, self.precision)
            if self.without != "memory":
                keep_memory(self.at)
        self.recipe = dataclasses.replace(s8.SEED_100, model=self.model, batch_size=self.batch_size)

    def wait(self) -> None:
        if self.on_gpu:
            torch.accelerator.synchronize(self.at)

    def seconds(self, do: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        do()
        self.wait()
        return time.perf_counter() - started

    def network(self) -> Network:
        return s8.build_model(self.model, dropout=self.recipe.at(0).dropout, seed=0).to(self.at)


def step(told: Setting) -> float:
    """Images/s of training, after a step or two."""
    if told.ranks:
        return _of_ranks(told)
    train_set = s8.synthetic_cifar100(train=(WARM_UP + told.steps) * told.batch_size).train
    loop: PlainLoop | TrainerLoop
    torch.backends.cudnn.benchmark = True  # as `s8.train` and most loops have it; for GPUs
    if told.plain:
        loop = PlainLoop(told.recipe, train_set, told.steps, told.at, told.precision, told.workers)
    else:
        there = train_set.to(told.at)
        loop = TrainerLoop(told.recipe, there, told.steps, told.at, told.precision, True, told.compile == "on")
    masks = MASKS["torch" if told.without == "masks" else "16-bit"]
    largest = 0 if told.plain or told.without == "convolutions" else layers.LARGEST_MAP
    convolutions = mock.patch.object(layers, "LARGEST_MAP", largest)
    with _beside(told.busy), mock.patch.object(layers.Dropout, "forward", masks), convolutions:
        return loop.images_per_s()


@contextlib.contextmanager
def _beside(busy: int) -> Iterator[None]:
    """Processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _of_ranks(told: Setting) -> float:
    """Images/s of an epoch of `s8.train` that so many processes share."""
    with tempfile.TemporaryDirectory() as folder:
        here = {"what": "train", "model": told.model, "device": told.device, "folder": folder, "steps": 4}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={told.ranks}"]
        command += ["-m", "benchmarks.measure", json.dumps({**here, "batch_size": told.batch_size})]
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // told.ranks))}
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
        return s8.RunFolder(folder).log()[-1].images_per_s


def train(told: Setting, say: Callable[[str], None] = lambda line: None) -> float:
    """Two epochs of `s8.train` in a run folder; or one more, if it holds one."""
    recipe = dataclasses.replace(told.recipe, epochs=2, phase1_epochs=2, warmup_epochs=0)
    data = s8.synthetic_cifar100(train=told.steps * told.batch_size, test=told.steps * told.batch_size // 5)
    run = s8.RunFolder(told.folder, say=say)
    options: dict[str, Any] = {"precision": told.precision, "compile": told.compile}
    s8.train(recipe, told.network(), data, run, device=told.device, **options, say=say)
    return 0.0


def epoch(told: Setting) -> float:
    """Images/s of an epoch with its evaluation and its save."""
    told = dataclasses.replace(told, steps=40 if told.on_gpu else 8)
    images = told.steps * told.batch_size
    with tempfile.TemporaryDirectory() as folder:
        if told.plain:
            loop = PlainLoop(
                told.recipe, s8.synthetic_cifar100(train=images).train, told.steps - WARM_UP, told.at, "fp32"
            )
            test = s8.synthetic_cifar100(train=1, test=images // 5).test

            def all_of_it() -> None:
                loop.images_per_s()
                _plain_evaluation(told, loop.model, test)
                _plain_save(loop.model, loop.optimizer, Path(folder))

            all_of_it()
            return images / told.seconds(all_of_it)
        ends = list[float]()
        train(
            dataclasses.replace(told, folder=folder),
            lambda line: ends.append(time.perf_counter()) if line.startswith("epoch") else None,
        )
        return images / (ends[1] - ends[0])


def evaluation(told: Setting) -> float:
    """Images/s."""
    model, test = told.network(), s8.synthetic_cifar100(train=1, test=told.images).test
    there = test.to(told.at)
    do: Callable[[], object] = partial(s8.evaluate, model, there, told.device, told.precision)
    if told.plain:
        do = partial(_plain_evaluation, told, model, test)
    do()
    return told.images / told.seconds(do)


def _plain_evaluation(told: Setting, model: torch.nn.Module, test: s8.Split) -> None:
    model.eval()
    hits = 0
    with torch.no_grad():
        for batch, labels in DataLoader(PilImages(test, len(test), AS_TENSORS), 128, num_workers=told.workers):
            hits += (model(batch.to(told.at)).argmax(1).cpu() == labels).sum().item()
    model.train()


def augmentation(told: Setting) -> float:
    """Images/s by the `full` policy; the peer is albumentations, one image at a time."""
    images = s8.synthetic_cifar100(train=told.images).train.images
    if told.plain:
        transform = _albumentations()
        arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
        return len(arrays) / told.seconds(lambda: [transform(image=array)["image"] for array in arrays])
    policy, there = POLICIES["full"], images.to(told.at)

    def ours() -> None:
        draws = augment.draw(len(there), policy, torch.Generator().manual_seed(0)).to(told.at)
        for rows in range(0, len(there), 500):
            part = slice(rows, rows + 500)
            augment.normalize(augment.apply(there[part], draws[part], policy))

    ours()
    return len(there) / told.seconds(ours)


def _albumentations() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    import albumentations as A  # type: ignore[import-not-found]  # noqa: N812  # as everybody does; it is in the extra `bench`

    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(scale=(0.9, 1.1), translate_percent=(-0.0625, 0.0625), rotate=(-15, 15), p=0.5),
            A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(8, 8), hole_width_range=(8, 8), p=0.5),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.3),
            A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.3),
            A.Normalize(mean=augment.MEAN, std=augment.STD),
        ]
    )


def save(told: Setting) -> float:
    """Seconds that training waits for a save that is also the best one so far."""
    model = told.network()
    optimizer = make_optimizer(told.recipe, model, told.at, told.precision)
    with tempfile.TemporaryDirectory() as folder:
        if told.plain:
            do = partial(_plain_save, model, optimizer, Path(folder))
            do()
            return told.seconds(do)
        values: dict[str, Any] = dict.fromkeys(COLUMNS, 0.0) | {"phase": 1, "augmentation": "none"}
        rows = [s8.Epoch(**values | {"epoch": epoch}) for epoch in (1, 2)]
        run = s8.RunFolder(folder)
        with run.lock():
            run.claim()
        with Writer(run) as writer:

            def begin(epochs: int) -> None:
                states = snapshot({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
                checkpoint = Checkpoint({}, **states, scaler={}, log=s8.EpochLog(rows[:epochs]))
                writer.begin(checkpoint, partial(save_model, model, weights=states["model"]))
                if told.loop != "s8lib":
                    writer.finish()

            begin(1)
            writer.finish()
            return told.seconds(partial(begin, 2))


def _plain_save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "last.pt")
    torch.save(model.state_dict(), folder / "best.pt")


def start(told: Setting) -> float:
    """Seconds from the start of the process to the end of its first step, perhaps of a run that goes on."""
    with tempfile.TemporaryDirectory() as folder:
        here = {"what": "begin", "model": told.model, "device": told.device, "compile": told.compile, "steps": 4}
        here["folder"] = folder
        command = [sys.executable, "-m", "benchmarks.measure"]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}  # the run's own
        run = partial(subprocess.run, cwd=ROOT, check=True, capture_output=True, env=environment)
        if told.resume:
            run([*command, json.dumps(here | {"resume": True})])
        return told.seconds(lambda: run([*command, json.dumps(here)]))


def begin(told: Setting) -> float:
    """Train until the first step has been made; with `resume`, that of the second epoch: the first is saved."""
    # No line that is said tells it: before the first step others are tried out, for the forecast.
    look = mock.Mock(side_effect=[None] * (told.steps * told.resume) + [_Enough])
    with contextlib.suppress(_Enough), mock.patch.object(Writer, "look", look):
        train(told)
    told.wait()
    return 0.0


def compiling(told: Setting) -> float:
    """Seconds for which the compiler holds up training before its first step, with nothing in its cache."""
    train_set = s8.synthetic_cifar100(train=told.batch_size).train.to(told.at)
    loop = TrainerLoop(told.recipe, train_set, 1, told.at, told.precision, True, False)
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=cache):
        return told.seconds(partial(loop.compile, told.phases))


class _Enough(Exception):
    """What was to be seen has been seen."""


MEASURES = {f.__name__: f for f in (step, epoch, evaluation, augmentation, save, start, begin, train, compiling)}


def main(told: str) -> int:
    setting = Setting(**json.loads(told))
    value = MEASURES[setting.what](setting)
    print(json.dumps({"value": value, "memory_gib": peak_memory_gib(setting.at)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
