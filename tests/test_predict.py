"""`predict` names what is on a picture of any size and kind, and says which one it cannot read."""

from __future__ import annotations

import contextlib
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import s8lib as s8
from s8lib.data import augment
from s8lib.data.cifar100 import CLASSES
from s8lib.data.pictures import prepare
from tests.runs import small_model

NAMES = [f"class {i}" for i in range(100)]


@pytest.fixture(scope="module")
def model() -> s8.WideResNet:
    return small_model()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A picture of 120x90 pixels, no two columns or rows of it alike."""
    y, x = np.mgrid[:90, :120]
    pixels = np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def test_the_datasets_own_images_are_seen_as_they_are(model: s8.WideResNet, tiny: s8.Cifar100) -> None:
    images = tiny.test.images[:6]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    assert torch.equal(prepare(images), images)
    assert torch.equal(prepare(pictures), images)
    with torch.no_grad():
        probabilities = model.eval()(augment.normalize(images.float() / 255)).softmax(1)
    for guesses, row in zip(s8.predict(model, pictures, NAMES), probabilities, strict=True):
        best = row.topk(5)
        assert [guess.name for guess in guesses] == [NAMES[i] for i in best.indices]
        assert [guess.probability for guess in guesses] == pytest.approx(best.values.tolist(), rel=1e-5)


def test_a_path_a_picture_an_array_and_a_tensor_are_one_image(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "photo.png")
    array = np.asarray(photo)
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds: list[Any] = [str(tmp_path / "photo.png"), tmp_path / "photo.png", photo, array, opaque, tensor]
    expected = prepare(photo)
    assert expected.shape == (1, 3, 32, 32)
    assert expected.dtype == torch.uint8
    for kind in kinds:
        assert torch.equal(prepare(kind), expected), type(kind)
    assert torch.equal(prepare(kinds), expected.expand(len(kinds), -1, -1, -1))
    assert torch.equal(prepare(np.stack([array] * 2)), expected.expand(2, -1, -1, -1))
    assert torch.equal(prepare(path for path in kinds[:2]), expected.expand(2, -1, -1, -1))


def test_grey_palette_and_cmyk_pictures_become_rgb(photo: Image.Image) -> None:
    grey = photo.convert("L")
    for same in (np.asarray(grey), np.asarray(grey)[:, :, None], grey, grey.convert("RGB")):
        assert torch.equal(prepare(same), prepare(grey))
    assert (prepare(grey)[0, 0] == prepare(grey)[0, 2]).all()
    for mode in ("P", "CMYK", "YCbCr", "LA", "1"):
        assert prepare(photo.convert(mode)).shape == (1, 3, 32, 32)


def test_the_largest_square_in_the_middle_is_kept() -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 200
    within = slice(3, -3)  # Pillow's filter reaches two pixels over the edge of what it crops
    assert (prepare(pixels)[..., within] == 200).all()
    assert (prepare(pixels.transpose(1, 0, 2))[..., within, :] == 200).all()


def test_shrinking_is_antialiased() -> None:
    checkerboard = (np.indices((320, 320)).sum(0) % 2 * 255).astype(np.uint8)
    assert ((prepare(checkerboard).float() - 127.5).abs() < 2).all()


def test_a_photo_is_turned_upright_as_its_exif_tag_says(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    photo.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(prepare(tmp_path / "turned.png"), prepare(photo))


def test_what_is_transparent_is_white() -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)  # invisible black
    pixels[:, :16] = (10, 20, 30, 255)
    seen = prepare(pixels)[0]
    assert (seen[:, :, 16:] == 255).all()
    assert (seen[:, :, :16] == torch.tensor([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("missing.png", "No such file or directory"),
        ("{tmp}/text.png", "it is none of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, or broken"),
        ("{tmp}/huge.pbm", "exceeds limit of"),
        ("{tmp}/half.png", "image file is truncated"),
        (np.zeros((8, 8, 3)), "it holds float64; use uint8 values"),
        (torch.rand(3, 8, 8), "it holds torch.float32; use uint8 values"),
        (np.zeros((8, 8, 2), np.uint8), "its shape is (8, 8, 2)"),
        (np.zeros((0, 8, 3), np.uint8), "its shape is (0, 8, 3)"),
        (np.zeros(8, np.uint8), "its shape is (8,)"),
        (Image.new("I;16", (8, 8)), "its mode is I;16, with more than 8 bits a colour"),
        ("a" * 5000, "File name too long"),
        ("nul\0.png", "null"),
        *((f"{{tmp}}/other.{name}", "it is none of JPEG") for name in ("dds", "eps", "qoi", "avif", "ico", "tga")),
        (None, "NoneType is no image"),
        (3, "int is no image"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image_is_named(bad: Any, words: str, model: s8.WideResNet, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "huge.pbm").write_bytes(b"P4 20000 20000 " + bytes(20000 * 2500))
    fine = Image.new("RGB", (40, 40))
    for name in ("dds", "eps", "qoi", "avif", "ico", "tga"):
        with contextlib.suppress(OSError, ValueError, KeyError):  # what this Pillow cannot write is no picture
            fine.save(tmp_path / f"other.{name}")
        (tmp_path / f"other.{name}").touch()
    bad = bad.format(tmp=tmp_path) if isinstance(bad, str) else bad
    with pytest.raises(s8.ImageError, match=re.escape(words.format(tmp=tmp_path))) as error:
        s8.predict(model, [fine, bad])
    which = repr(bad[:300]) if isinstance(bad, str) else "image 1"
    assert str(error.value).startswith(f"{which} cannot be used: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_nothing_but_the_listed_formats_is_decoded_and_no_other_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.jpg", "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript"))
    with pytest.raises(s8.ImageError, match="it is none of JPEG"):
        prepare(tmp_path / "picture.jpg")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_stop_a_prediction(kind: str, photo: Image.Image, tmp_path: Path) -> None:
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # turned
    resolution = struct.pack(">HHII", 0x011A, 10, 1, 38)  # a signed ratio
    exif = b"MM\0*\0\0\0\x08\0\2" + tag + resolution + bytes(4)
    turned = photo.rotate(90, expand=True)
    for name, ratio in (("negative", (-5, 1)), ("zero", (0, 0))):
        damaged = exif + struct.pack(">ii", *ratio)
        turned.save(tmp_path / name, kind, exif=b"Exif\0\0" + damaged, lossless=True)
        upright = Image.open(tmp_path / name).convert("RGB").rotate(-90, expand=True)
        assert torch.equal(prepare(tmp_path / name), prepare(Image.fromarray(np.asarray(upright)))), name
    for damaged in (exif[:21], b"MM\0+" + exif[4:], b"", bytes(40), b"\xff" * 40):
        photo.save(tmp_path / "cut", kind, exif=b"Exif\0\0" + damaged)
        assert prepare(tmp_path / "cut").shape == (1, 3, 32, 32)


def test_predicting_leaves_the_model_as_it_was(model: s8.WideResNet, photo: Image.Image) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        first, second = (s8.predict(model, photo) for _ in range(2))
        assert first == second  # no dropout, no batch statistics
        assert model.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_top_and_classes_choose_how_many_and_which_names(model: s8.WideResNet, photo: Image.Image) -> None:
    (all_of_them,) = s8.predict(model, photo, top=1000)
    assert sorted(guess.name for guess in all_of_them) == sorted(CLASSES)
    assert sum(guess.probability for guess in all_of_them) == pytest.approx(1, abs=1e-5)
    assert s8.predict(model, photo, top=3) == [all_of_them[:3]]
    for name, probability in s8.predict(model, photo, NAMES, top=1)[0]:
        assert name == NAMES[CLASSES.index(all_of_them[0].name)]
        assert probability == all_of_them[0].probability
    assert s8.predict(model, []) == []
    with pytest.raises(s8.ModelError, match="tells 100 classes apart and there are 2 names"):
        s8.predict(model, photo, ["cat", "dog"])
    for top in (-1, 0, 2.5, "5", None):
        with pytest.raises(ValueError, match="^top = .*: it must be a whole number of at least 1$"):
            s8.predict(model, photo, top=top)  # type: ignore[arg-type]


def test_a_guess_knows_its_superclass() -> None:
    assert s8.Guess("rocket", 0.5).superclass == "vehicles_2"
    assert s8.Guess("synthetic 07", 0.5).superclass is None


def test_superclasses_are_those_of_the_dataset(real: s8.Cifar100) -> None:
    for label, coarse in set(zip(real.test.labels.tolist(), real.test.coarse_labels.tolist(), strict=True)):
        assert s8.Guess(real.classes[label], 1.0).superclass == real.superclasses[coarse]


@pytest.mark.gpu
def test_it_runs_where_the_model_is(photo: Image.Image) -> None:
    here, there = small_model(), small_model().to("cuda")
    for mine, theirs in zip(s8.predict(here, photo)[0], s8.predict(there, photo)[0], strict=True):
        assert mine.name == theirs.name
        assert mine.probability == pytest.approx(theirs.probability, abs=1e-3)
    assert next(there.parameters()).device.type == "cuda"
