"""The networks: WideResNet (arXiv:1605.07146), the ResNet-42 of the commission's architecture section, ResNet-11.

What each is built with lies in its `config.json`, its weights in `model.safetensors`; they load strictly.
"""

import inspect
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HTTPError
from pydantic import AfterValidator, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from s8lib.data.cifar100 import CLASSES
from s8lib.hub_client import without_xet
from s8lib.models import architectures, layers
from s8lib.models.weights import CONFIG, SAFETENSORS, ModelError, load_strictly, save_model
from s8lib.validation import check, one_line, read_json, user_path

HUB_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")
WHITENING_EPS = 5e-4  # added to the variance of a patch along each direction
LARGEST = 2e9  # parameters, 8 GB of them


def _six_n_plus_4(depth: int) -> int:
    if depth % 6 != 4:
        raise ValueError("a WideResNet has 6n+4 layers, such as 10, 16, 22, 28 or 40")
    return depth


class Config(TypedDict, total=False):
    """What config.json may hold; other keys are ignored, as in every config of the Hub.

    `depth` and `widen_factor` are a WideResNet's alone. In older ones, without `model_type`, they tell the kind.
    """

    model_type: str
    depth: Annotated[int, Field(ge=10, le=1000), AfterValidator(_six_n_plus_4)]
    widen_factor: Annotated[int, Field(ge=1, le=1000)]
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    id2label: dict[str, str]  # the names of the outputs by their places, as transformers has them


class Network(nn.Module, PyTorchModelHubMixin):
    """What all networks share: their name, their dropout knob, and strict loading.

    `from_pretrained(folder_or_repo)` returns the network in eval mode with exactly the saved weights.
    The mixin's own default is not strict: it leaves missing weights at random values without a word.
    """

    model_type = ""  # which kind it is, in config.json
    name: str
    config: Config  # what it is built with
    class_names: Sequence[str] = ()  # of its outputs, if they are known

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability inside every block, in place; a network without such dropout has no knob."""
        for module in self.modules():
            if isinstance(module, layers.Dropout):
                module.p = p

    def start_from(self, images: Tensor) -> None:
        """Set those of the first weights that follow from the training images, [N, 3, 32, 32] and normalised."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the outputs, in their order."""
        return self.class_names or CLASSES

    def name_classes(self, names: Sequence[str]) -> None:
        """Remember what the outputs stand for; ModelError unless there is a name of its own for each."""
        if self.config["num_classes"] != len(names):
            raise ModelError(f"{self.name} has {self.config['num_classes']} classes and the data {len(names)}")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ModelError(f"two outputs of {self.name} are named {twice[0]!r}: give each a name of its own")
        self.class_names = tuple(names)

    def saved_config(self) -> dict[str, Any]:
        """What config.json holds: what it is built with, and the names of its outputs if they are known."""
        config, names = {"model_type": self.model_type, **self.config}, self.classes
        if len(names) != self.config["num_classes"]:
            return config
        places = {name: place for place, name in enumerate(names)}
        return config | {"id2label": {str(place): name for name, place in places.items()}, "label2id": places}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config.json, model.safetensors and a card without a figure into a folder."""
        return super().save_pretrained(user_path(save_directory), **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, save_directory)

    def push_to_hub(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the mixin's own would send a card without a figure, and replace whatever is there."""
        raise ModelError(
            'push_to_hub knows no run; its card would be empty: use s8.HubPublisher("you/name").publish(run), or '
            "`s8lib publish --run runs/mine --hub-repo you/name`; save_pretrained(folder) writes the weights alone"
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
        **options: Any,
    ) -> Self:
        """The network in a folder or a Hub repository; `options` are the mixin's, and values for the config's.

        Raises:
            ModelError: config or weights cannot be read, are out of bounds, do not fit each other, or are those
                of the other network.
        """
        if not strict:
            raise ModelError("strict=False would leave missing weights at random values: weights load strictly")
        source = str(pretrained_model_name_or_path)
        hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        model = cls.without_weights(source, hub, **options)
        file = _file_of(source, SAFETENSORS, **hub)
        try:
            weights = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read the weights {file}: {error}") from error
        load_strictly(model, weights, str(file), assign=True)
        return model.to(map_location).eval()

    @classmethod
    def without_weights(cls, source: str, hub: Mapping[str, Any] | None = None, **options: Any) -> Self:
        """The network that a config.json tells of, on the `meta` device; raises as `from_pretrained`."""
        config = read_json(Config, _file_of(source, CONFIG, **hub or {}), ModelError)
        labels = config.pop("id2label", {})
        if labels.keys() != {str(place) for place in range(len(labels))}:
            raise ModelError("the id2label of a config.json has to name the outputs by their places, from 0")
        kinds: dict[str, Any] = {kind.model_type: kind for kind in Network.__subclasses__()}
        usual = "wide-resnet" if config.keys() & {"depth", "widen_factor"} else "resnet-42"
        kind = kinds.get(config.pop("model_type", usual), kinds[usual])
        if not issubclass(kind, cls):
            raise ModelError(f"{source} holds a {kind.__name__}, not a {cls.__name__}: use s8lib.load_model")
        own = {name: config[name] for name in inspect.signature(kind.__init__).parameters if name in config}
        with torch.device("meta"):  # takes no memory: what a config asks for need not be in the file
            model = kind(**own | options)
        if labels:
            model.name_classes([labels[str(place)] for place in range(len(labels))])
        return model


