"""The card says what a run logged and nothing else, the Hub's own parser reads it, and its lines of code run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

import s8lib as s8
from s8lib.data.cifar100 import CIFAR100_FINGERPRINT, CLASSES
from s8lib.metrics import wilson_interval
from s8lib.report.card import BEGIN, END, Export, make_card, merged
from tests.hub_runs import NAME, in_process
from tests.local_hub import serve
from tests.runs import RECIPE, recipe, train
from tests.saves import Machine

VERSIONS = {"torch": "2.15.0", "onnx": "1.23.2"}
EXPORT = Export(Path("model.onnx"), "ONNX", VERSIONS, "onnxruntime 1.32.0", max_abs_difference=1.8e-7, opset=18)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: s8.Cifar100) -> s8.RunFolder:
    """A finished run on the synthetic stand-in."""
    path = tmp_path_factory.mktemp("card") / "run"
    train(path, tiny, recipe=recipe(epochs=2, phase1_epochs=1))
    return s8.RunFolder(path)


def on_cifar100(run: s8.RunFolder) -> s8.RunFolder:
    """The run, made to say that it was trained on the real data."""
    manifest = run.manifest()
    identity = (manifest.identity or {}) | {"data": {"sha256": CIFAR100_FINGERPRINT, "holdout": 0}}
    (run.path / "manifest.json").write_bytes(dataclasses.replace(manifest, identity=identity).seal())
    return run


def parsed(card: ModelCard, folder: Path) -> ModelCard:
    """The card as the Hub's client reads it back from a file."""
    card.save(folder / "README.md")
    return ModelCard.load(folder / "README.md")


def test_the_model_index_holds_the_logged_figures_of_the_best_weights(run: s8.RunFolder, tmp_path: Path) -> None:
    data = parsed(make_card(run, NAME), tmp_path).data
    best = run.log().best
    assert [(result.metric_type, result.metric_name, result.metric_value) for result in data.eval_results] == [
        ("accuracy", "top-1 accuracy (%)", best.test_acc),
        ("accuracy", "top-5 accuracy (%)", best.test_top5),
    ]
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "s8lib", "image-classification")
    assert data.model_name == "net"
    assert RECIPE.name in make_card(run, NAME).text


def test_best_and_final_epoch_stand_side_by_side_with_their_intervals(run: s8.RunFolder, tmp_path: Path) -> None:
    longer = Machine(tmp_path).until(5)
    longer.run.write_json("environment.json", run.sessions())
    text = make_card(longer.run, NAME).text
    number = r"([\d.]+)"
    pattern = rf"^\| (best|final)[^|]*\| {number} \| {number}% \| {number} to {number}% \| {number}% \|"
    rows = re.findall(pattern, text, re.MULTILINE)
    for (what, *figures), epoch, accuracy in zip(rows, (3, 5), (3.0, 2.5), strict=True):
        interval = wilson_interval(round(accuracy), 100)
        expected = [epoch, accuracy, *interval, 90.0]
        assert [float(figure) for figure in figures] == pytest.approx(expected, abs=0.005), what
    assert "chosen on the test set itself, which flatters it" in text
    assert "100 test images" in text


def test_a_run_on_other_data_says_so_and_claims_no_cifar100(run: s8.RunFolder, tmp_path: Path) -> None:
    card = parsed(make_card(run, NAME), tmp_path)
    assert "not a CIFAR-100 network.** It was trained and tested on other data (synthetic, seed 0)" in card.text
    assert card.data.datasets is None
    assert "cifar" not in str(card.data).lower()
    assert not any(name in str(card) for name in ("uoft-cs", "krizhevsky", "aquarium_fish", "willow_tree"))


def test_a_run_on_cifar100_claims_it_with_its_10000_test_images(tmp_path: Path) -> None:
    run = on_cifar100(Machine(tmp_path).until(3).run)
    card = parsed(make_card(run, NAME), tmp_path)
    assert card.data.datasets == ["uoft-cs/cifar100"]
    assert {(r.dataset_type, r.dataset_name) for r in card.data.eval_results} == {
        ("uoft-cs/cifar100", "CIFAR-100")
    }
    assert "not a CIFAR-100 network" not in card.text
    low, high = wilson_interval(300, 10_000)  # epoch 3 of that run: 3%
    assert f"| 3.00% | {low:.2f} to {high:.2f}% |" in card.text
    assert "krizhevsky2009learning" in card.text
    assert ", ".join(CLASSES) in card.text


