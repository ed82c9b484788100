"""The network for people without s8lib: an ONNX file, and a program of `torch.export`.

Both take uint8 pixels [N, 3, 32, 32] and give logits [N, classes], for any N. The normalisation is inside: nobody
can forget it, and floats, with which 0..1 and 0..255 get mixed up, are refused by their type.
"""

import copy
import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from s8lib.data.augment import SIDE, normalize
from s8lib.publish import need
from s8lib.report.card import Export
from s8lib.run.save import replacing
from s8lib.validation import BadInput, user_path

OPSET = 18  # what torch's exporter is written in; a later one would be a conversion, and run in fewer places
TOLERANCE = 1e-4  # of the largest logit; float32 in another order of summation stays two digits below it
NAMES = "id2label"  # what the outputs stand for, as JSON: ONNX's metadata, an extra file of the program
BATCHES = (1, 2, 7)  # sizes to verify with; the graphs are traced at 2


class ExportError(BadInput):
    """A network that was not exported; the message says why, and no file was written."""


def export_onnx(model: nn.Module, path: str | Path) -> Export:
    """Write `model` as ONNX, in one file: input `images`, output `logits`. Needs the extra `export`.

    It is verified against `model` in ONNX Runtime before it takes its place.

    Raises:
        ImportError: a package is missing.
        ExportError: the file does not compute what `model` does.
    """
    need("exporting to ONNX")
    import onnxruntime  # here, as it is an extra

    network, path = FromPixels(model), user_path(path)
    # Torch warns of its own internals; what comes of it is verified.
    with replacing(path) as partial, warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            _program(network),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "batch"}},
            opset_version=OPSET,
            verbose=False,
        )
        assert program
        program.model.metadata_props[NAMES] = network.names
        program.save(partial, external_data=False)
        session = onnxruntime.InferenceSession(partial.read_bytes(), providers=["CPUExecutionProvider"])
        difference = _verify(
            lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), network, path
        )
    versions = {"torch": torch.__version__, "onnx": version("onnx")}
    return Export(path, "ONNX", versions, f"onnxruntime {onnxruntime.__version__}", difference, OPSET)


def export_program(model: nn.Module, path: str | Path) -> Export:
    """Write `model` as a `torch.export` program, for `torch.export.load(path).module()`.

    It is loaded again and verified against `model` before it takes its place. Only open those of people you trust:
    the weights in it are plain bytes and its sample input loads with `weights_only=True`, but `torch.export.load`
    also unpickles what a file made for the purpose asks it to.

    Raises:
        ExportError: the file does not compute what `model` does.
    """
    network, path = FromPixels(model), user_path(path)
    with replacing(path) as partial, warnings.catch_warnings(action="ignore"):
        with open(partial, "wb") as file:
            torch.export.save(_program(network), file, extra_files={NAMES: network.names})
        with open(partial, "rb") as file:
            loaded = torch.export.load(file).module()
        difference = _verify(loaded, network, path)
    return Export(path, "torch.export", {"torch": torch.__version__}, f"torch {torch.__version__}", difference)


class FromPixels(nn.Module):
    """A copy of `model` in eval mode, float32, on the CPU: uint8 pixels [N, 3, 32, 32] -> logits [N, classes]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.names = json.dumps(dict(enumerate(getattr(model, "classes", ()))))
        # Laid out as torch's archives want it.
        self.cpu().float().to(memory_format=torch.contiguous_format).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(normalize(images.float() / 255))


def _program(network: FromPixels) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (_pixels(2),), dynamic_shapes={"images": {0: batch}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names source files with their paths
    return program


def _pixels(n: int) -> Tensor:
    return torch.randint(256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


@torch.inference_mode()
def _verify(run: Callable[[Tensor], Tensor], network: FromPixels, path: Path) -> float:
    """The largest difference between the logits of `run` and of `network`."""
    expected, found = (torch.cat([given(_pixels(n)) for n in BATCHES]) for given in (network, run))
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(largest, 1):  # so that NaN fails
        raise ExportError(
            f"{path} was not written: its logits differ from the model's, which are up to {largest:.3g}, by up to "
            f"{difference:.3g}; try another version of torch"
        )
    return difference
