"""The demo in a real browser: an image goes in, its class comes out first."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

import s8lib as s8
from s8lib.data.cifar100 import CLASSES
from s8lib.publish.demo import build_demo, example_images
from tests.browser import fits, requests_of, text_of
from tests.hub_runs import ROOT
from tests.runs import recipe, small_model, train

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the demo needs the extra `demo`", allow_module_level=True)

GRADIO = tuple(map(int, version("gradio").split(".")[:2]))
LABEL = "[data-testid=label-output-value]"
NAMES = tuple("my cat" if name == "mouse" else name for name in CLASSES)  # which the model alone knows


@pytest.fixture(scope="module")
def data() -> s8.Cifar100:
    """Four classes of the synthetic stand-in, far apart; one has a name that CIFAR-100 does not know."""
    whole = s8.synthetic_cifar100(seed=0, train=4000, test=1000)
    train, test = (part.subset((part.labels % 25 == 0).nonzero().flatten()) for part in (whole.train, whole.test))
    return dataclasses.replace(whole, train=train, test=test, classes=NAMES)


@pytest.fixture(scope="module")
def model(data: s8.Cifar100) -> s8.WideResNet:
    """Trained for a few seconds: it tells the four classes apart."""
    model = small_model()
    still = {"mixup_alpha": 0.0, "dropout": 0.0, "augmentation": "none", "label_smoothing": 0.0, "image_size": 32}
    short = recipe(epochs=12, phase1_epochs=12, cycle_epochs=12, batch_size=20, **still)
    log = train(None, data, model=model, recipe=short, precision="fp32")
    assert log[-1].test_acc > 80
    return model


# In a process of its own: gradio leaves event loops and sockets to the garbage collector.
SERVE = """
import socket, sys
look_up = socket.getaddrinfo
def note(host, *arguments, **options):
    with open("hosts.txt", "a") as file:
        print(host, file=file)
    return look_up(host, *arguments, **options)
socket.getaddrinfo = note
import s8lib as s8
from s8lib.publish.demo import build_demo
demo = build_demo(s8.load_model("model"))
_, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, share=False, server_name="127.0.0.1")
print(address, flush=True)
demo.block_thread()
"""


class Page(NamedTuple):
    """Where the demo is, and the file with the hosts that its server looks up."""

    address: str
    hosts: Path


@pytest.fixture(scope="module")
def page(model: s8.WideResNet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("demo")
    model.save_pretrained(folder / "model")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(folder / "uploads")}
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield Page(server.stdout.readline().strip(), folder / "hosts.txt")
        server.terminate()


def examples_on(browser: Any, page: Page) -> list[Any]:
    """The examples of the page, once it is there; and with it the place to drop an image."""
    browser.get(page.address)
    text_of(browser, "h1")
    return browser.find_elements("css selector", ".gallery-item")


def upload(browser: Any, page: Page, file: Path) -> None:
    examples_on(browser, page)
    browser.find_element("css selector", "input[type=file]").send_keys(str(file))


def test_an_uploaded_image_shows_its_class_first_with_bars_and_superclass(
    browser: Any, page: Page, model: s8.WideResNet, data: s8.Cifar100, tmp_path: Path
) -> None:
    for label, superclass in ((25, "household furniture"), (50, None)):
        index = int((data.test.labels == label).nonzero()[0])
        picture = Image.fromarray(data.test.images[index].permute(1, 2, 0).numpy())
        picture.save(tmp_path / "picture.png")
        (guesses,) = s8.predict(model, tmp_path / "picture.png")
        assert guesses[0].name == NAMES[label]

        upload(browser, page, tmp_path / "picture.png")
        assert text_of(browser, LABEL) == NAMES[label]
        text = browser.find_element("tag name", "body").text
        shown = [guess.name.replace("_", " ") for guess in guesses]
        places = [text.index(f"\n{name}\n") for name in shown]
        assert places == sorted(places)
        assert f"\n{guesses[0].probability:.0%}" in text
        said = f"Superclass of the first: {superclass}" if superclass else "Superclass"
        assert (said in text) == bool(superclass)


def test_an_example_is_classified_by_a_click(browser: Any, page: Page, model: s8.WideResNet) -> None:
    examples = examples_on(browser, page)
    assert len(examples) == len(example_images())
    examples[1].click()
    (guesses,) = s8.predict(model, example_images()[1])
    assert text_of(browser, LABEL) == guesses[0].name.replace("_", " ")


def test_what_is_no_usable_image_gets_a_sentence(browser: Any, page: Page, tmp_path: Path) -> None:
    Image.new("I;16", (40, 40)).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no picture")
    huge = b"P4 20000 20000 " + bytes(20000 * 2500)
    (tmp_path / "huge.pbm").write_bytes(huge)
    for name, words in (("deep.png", "8 bits"), ("text.png", "none of JPEG, PNG"), ("huge.pbm", "exceeds limit")):
        upload(browser, page, tmp_path / name)
        said = text_of(browser, ".toast-body")
        assert "This image cannot be used: " in said
        assert words in said


def test_the_page_fits_a_phone(browser: Any, page: Page) -> None:
    browser.set_window_size(390, 844)
    assert examples_on(browser, page)
    assert fits(browser)
    browser.set_window_size(1280, 900)


@pytest.mark.skipif(GRADIO < (6, 17), reason="its page loads fonts and a script from elsewhere")
def test_neither_page_nor_server_talks_to_anyone_else(browser: Any, page: Page) -> None:
    assert examples_on(browser, page)
    requested = {request["url"] for request in requests_of(browser)}
    assert any(url.startswith(page.address) for url in requested)
    assert not [url for url in requested if url.startswith(("http", "ws")) and not url.startswith(page.address)]
    assert set(page.hosts.read_text().split()) <= {"127.0.0.1", "localhost", "None"}


def test_the_examples_are_drawn() -> None:
    pictures = example_images()
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (512, 512))}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    for picture, again in zip(pictures, example_images(), strict=True):
        assert picture.tobytes() == again.tobytes()


def test_without_gradio_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match="the demo needs gradio: pip install gradio"):
        build_demo(small_model())
