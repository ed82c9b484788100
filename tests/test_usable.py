"""Whoever finds a published run can install s8lib from there, go on with it, or open it with transformers.

And what people have written into its card stays.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

import s8lib as s8
from s8lib import cli
from s8lib.publish.demo import example_images
from s8lib.report.card import BEGIN, END
from tests.hub_endpoints import WRITE, Commit, File, Repo
from tests.hub_runs import NAME, USABLE, WHEEL, in_process
from tests.local_hub import LocalHub, client_of, serve
from tests.runs import MODEL, Cut, train
from tests.saves import Machine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> s8.RunFolder:
    """A run that was cut after the first of its two epochs, on the stand-in; two pictures lie beside it."""
    path = tmp_path_factory.mktemp("usable") / "run"
    short = s8.choose_recipe("quick", model=MODEL, epochs=2, device="cpu")
    short = short.with_settings({"batch_size": 500, "image_size": 8})
    data = s8.choose_data("synthetic")
    with pytest.raises(Cut):
        train(path, data, 1, recipe=short, model=s8.build_model(MODEL, seed=short.seed))
    example_images()[0].resize((301, 203)).save(path.parent / "photo.png")
    Image.fromarray(data.test.images[0].permute(1, 2, 0).numpy()).save(path.parent / "small.png")
    return s8.RunFolder(path)


@pytest.fixture(scope="module")
def hub(run: s8.RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub where the run is published."""
    with serve() as hub, client_of(hub, tmp_path_factory.mktemp("home")):
        s8.HubPublisher(NAME, token=WRITE, wait=60).publish(run)
        yield hub


def text_of(commit: Commit, name: str = "README.md") -> str:
    return commit.files[name].content.decode()


def test_the_cards_first_lines_install_s8lib_from_there_predict_and_go_on_training(
    hub: LocalHub, run: s8.RunFolder, tmp_path: Path
) -> None:
    _, install, _, predict, _, go_on, *_ = text_of(hub.commits(NAME)[-1]).split("```")
    command, address = install.strip().rsplit(" ", 1)
    assert command == "pip install"
    options = ("--no-deps", "--no-index", "--quiet", "--target", tmp_path / "site")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, address], check=True)
    private = f"`hf download {NAME} {WHEEL} --local-dir .` and `pip install ./{WHEEL}`"
    assert private in text_of(hub.commits(NAME)[-1])
    lines = "import os\nos.chdir(folder); sys.path.insert(0, site); os.environ.pop('S8_DATA', None)\n"
    for block in (predict, go_on):
        lines += block.removeprefix("python\n").replace("photo.jpg", "photo.png")
    lines += "out = [s8.__file__, s8.__version__, len(run.log())]"
    values = {"folder": run.path.parent, "site": tmp_path / "site"}
    where, version, epochs = in_process(hub, tmp_path / "home", lines, **values)
    assert Path(where).is_relative_to(tmp_path / "site")
    assert (version, epochs) == (s8.__version__, 2)


TRANSFORMERS = """
import os
os.chdir(folder)
import s8lib as s8, torch
from s8lib.data.augment import normalize
from s8lib.data.pictures import prepare
ours, expected = s8.load_model(name), {}
pictures = ["photo.png", "small.png"]
with torch.inference_mode():
    logits = [ours(normalize(prepare(picture).float() / 255)) for picture in pictures]
guesses = [[guess.name for guess in s8.predict(ours, picture)[0]] for picture in pictures]
for module in [module for module in sys.modules if module.partition(".")[0] == "s8lib"]:
    sys.modules[module] = None
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
theirs = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
classify = pipeline("image-classification", model=name, trust_remote_code=True)
out = {"differences": [], "guesses": guesses, "classified": []}
for picture, expected in zip(pictures, logits):
    with torch.inference_mode():
        found = theirs(**processor(Image.open(picture), return_tensors="pt")).logits
    out["differences"].append(float((found - expected).abs().max()))
    out["classified"].append([answer["label"] for answer in classify(picture)])
theirs.save_pretrained("tuned")
"""


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_opens_what_was_published_and_answers_the_same(
    hub: LocalHub, run: s8.RunFolder, tmp_path: Path
) -> None:
    told = in_process(hub, tmp_path / "home", TRANSFORMERS, folder=run.path.parent)
    assert max(told["differences"]) == 0
    assert told["classified"] == told["guesses"]


def test_its_config_names_the_classes_it_was_trained_on_and_the_code_that_opens_it(
    hub: LocalHub, run: s8.RunFolder
) -> None:
    files = hub.commits(NAME)[-1].files
    config = json.loads(files["config.json"].content)
    names = s8.choose_data("synthetic").classes
    assert [config["id2label"][str(place)] for place in range(100)] == [*names]
    assert [config["label2id"][name] for name in names] == [*range(100)]
    assert (config["model_type"], config["architectures"]) == ("wide-resnet", ["WideResNetForImageClassification"])
    kept = json.loads((run.path / "best/config.json").read_text())
    assert kept == {name: config[name] for name in config if name not in ("architectures", "auto_map")}
    prepares = json.loads(files["preprocessor_config.json"].content)["auto_map"]
    for reference in (config["auto_map"] | prepares).values():
        module, _, name = reference.partition(".")
        assert f"class {name}(" in files[f"{module}.py"].content.decode()
    assert [name for name in files if name.endswith((".bin", ".pkl"))] == []


def test_without_transformers_no_file_of_theirs_is_sent(hub: LocalHub, tmp_path: Path) -> None:
    run = Machine(tmp_path / "run").until(1).run
    s8.HubPublisher("tester/plain", token=WRITE, wait=60, transformers=False).publish(run)
    commit = hub.commits("tester/plain")[-1]
    assert not (USABLE - {WHEEL}) & commit.files.keys()
    assert "transformers" not in text_of(commit)
    assert any(name.endswith(".whl") for name in commit.files)


def edited(hub: LocalHub, name: str, change: dict[str, str]) -> None:
    """What someone makes of the card on the Hub's page."""
    repo = hub.endpoints.repos[name]
    card = text_of(repo.head)
    for before, after in change.items():
        assert card.count(before) == 1, before
        card = card.replace(before, after)
    files = repo.head.files | {"README.md": File(card.encode(), lfs=False)}
    repo.commits.append(Commit("a hand's", files, repo.head.oid))


def test_what_people_write_around_our_part_of_the_card_stays_and_so_do_licence_and_metadata_of_theirs(
    hub: LocalHub, tmp_path: Path
) -> None:
    run = Machine(tmp_path / "run").until(1)
    name = "tester/edited"
    s8.HubPublisher(name, token=WRITE, wait=60).publish(run.run)
    assert ModelCard(text_of(hub.commits(name)[-1])).data.license == "mit"
    change = {
        "license: mit": "license: apache-2.0\nthumbnail: cat.png",
        "- pytorch\n": "- pytorch\n- cats\n",
        BEGIN: f"Of *my* cats \\1.\n\n{BEGIN}",
        END: f"{END}\n\n## Thanks\n\nTo them.",
        "## Results": "## Lies",
    }
    edited(hub, name, change)
    run.until(3)
    s8.HubPublisher(name, token=WRITE, wait=60).publish(run.run)
    text = text_of(hub.commits(name)[-1])
    data = ModelCard(text).data
    assert (data.license, data.to_dict()["thumbnail"]) == ("apache-2.0", "cat.png")
    assert data.tags == ["image-classification", "pytorch", "wrn-28-10", "cats"]
    assert data.eval_results[0].metric_value == 3.0
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    assert before.endswith("---\n\nOf *my* cats \\1.\n\n")
    assert after == "\n\n## Thanks\n\nTo them.\n"
    assert "## Lies" not in text
    s8.HubPublisher(name, token=WRITE, wait=60, license="cc0-1.0").publish(run.run)
    assert ModelCard(text_of(hub.commits(name)[-1])).data.license == "cc0-1.0"


def with_card(card: bytes) -> Repo:
    return Repo(commits=[Commit("initial commit", {"README.md": File(card, lfs=False)}, "")])


CARDS = {  # what is there, and what stays of it before our part
    "# My page\n\nIn my words.": "# My page\n\nIn my words.\n\n",
    "---\nlicense: mit\n---\n\n# wrn\n\nAn image classifier, trained with s8lib by the recipe `test`.\n": "",
}


@pytest.mark.parametrize(("there", "stays"), CARDS.items(), ids=["someone's", "of the version before"])
def test_a_card_without_our_marks_is_kept_above_our_part_unless_it_was_ours(
    hub: LocalHub, tmp_path: Path, there: str, stays: str
) -> None:
    name = f"tester/card{len(stays)}"
    hub.endpoints.repos[name] = with_card(there.encode())
    s8.HubPublisher(name, token=WRITE, wait=60).publish(Machine(tmp_path / "run").until(1).run)
    card = ModelCard(text_of(hub.commits(name)[-1]))
    assert card.text.strip().startswith(f"{stays}{BEGIN}")


def test_a_card_whose_metadata_cannot_be_read_is_left_there_and_said(hub: LocalHub, tmp_path: Path) -> None:
    there, name, lines = b"---\nlicense: [\n---\n", "tester/broken", []
    hub.endpoints.repos[name] = with_card(there)
    publishing = s8.HubPublisher(name, token=WRITE, wait=60, say=lines.append)
    with contextlib.suppress(s8.HubError):
        publishing.publish(Machine(tmp_path / "run", lines=lines).until(1).run)
    assert "the metadata at the top of its README.md cannot be read (" in "".join(lines)
    assert hub.commits(name) == []


def test_the_publish_command_makes_the_exports_it_is_asked_for_and_keeps_them_when_it_is_not(
    hub: LocalHub, run: s8.RunFolder
) -> None:
    pytest.importorskip("onnxscript", reason="exporting needs the extra `export`")
    name = "tester/exported"
    publish = ["publish", "--run", str(run.path), "--hub-repo", name, "--hub-private", "--license"]
    for asked in (["cc0-1.0", "--export", "onnx,program"], ["cc-by-4.0"], ["cc-by-4.0"]):
        assert cli.main([*publish, *asked]) == 0
    assert hub.endpoints.repos[name].private
    made, kept = hub.commits(name)  # where nothing changes, none is made
    for file in ("model.onnx", "model.pt2"):
        assert kept.files[file] == made.files[file]
        assert kept.files[file].content == (run.path / file).read_bytes()
        assert f"`{file}` is " in text_of(kept)
    assert [ModelCard(text_of(one)).data.license for one in (made, kept)] == ["cc0-1.0", "cc-by-4.0"]


def test_push_to_hub_says_which_call_to_use(tmp_path: Path) -> None:
    model = s8.build_model(MODEL)
    for push in (lambda: model.push_to_hub(NAME), lambda: model.save_pretrained(tmp_path, push_to_hub=True)):
        with pytest.raises(s8.ModelError, match=r"s8.HubPublisher\(.*\).publish\(.*s8lib publish --run"):
            push()