class WideResNet(architectures.WideResNet, Network):
    """WideResNet-`depth`-`widen_factor` for [N, 3, 32, 32] images, normalised as `augment.normalize` does.

    Args:
        depth: 6n+4 layers for n blocks in each of the three groups.
        widen_factor: groups are 16, 32 and 64 times this wide.
        num_classes: width of the output, [N, num_classes] logits.
        dropout: probability between the two convolutions of each block.
    Raises:
        ModelError: for a depth that is not 6n+4, another value out of bounds, or more than 2 billion parameters.
    """

    model_type = "wide-resnet"

    def __init__(
        self, depth: int = 28, widen_factor: int = 10, num_classes: int = 100, dropout: float = 0.0
    ) -> None:
        config = {"depth": depth, "widen_factor": widen_factor, "num_classes": num_classes, "dropout": dropout}
        self.config = check(Config, config, ModelError)
        self.name = f"wrn-{depth}-{widen_factor}"
        blocks = (depth - 4) // 6
        parameters = 96_768 * blocks * widen_factor**2  # the convolutions' nearly: 18 * 16**2 * (1 + 2**2 + 4**2)
        if parameters > LARGEST:
            raise ModelError(f"{self.name} would have {parameters:.1e} parameters: the most is {LARGEST:.0e}")
        super().__init__(depth, widen_factor, num_classes, dropout)


class ResNet42(architectures.ResNet42, Network):
    """The commission's documented network: 5+5+5+5 basic blocks at 64-128-256-512, 30,032,292 parameters.

    Args:
        num_classes: width of the output, [N, num_classes] logits for [N, 3, 32, 32] images.
        dropout: probability before the linear layer; no schedule touches it.
    Raises:
        ModelError: for a value out of bounds.
    """

    model_type = "resnet-42"

    def __init__(self, num_classes: int = 100, dropout: float = 0.512) -> None:
        self.config = check(Config, {"num_classes": num_classes, "dropout": dropout}, ModelError)
        self.name = self.model_type
        super().__init__(num_classes, dropout)


class ResNet11(architectures.ResNet11, Network):
    """A network of 8.6 million parameters that learns in a few epochs.

    In the line of D. Page's ResNet-9 (DAWNBench, 2018) and of K. Jordan's network for CIFAR-10 (arXiv:2404.00498):
    a fixed 2x2 convolution that whitens the patches of the training images, three groups of three convolutions
    that begin as the identity, global max and mean, a linear layer.

    Args:
        num_classes: width of the output, [N, num_classes] logits for [N, 3, 32, 32] images.
    """

    model_type = "resnet-11"

    def __init__(self, num_classes: int = 100) -> None:
        self.config, self.name = check(Config, {"num_classes": num_classes}, ModelError), self.model_type
        super().__init__(num_classes)

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Whiten the 2x2 patches of `images`, unless these are weights that have been trained."""
        if self.whiten.weight.any():
            return
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + WHITENING_EPS).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def build_model(name: str, num_classes: int = 100, dropout: float = 0.0, seed: int | None = None) -> Network:
    """Build `wrn-D-K`, `resnet-42` or `resnet-11` by name, with fresh weights.

    Args:
        dropout: inside the blocks of a WideResNet; the others have none there, and `resnet-42` keeps its own.
        seed: makes the weights a function of it and leaves the global random state alone.
    Raises:
        ModelError: for a name that is none of these, or a value out of bounds.
    """
    wide = re.fullmatch(r"wrn-([0-9]{1,9})-([0-9]{1,9})", str(name))
    if not wide and name not in ("resnet-42", "resnet-11"):
        raise ModelError(f"there is no model {name!r}: use resnet-42, resnet-11, or wrn-D-K such as wrn-28-10")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if wide:
            return WideResNet(int(wide[1]), int(wide[2]), num_classes, dropout)
        check(Config, {"dropout": dropout}, ModelError)
        return ResNet42(num_classes) if name == "resnet-42" else ResNet11(num_classes)


def load_model(source: str | Path, revision: str | None = None, device: str = "cpu") -> Network:
    """The network saved in a folder or a Hub repository, whichever kind it is, in eval mode.

    Raises:
        ModelError: as `Network.from_pretrained`.
    """
    return Network.from_pretrained(source, revision=revision, map_location=device)


def _file_of(source: str, name: str, **hub_options: Any) -> Path:
    """The file `name` of a saved model: in the folder `source`, or fetched from the Hub repository `source`."""
    if source and os.path.isdir(user_path(source)):  # which, unlike Path's, answers for 5,000 letters too
        folder = user_path(source)
        if (folder / "best" / name).is_file() and not (folder / name).exists():
            raise ModelError(f"{source} is a run's folder: its weights are in {folder / 'best'}")
        return folder / name
    try:
        with without_xet():
            return Path(hf_hub_download(source, name, **hub_options))
    except (OSError, ValueError, RuntimeError, HTTPError) as error:  # the client's own, and of a line that breaks
        raise ModelError(
            f"{source} is no folder here and {name} cannot be had from the Hub: {one_line(error)}"
        ) from error
