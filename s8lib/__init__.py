"""s8lib: train a WideResNet on CIFAR-100 and resume it exactly."""

from __future__ import annotations

import importlib
from types import ModuleType

from s8lib.checkpoint import RunError, RunFolder
from s8lib.data import Cifar100, DataError, Split, load_cifar100
from s8lib.defaults import choose_data, choose_recipe, run_name
from s8lib.epoch_log import Epoch, EpochLog
from s8lib.hardware import DeviceError
from s8lib.hub import HubError, HubPublisher
from s8lib.metrics import Metrics, evaluate
from s8lib.models import ResNet42, WideResNet, build_model, load_model
from s8lib.predict import Guess, ImageError, predict
from s8lib.presets import PRESETS, QUICK, SEED_100, SEED_200
from s8lib.recipe import Knobs, Recipe, RecipeError
from s8lib.saved import data_of, find_run
from s8lib.synthetic import synthetic_cifar100
from s8lib.trainer import NonFiniteLoss, train
from s8lib.version import __version__
from s8lib.weights import ModelError, load_public_weights

__all__ = [
    "PRESETS",
    "QUICK",
    "SEED_100",
    "SEED_200",
    "Cifar100",
    "DataError",
    "DeviceError",
    "Epoch",
    "EpochLog",
    "Guess",
    "HubError",
    "HubPublisher",
    "ImageError",
    "Knobs",
    "Metrics",
    "ModelError",
    "NonFiniteLoss",
    "Recipe",
    "RecipeError",
    "ResNet42",
    "RunError",
    "RunFolder",
    "Split",
    "WideResNet",
    "__version__",
    "build_model",
    "choose_data",
    "choose_recipe",
    "data_of",
    "evaluate",
    "find_run",
    "load_cifar100",
    "load_model",
    "load_public_weights",
    "predict",
    "run_name",
    "synthetic_cifar100",
    "train",
]


def __getattr__(name: str) -> ModuleType:
    """`s8.report` and `s8.colab` are imported when first used (PEP 562): matplotlib is slow to load."""
    if name in ("report", "colab"):
        return importlib.import_module(f"s8lib.{name}")
    raise AttributeError(f"module 's8lib' has no attribute {name!r}")
