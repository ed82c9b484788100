"""A training loop as other repositories write it, to measure this one against.

NCHW images from a DataLoader with workers, transforms on one PIL image at a time, SGD as it comes, and
`.item()` on loss and accuracy in every step. Network, batch size, loss, MixUp and rate are the recipe's, dropout's
masks torch's; the transforms are torchvision's nearest to the recipe's `full` augmentation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import s8lib as s8
from s8lib.data.augment import MEAN, STD
from s8lib.machine.device import autocast
from s8lib.models import architectures

if TYPE_CHECKING:
    Samples = Dataset[tuple[Tensor, int]]
else:
    Samples = Dataset

AS_TENSORS = (transforms.ToTensor(), transforms.Normalize(MEAN, STD))
USUAL = (
    transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
    transforms.RandomHorizontalFlip(),
    transforms.RandomRotation(15),
    transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.08, hue=0.05),
    *AS_TENSORS,
    transforms.RandomErasing(p=0.5, scale=(0.0625, 0.0625), ratio=(1, 1)),
)
WARM_UP = 2  # steps of every pass that do not count: the workers' queue fills


class PlainLoop:
    """Trains the recipe's network on `steps` batches of `train_set`, which is on the CPU, in every call."""

    def __init__(
        self,
        recipe: s8.Recipe,
        train_set: s8.Split,
        steps: int,
        device: torch.device,
        precision: str,
        workers: int = 2,
    ) -> None:
        self.recipe, self.steps, self.device, self.precision = recipe, steps, device, precision
        with mock.patch.object(architectures, "Dropout", nn.Dropout):
            self.model = s8.build_model(recipe.model, dropout=recipe.at(0).dropout, seed=recipe.seed).to(device)
        self.loader = DataLoader(
            PilImages(train_set, (WARM_UP + steps) * recipe.batch_size, USUAL),
            recipe.batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), recipe.lr_start, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def images_per_s(self) -> float:
        self.model.train()
        for step, (images, labels) in enumerate(self.loader):
            if step == WARM_UP:
                started = time.perf_counter()
            self._step(images.to(self.device), labels.to(self.device))
        return self.steps * self.recipe.batch_size / (time.perf_counter() - started)

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        lam = np.random.beta(self.recipe.mixup_alpha[0], self.recipe.mixup_alpha[0])  # noqa: NPY002
        partner = torch.randperm(len(images), device=self.device)
        self.optimizer.zero_grad()
        with autocast(self.device, self.precision):
            logits = self.model(lam * images + (1 - lam) * images[partner])
            loss = lam * self.criterion(logits, labels) + (1 - lam) * self.criterion(logits, labels[partner])
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()


class PilImages(Samples):
    """The first `n` images as torchvision's CIFAR100 gives them: made a PIL image each, then transformed."""

    def __init__(self, split: s8.Split, n: int, transform: Sequence[Callable[[Any], Any]]) -> None:
        self.pixels = split.images[:n].permute(0, 2, 3, 1).contiguous().numpy()  # [n, 32, 32, 3] uint8
        self.labels = split.labels[:n].tolist()
        self.transform = transforms.Compose(transform)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]