def test_a_run_under_way_says_how_far_it_is_and_the_next_card_how_much_further(tmp_path: Path) -> None:
    run = Machine(tmp_path, recipe=recipe(epochs=10)).until(2)
    assert "recipe `test`, 2 of whose 10 epochs are done." in make_card(run.run, NAME).text
    run.until(7)
    assert "recipe `test`, 7 of whose 10 epochs are done." in make_card(run.run, NAME).text
    run.until(10)
    assert "epochs are done" not in make_card(run.run, NAME).text
    assert make_card(run.run, NAME, run.log).content == make_card(run.run, NAME).content


def test_a_run_that_stopped_early_is_not_said_to_go_on(tmp_path: Path) -> None:
    patient = recipe(epochs=10, phase1_epochs=1, warmup_epochs=0.5, patience=2)
    text = make_card(Machine(tmp_path, recipe=patient).until(5).run, NAME).text  # epoch 3 was the best
    assert "recipe `test`, which stopped early, after epoch 5 of 10." in text
    assert "To train on from these weights" in text


def test_what_the_folder_does_not_hold_is_not_shown(tmp_path: Path) -> None:
    run = Machine(tmp_path).until(1).run
    text = make_card(run, NAME).text
    assert not any(word in text for word in ("graph.jpg", "report.json", "Without s8lib", "onnx"))
    assert "How many test images there were is not known." in text
    (run.path / "graph.jpg").write_text("a picture")
    run.write_json("report.json", {})
    text = make_card(run, NAME, exports=[EXPORT]).text
    assert "(graph.jpg)" in text
    assert "`report.json`" in text
    assert "`model.onnx` is ONNX, opset 18, made with torch 2.15.0, onnx 1.23.2." in text
    assert "Its logits, by onnxruntime 1.32.0, are within 1.8e-07 of the network's." in text


def test_held_out_images_that_chose_the_best_epoch_are_named(run: s8.RunFolder, tmp_path: Path) -> None:
    held_out = s8.EpochLog(dataclasses.replace(row, holdout_acc=5.0) for row in run.log())
    assert "The best epoch was chosen on held-out training images." in make_card(run, NAME, held_out).text
    assert "holdout" not in make_card(run, NAME).text
    folder = Machine(tmp_path).until(1).run
    manifest = folder.manifest()
    identity = (manifest.identity or {}) | {"data": {"sha256": CIFAR100_FINGERPRINT, "holdout": 5000}}
    (folder.path / "manifest.json").write_bytes(dataclasses.replace(manifest, identity=identity).seal())
    text = make_card(folder, NAME).text
    assert ", run, holdout=5000)" in text
    assert "train --recipe recipe.json --holdout 5000`" in text


def test_every_machine_that_took_part_is_named_once(run: s8.RunFolder, tmp_path: Path) -> None:
    (session,) = run.sessions()
    elsewhere = session | {"device_name": "Tesla T4", "precision": "fp16", "compile": True}
    idle = elsewhere | {"device_name": "Xeon"}  # stopped before an epoch was done
    sessions = [session, session | {"from_epoch": 3}, idle | {"from_epoch": 5}, elsewhere | {"from_epoch": 5}]
    sessions += [idle | {"from_epoch": 7}]
    folder = Machine(tmp_path).until(6).run
    folder.write_json("environment.json", sessions)
    text = make_card(folder, NAME).text
    lines = [line for line in text.splitlines() if line.startswith("- from epoch")]
    assert len(lines) == 2
    assert lines[0].startswith(f"- from epoch 1: {session['device_name']}, {session['precision']}, ")
    assert lines[1].startswith("- from epoch 5: Tesla T4, fp16, ")
    assert lines[1].endswith(", compiled")
    assert "6 epochs took 0.1 minutes" in text  # a second each


@pytest.mark.parametrize("name", ["from_epoch", "test_images"])
def test_an_entry_of_the_environment_in_which_a_count_is_none_is_passed_over(tmp_path: Path, name: str) -> None:
    folder = Machine(tmp_path).until(2).run
    whole = {"device_name": "Xeon", "test_images": 100}
    for count in (None, "3", 1.5, 0, -1, True, 10**400):
        folder.write_json("environment.json", [whole, {"device_name": "?", name: count}])
        assert folder.sessions() == [whole], count
    assert "- from epoch 1: Xeon" in make_card(folder, NAME).text


def test_of_the_card_that_is_there_what_is_theirs_stays_and_what_was_another_runs_goes(
    run: s8.RunFolder, tmp_path: Path
) -> None:
    ours, before = make_card(run, NAME).content, make_card(on_cifar100(Machine(tmp_path).until(1).run), NAME)
    before.data.tags = [*(before.data.tags or []), "wrn-28-10", "hamsters"]
    new = ModelCard(merged(f"{before.content}\n\nOf my hamsters.\n", ours))
    assert new.data.datasets is None
    assert not {"cifar-100", "wrn-28-10"} & {*(new.data.tags or [])}
    assert "hamsters" in (new.data.tags or [])
    assert new.text.strip().endswith("Of my hamsters.")
    for mark in (BEGIN, END):
        with pytest.raises(ValueError, match="has lost one of the lines .*: bring it back"):
            merged(before.content.replace(mark, ""), ours)


def test_every_setting_of_the_recipe_is_in_its_table(run: s8.RunFolder) -> None:
    text = make_card(run, NAME).text
    for name, value in json.loads((run.path / "recipe.json").read_text()).items():
        by_phase = list(dict.fromkeys(value)) if isinstance(value, list) else [value]
        assert f"| `{name}` | {' then '.join(map(str, by_phase))} |" in text


def test_each_network_is_loaded_by_its_class_and_cites_its_paper(tmp_path: Path) -> None:
    wide = make_card(Machine(tmp_path / "wide").until(1).run, NAME).text
    assert f's8.WideResNet.from_pretrained("{NAME}")' in wide
    assert "zagoruyko2016wide" in wide
    residual = make_card(Machine(tmp_path / "deep", recipe=recipe(model="resnet-42")).until(1).run, NAME).text
    assert f's8.ResNet42.from_pretrained("{NAME}")' in residual
    assert "he2016deep" in residual
    assert "zagoruyko" not in residual
    fast = make_card(Machine(tmp_path / "fast", recipe=recipe(model="resnet-11")).until(1).run, NAME).text
    assert f's8.ResNet11.from_pretrained("{NAME}")' in fast
    assert "jordan2024airbench" in fast


PUBLISH_TWICE = """
import pickle, torch
from pathlib import Path
import s8lib as s8
from s8lib.models.weights import save_model
from huggingface_hub import HfApi, ModelCard, __version__
if not __version__.startswith("1."):  # which asks huggingface.co, whatever HF_ENDPOINT says
    ModelCard.load(folder + "/README.md").validate()
api = HfApi(token=token)
api.create_repo(name)
api.upload_file(path_or_fileobj=folder + "/README.md", path_in_repo="README.md", repo_id=name)
commits = []
for values in (1.0, 2.0):
    model = s8.load_model(folder + "/best")
    torch.nn.init.constant_(model.fc.bias, values)
    save_model(model, Path(folder, "best"))
    commits.append(api.upload_folder(repo_id=name, folder_path=folder + "/best").oid)
"""
LOAD = """
def refuse(*_, **__): raise AssertionError("a pickle was opened")
torch.load = pickle.load = pickle.loads = pickle.Unpickler = refuse
out = [float(s8.WideResNet.from_pretrained(name, revision=commit).fc.bias[0]) for commit in [*commits, None]]
"""
THE_CARDS_LINES = """
import os
os.chdir(folder)
exec(code)
out.append(type(model).__name__)
"""


def test_the_hub_validates_the_card_and_its_lines_load_any_revision_without_a_pickle(
    run: s8.RunFolder, tmp_path: Path
) -> None:
    copy = on_cifar100(s8.RunFolder(shutil.copytree(run.path, tmp_path / "run")))
    card = make_card(copy, NAME)
    card.save(copy.path / "README.md")
    Image.new("RGB", (50, 40)).save(copy.path / "photo.jpg")
    (code,) = re.findall(r"```python\n(import s8lib.*?)```", card.text, re.DOTALL)
    script = PUBLISH_TWICE + LOAD + THE_CARDS_LINES
    with serve() as hub:
        loaded = in_process(hub, tmp_path / "home", script, folder=copy.path, code=code)
        assert "validate_yaml" in hub.requests  # on upload, too
    assert loaded == [1.0, 2.0, 2.0, "WideResNet"]
