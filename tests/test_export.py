"""The exported files compute what the network does, for people who do not have s8lib; or they are not there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import s8lib as s8
from s8lib.metrics import predict_logits
from s8lib.publish import export
from s8lib.report.card import make_card
from tests.runs import small_model
from tests.saves import Machine

pytest.importorskip("onnxscript", reason="exporting needs the extra `export`")
onnxruntime = pytest.importorskip("onnxruntime", reason="exporting needs the extra `export`")

FILES = {"model.onnx": export.export_onnx, "model.pt2": export.export_program}


@pytest.fixture(scope="module")
def model() -> s8.WideResNet:
    """As training leaves one: channels last, in training mode, with statistics of its own."""
    model = small_model().to(memory_format=torch.channels_last)
    model(torch.randn(64, 3, 32, 32))
    model.name_classes([f"kind {place}" for place in range(100)])
    return model


@pytest.fixture(scope="module")
def exported(model: s8.WideResNet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[export.Export]]:
    """The folder of the two files, and what was said of them."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, [write(model, folder / name) for name, write in FILES.items()]


def run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def run_program(path: Path, images: torch.Tensor) -> torch.Tensor:
    return torch.export.load(path).module()(images).detach()


RUN = {"model.onnx": run_onnx, "model.pt2": run_program}


@pytest.mark.parametrize("name", FILES)
def test_any_number_of_pixels_gives_the_networks_logits(
    name: str, exported: tuple[Path, list[export.Export]], model: s8.WideResNet, tiny: s8.Cifar100
) -> None:
    for n in (1, 3, 16):
        images = tiny.test.images[:n]
        expected = predict_logits(model, images, "fp32")
        torch.testing.assert_close(RUN[name](exported[0] / name, images), expected, atol=1e-5, rtol=1e-4)
    assert model.training


@pytest.mark.parametrize("name", FILES)
def test_floats_which_could_be_scaled_either_way_are_refused(
    name: str, exported: tuple[Path, list[export.Export]]
) -> None:
    with pytest.raises(Exception, match=r"uint8|Byte"):  # noqa: B017, PT011 each runtime has its own kind
        RUN[name](exported[0] / name, torch.rand(1, 3, 32, 32))


def test_the_files_name_their_outputs(exported: tuple[Path, list[export.Export]]) -> None:
    metadata = onnxruntime.InferenceSession(exported[0] / "model.onnx").get_modelmeta().custom_metadata_map
    beside = {"id2label": ""}
    torch.export.load(exported[0] / "model.pt2", extra_files=beside)
    for names in (metadata["id2label"], beside["id2label"]):
        assert json.loads(names) == {str(place): f"kind {place}" for place in range(100)}


def test_what_was_made_and_how_it_was_verified_is_told(exported: tuple[Path, list[export.Export]]) -> None:
    onnx, program = exported[1]
    assert onnx.path == exported[0] / "model.onnx"
    assert (onnx.format, onnx.opset) == ("ONNX", 18)
    assert onnx.versions == {"torch": torch.__version__, "onnx": importlib.metadata.version("onnx")}
    assert onnx.verified_with == f"onnxruntime {onnxruntime.__version__}"
    assert program.path == exported[0] / "model.pt2"
    assert (program.format, program.opset) == ("torch.export", None)
    assert program.verified_with == f"torch {torch.__version__}"
    for entry in exported[1]:
        assert 0 <= entry.max_abs_difference < 1e-4


def test_the_files_name_no_path_of_this_machine(exported: tuple[Path, list[export.Export]]) -> None:
    folder = exported[0]
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    contents.append((folder / "model.onnx").read_bytes())
    for path in (*site.getsitepackages(), Path(s8.__file__).parent, Path.home()):
        assert not any(str(path).encode() in content for content in contents), path


def test_the_cards_own_lines_classify_a_photo_without_s8lib(
    exported: tuple[Path, list[export.Export]], model: s8.WideResNet, tmp_path: Path
) -> None:
    folder, entries = exported
    photo = Image.effect_noise((120, 80), 90).convert("RGB")
    photo.save(folder / "photo.jpg", quality=95)
    card = make_card(Machine(tmp_path).until(1).run, "tester/net", exports=entries).text
    assert "`hf download tester/net model.onnx model.pt2 --local-dir .` fetches them" in card
    _, _, pixels, *runs = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    lines = ["import sys", "sys.modules['s8lib'] = None", pixels]
    lines += [f"{run}\nprint(logits.tolist()[0])" for run in runs]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (guesses,) = s8.predict(model, folder / "photo.jpg", [str(i) for i in range(100)], top=100)
    expected = [guess.probability for guess in sorted(guesses, key=lambda guess: int(guess.name))]
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(printed) == 2
    for logits in printed:
        assert torch.tensor(logits).softmax(0).tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_what_computes_something_else_is_an_error_and_no_file(
    name: str, model: s8.WideResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = export._program
    other = export.FromPixels(small_model(seed=1))
    monkeypatch.setattr(export, "_program", lambda network: traced(other))
    (tmp_path / name).write_text("an older one")
    with pytest.raises(export.ExportError, match=rf"{name} was not written: its logits differ from the model's"):
        FILES[name](model, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "an older one"


def test_what_is_not_a_number_does_not_verify() -> None:
    broken = small_model()
    torch.nn.init.constant_(broken.fc.bias, float("nan"))
    network = export.FromPixels(broken)
    with pytest.raises(export.ExportError, match="differ"):
        export._verify(network, network, Path("model.pt2"))


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_an_onnx_file_that_cannot_be_made_or_verified_is_an_error_that_says_what_to_install(
    model: s8.WideResNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ImportError, match=f"needs {package}: pip install onnx onnxscript onnxruntime"):
        export.export_onnx(model, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []
