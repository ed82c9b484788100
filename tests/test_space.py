"""The page on the Hub in a real browser: it answers as s8.predict does, and no picture leaves the device."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image

import s8lib as s8
from s8lib.data.pictures import prepare
from s8lib.publish.demo import RUNTIME, create_space, example_images, write_space
from s8lib.publish.export import export_onnx
from tests.browser import fits, requests_of, text_of
from tests.hub_endpoints import WRITE, Commit, File, Repo
from tests.hub_runs import GIT, NAME, ROOT
from tests.local_hub import LocalHub

SPACE = f"spaces/{NAME}"
PIXELS = "return [...document.getElementById('seen').getContext('2d').getImageData(0, 0, 32, 32).data]"


@pytest.fixture(scope="module")
def model() -> s8.WideResNet:
    """As random as networks come, but sure of its answers."""
    model = s8.WideResNet(10, 1, 100)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
        torch.nn.init.normal_(model.fc.weight, std=0.4)
    return model.eval()


class Static(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def runtime() -> Path:
    """The pinned onnxruntime-web, from npm's registry; kept for the next time."""
    name = re.findall(r"onnxruntime-web@[\d.]+", RUNTIME)[0]
    kept = ROOT / "build" / name
    if not kept.exists():
        if not shutil.which("npm"):
            pytest.skip(f"the page needs {name}, and there is no npm to get it")
        kept.parent.mkdir(exist_ok=True)
        packed = subprocess.run(["npm", "pack", "--silent", name], cwd=kept.parent, capture_output=True, text=True)
        if packed.returncode:
            pytest.skip(f"the page needs {name}, which cannot be had from npm: {packed.stderr[-200:]}")
        with tarfile.open(kept.parent / packed.stdout.strip()) as archive:
            archive.extractall(kept, filter="data")
    return kept / "package" / "dist"


@pytest.fixture(scope="module")
def space(model: s8.WideResNet, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript")):
        pytest.skip("the page needs the extra `export`")
    folder = tmp_path_factory.mktemp("space")
    onnx = export_onnx(model, folder / "model.onnx").path
    write_space(folder / "page", NAME, model.classes, onnx, runtime="/runtime/")
    (folder / "page/runtime").symlink_to(runtime)
    return folder / "page"


@pytest.fixture(scope="module")
def address(space: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Static, directory=space)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def answers(browser: Any, address: str, picture: Path) -> list[tuple[str, str]]:
    """What the page says of a picture: five names with their percentages, likeliest first."""
    browser.get(address)
    browser.find_element("css selector", "input[type=file]").send_keys(str(picture))
    text_of(browser, "li")
    rows = [row.text.split("\n") for row in browser.find_elements("css selector", "li")]
    return [(name, percent) for name, percent in rows]


def pictures(folder: Path) -> Iterator[Path]:
    """Of several shapes and kinds: odd, transparent, turned by its EXIF tag, smaller than the network's."""
    apple, sea, mountain, road = example_images()
    apple.resize((301, 202)).save(folder / "odd.png")
    sea.resize((640, 1100)).save(folder / "tall.webp")
    mountain.putalpha(Image.linear_gradient("L").resize(mountain.size))
    mountain.save(folder / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    road.resize((900, 400)).save(folder / "turned.jpg", exif=exif, quality=95)
    apple.resize((20, 27)).save(folder / "small.png")
    yield from sorted(folder.iterdir())


def test_a_picture_of_any_kind_gets_the_answer_of_predict_and_leaves_the_device_by_no_request(
    browser: Any, address: str, model: s8.WideResNet, tmp_path: Path
) -> None:
    requests_of(browser)
    for picture in pictures(tmp_path):
        (guesses,) = s8.predict(model, picture)
        shown = answers(browser, address, picture)
        assert len(shown) == 5
        assert shown[0][0] == guesses[0].name.replace("_", " "), picture
        for (_, percent), guess in zip(shown, guesses, strict=True):
            assert float(percent.rstrip("%")) == pytest.approx(100 * guess.probability, abs=2), picture
        pixels = torch.tensor(browser.execute_script(PIXELS), dtype=torch.uint8).reshape(32, 32, 4)
        apart = (pixels[:, :, :3].permute(2, 0, 1).float() - prepare(picture)[0]).abs()
        assert (apart.mean() < 0.1, apart.max() <= 4) == (True, True), picture
        superclass = str(guesses[0].superclass).replace("_", " ")
        assert text_of(browser, "#superclass") == f"Superclass of the first: {superclass}"
    asked = requests_of(browser)
    assert {request["method"] for request in asked} == {"GET"}
    assert {request["url"].startswith((address, "blob:")) for request in asked} == {True}


def test_an_example_is_classified_by_a_click(browser: Any, address: str, model: s8.WideResNet) -> None:
    browser.get(address)
    text_of(browser, "#count")
    for button, picture in zip(
        browser.find_elements("css selector", "#examples button"), example_images(), strict=True
    ):
        button.click()
        (guesses,) = s8.predict(model, picture)
        name = guesses[0].name.replace("_", " ")
        assert text_of(browser, f"li[data-name='{name}']:first-child").startswith(name)


def test_what_is_no_picture_gets_a_sentence(browser: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    browser.get(address)
    browser.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "text.png"))
    assert "Save it as a PNG or JPEG" in text_of(browser, "#problem")


def test_it_fits_a_phone(browser: Any, address: str, tmp_path: Path) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    example_images()[0].resize((2000, 300)).save(tmp_path / "wide.png")
    assert answers(browser, address, tmp_path / "wide.png")
    assert browser.execute_script("return window.innerWidth") == 390
    assert fits(browser)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# --- on the Hub --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_text("a network")
    return write_space(tmp_path / "space", NAME, ["apple", "my cat"], tmp_path / "model.onnx")


def files_of(hub: LocalHub) -> set[str]:
    return set(hub.endpoints.repos[SPACE].head.files) - GIT


def test_a_space_is_static_names_its_model_and_knows_the_classes(folder: Path) -> None:
    data = SpaceCard.load(folder / "README.md").data
    assert (data.sdk, data.models, data.app_file) == ("static", [NAME], "index.html")
    about = json.loads((folder / "s8lib.json").read_text())
    assert about["classes"] == ["apple", "my cat"]
    assert about["superclasses"] == {"apple": "fruit_and_vegetables"}
    assert re.fullmatch(r"https://cdn\.jsdelivr\.net/npm/onnxruntime-web@\d+\.\d+\.\d+/dist/", about["runtime"])


def test_a_space_holds_the_folder_and_takes_the_place_of_the_one_of_before(hub: LocalHub, folder: Path) -> None:
    gradio = ("app.py", "requirements.txt", "s8lib/__init__.py", "s8lib/publish/demo.py", "README.md")
    before = {name: File(b"before", lfs=False) for name in gradio}
    hub.endpoints.repos[SPACE] = Repo(commits=[Commit("initial commit", before, "")])
    for _ in range(2):
        assert create_space(NAME, folder, WRITE).endswith(NAME)
        assert files_of(hub) == {path.name for path in folder.iterdir()}


def test_a_new_space_is_private_if_asked_and_only_then(hub: LocalHub, folder: Path) -> None:
    for private, name in ((False, "tester/shown"), (True, "tester/hidden")):
        create_space(name, folder, WRITE, private)
        assert hub.endpoints.repos[f"spaces/{name}"].private is private


def test_someone_elses_space_is_left_alone_unless_it_is_to_be_overwritten(hub: LocalHub, folder: Path) -> None:
    theirs = {"index.html": File(b"theirs", lfs=False)}
    hub.endpoints.repos[SPACE] = Repo(commits=[Commit("initial commit", theirs, "")])
    with pytest.raises(s8.HubError, match="is another Space, with index.html: name a new one, or say overwrite"):
        create_space(NAME, folder, WRITE)
    assert hub.commits(SPACE) == []
    create_space(NAME, folder, WRITE, overwrite=True)
    assert files_of(hub) == {path.name for path in folder.iterdir()}


REFUSALS: dict[int | str, str] = {
    401: "tester/net: the Hub answered 401, no, <token>; this token is not valid: make one with",
    402: "tester/net: the Hub answered 402, no, <token>; it wants this account to pay for that",
    403: "tester/net: the Hub answered 403, no, <token>; this token may not do this",
    500: "tester/net: the Hub answered 500, no, <token>",
    "reset": "tester/net: ",
}


def test_what_the_hub_refuses_is_one_sentence_without_the_token(hub: LocalHub, folder: Path) -> None:
    for how, words in REFUSALS.items():
        hub.fail("create", how, message=f"no, {WRITE}")
        with pytest.raises((s8.HubError, ConnectionError)) as raised:
            create_space(NAME, folder, WRITE)
        assert words in str(raised.value)
        assert WRITE not in str(raised.value)
