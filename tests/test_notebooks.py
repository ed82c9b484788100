"""The notebooks as they are stored; the first on a Colab that loses its machine, the second up to the Hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbval.plugin import get_sanitize_patterns

import s8lib as s8
from s8lib.metrics import predict_logits
from tests.hub_endpoints import WRITE, Commit, File, Repo
from tests.hub_runs import in_process
from tests.local_hub import serve
from tests.runs import assert_same_bits, outcome

ROOT = Path(s8.__file__).parents[1]
NOTEBOOKS = sorted(path.name for path in ROOT.glob("*.ipynb"))
MODEL, EPOCHS = "wrn-10-1", 4
RUN = f"quick-{EPOCHS}ep-{MODEL}-synthetic-seed0"


def outputs(notebook: nbformat.NotebookNode) -> str:
    return json.dumps([cell.get("outputs", []) for cell in notebook.cells])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_complete_and_hold_nothing_of_the_machine_they_were_made_on(name: str) -> None:
    notebook = nbformat.read(ROOT / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    text = re.sub(r'"image/(png|jpeg)": "[^"]*"|base64,[^"\\]*', "", outputs(notebook))
    unwanted = r"hf_\w{8}|/tmp|/home|/root|/work|/content|Traceback|Warning|\\r|object at 0x"
    assert not re.search(unwanted, text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_on_colab_with_a_gpu_and_a_table_of_contents(name: str) -> None:
    metadata = nbformat.read(ROOT / name, as_version=4).metadata
    assert metadata["accelerator"] == "GPU"
    assert metadata["colab"]["toc_visible"]


def code_of(name: str) -> list[str]:
    return [cell.source for cell in nbformat.read(ROOT / name, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize(
    ("name", "cells", "asked"),
    [
        ("session_8.ipynb", 15, {"DATA", "KEEP", "DISCONNECT_WHEN_DONE"}),
        ("save_to_hugging_face.ipynb", 10, {"DATA", "KEEP", "HUB_REPO"}),
    ],
)
def test_every_field_of_the_form_reaches_the_library_and_the_checks_come_before_anything_is_sent(
    name: str, cells: int, asked: set[str]
) -> None:
    code = code_of(name)
    assert len(code) <= cells
    (form,) = (source for source in code if source.startswith("# @title Settings"))
    fields = set(re.findall(r"(?m)^([A-Z_]+) = .*# @param", form))
    assert asked <= fields
    rest = "\n".join(code).replace("print(", "#")  # that a field is printed is not enough
    for field in fields:
        assert re.search(rf"(?m)^(?!{field} = .*@param)[^#]*\b{field}\b", rest), field
    text = "\n".join(code)
    assert text.index("s8.colab.checks()") < text.index("s8.HubPublisher(")


def test_whoever_looks_at_the_training_notebook_sees_a_real_run_first_and_its_curves_once() -> None:
    notebook = nbformat.read(ROOT / "session_8.ipynb", as_version=4)
    assert "*synthetic stand-in*" in notebook.cells[0].source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (reference,) = (cell for cell in code if "s8.report.reference_runs()" in cell.source)
    assert code.index(reference) < min(i for i, cell in enumerate(code) if "# @title Settings" in cell.source)
    assert re.search(r"final epoch \d+: [\d.]+% test top-1", json.dumps(reference.outputs))
    assert any("image/jpeg" in output.get("data", {}) for output in reference.outputs)
    text = "\n".join(cell.source for cell in code)
    assert text.count("LiveCurves(") + text.count("s8.report.curves(") + text.count("graph.jpg") == 1
    assert "may lie below" in "".join(cell.source for cell in notebook.cells), "train does not for every recipe"


def test_the_reference_runs_come_with_the_wheel() -> None:
    pytest.importorskip("setuptools", minversion="77")  # as pyproject.toml asks of whoever builds it
    listed = "from setuptools.dist import Distribution as D; d = D(); d.parse_config_files(); d.script_name = ''\n"
    listed += "b = d.get_command_obj('build_py'); b.finalize_options()\n"
    listed += "print(*(f'{source}/{file}' for _, source, _, files in b.data_files for file in files), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", listed], cwd=ROOT, capture_output=True, text=True, check=True)
    packed = {
        Path(line).relative_to("results").as_posix() for line in done.stdout.splitlines() if "results" in line
    }
    for run in (path.parent for path in (ROOT / "results").rglob("epoch_log.csv")):
        for name in ("epoch_log.csv", "recipe.json", "environment.json", "report.json", "graph.jpg"):
            assert not (run / name).exists() or (run / name).relative_to(ROOT / "results").as_posix() in packed


def test_of_a_compared_output_only_what_differs_between_runs_is_passed_over() -> None:
    patterns = get_sanitize_patterns((ROOT / "tests" / "nbval.cfg").read_text())
    assert len(patterns) == 6, "nbval passes silently over a section that it cannot read"

    def compared(text: str) -> str:
        for pattern, replacement in patterns:
            text = re.sub(pattern, replacement, text)
        return text

    row = (
        "    6*     1  0.051599        0      0  light"
        + "  2.8305  39.68     2.7043  33.40    67.40     1,855    3.3"
    )
    assert compared(row) == "    6     1  0.051599        0      0  light MEASURED"
    measured = ("light", 2.83, 39.68, 2.7, 33.4, 67.4, "1,855", 3.3)
    cells = "".join(f'<td style="x">{value}</td>' for value in measured)
    assert compared(f"<td>6*</td>{cells}") == '<td>6</td><td style="x">light MEASURED'
    assert compared("the best weights, epoch 9, from the run") == "the best weights, epoch BEST, from the run"
    assert compared("  epoch_005.pt        5.7 MB") == "  epoch_005.ptSIZE"
    assert compared("Params size (MB): 2.68") == "Params size (MB): 2.68"


def opened(name: str, **settings: object) -> nbformat.NotebookNode:
    """The code cells of a notebook, with values of its form as given, and a stand-in of one batch."""
    notebook = nbformat.read(ROOT / name, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (form,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for setting, value in settings.items():
        form.source, filled_in = re.subn(rf"(?m)^{setting} = .*", f"{setting} = {value!r}", form.source)
        assert filled_in == 1, setting
    form.source = FEW_IMAGES + form.source
    for cell in notebook.cells:
        cell.outputs = []
    return notebook


FEW_IMAGES = """
from s8lib.data import synthetic

few = synthetic.synthetic_cifar100(train=512, test=100)
synthetic.synthetic_cifar100 = lambda **_: few
"""


def execute(notebook: nbformat.NotebookNode, folder: Path, environment: dict[str, str]) -> str:
    """Run all cells in a new kernel; what they printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "S8_DATA": "synthetic"} | environment
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute(env=environment)
    return outputs(notebook)


class FakeColab:
    """A fake Colab, with a copy of `drive` if given: the machine goes with `lose_machine`, its Drive stays."""

    def __init__(self, folder: Path, drive: Path | None = None) -> None:
        self.content, self.drive = folder / "content", folder / "My Drive"
        self.content.mkdir(parents=True)
        if drive:
            shutil.copytree(drive, self.drive)
        else:
            self.drive.mkdir()
        self.kept = self.drive / "s8lib-runs" / RUN
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "fake_colab"), str(ROOT)]),
            "COLAB_RELEASE_TAG": "release",
            "FAKE_COLAB_CONTENT": str(self.content),
            "FAKE_COLAB_DRIVE": str(self.drive),
        }

    def lose_machine(self) -> None:
        shutil.rmtree(self.content)
        self.content.mkdir()

    def run_all(self, die_in_epoch: int | None = None) -> str:
        """Run the training notebook from the top, through training, in a new kernel; what it printed.

        In epoch `die_in_epoch` the kernel gets SIGKILL, once the epoch before is logged and its copy has ended.
        """
        notebook = opened("session_8.ipynb", MODEL=MODEL, EPOCHS=EPOCHS)
        (number,) = (number for number, cell in enumerate(notebook.cells) if "s8.train(" in cell.source)
        del notebook.cells[number + 1 :]
        if not die_in_epoch:
            return execute(notebook, self.content, self.environment)
        training = notebook.cells[number]
        training.source = DYING.format(epoch=die_in_epoch) + training.source.replace(
            "watch=s8.report.LiveCurves(recipe)", "watch=die"
        )
        with pytest.raises(DeadKernelError):
            execute(notebook, self.content, self.environment)
        return outputs(notebook)


DYING = """
import os, signal, threading

def die(log):
    for thread in threading.enumerate():
        if thread.name == "copy to Google Drive":
            thread.join()
    if len(log) == {epoch} - 1:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.01)

"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a machine that was not lost; its Drive is beside its content."""
    colab = FakeColab(tmp_path_factory.mktemp("uninterrupted"))
    colab.run_all()
    return colab.content / "runs" / RUN


def assert_same_end(run: Path, other: Path) -> None:
    ends = [outcome(folder) for folder in (run, other)]
    for end in ends:
        end["kept"] = None  # the checkpoints of before are not those of the same epochs
    assert_same_bits(*ends)


def epochs_kept(colab: FakeColab) -> list[int]:
    return sorted(s8.RunFolder(colab.kept).manifest().checkpoints)


def test_run_all_after_the_kernel_was_killed_and_its_machine_lost_ends_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: Path
) -> None:
    colab = FakeColab(tmp_path)
    colab.run_all(die_in_epoch=3)
    assert epochs_kept(colab) == [1, 2]
    colab.lose_machine()
    said = colab.run_all()
    assert "epoch 2 is brought to" in said
    assert "epoch   3/4" in said
    assert "epoch   2/4" not in said
    assert_same_end(colab.content / "runs" / RUN, uninterrupted)
    assert epochs_kept(colab) == [1, 2, 3, 4]
    assert_same_end(colab.kept, uninterrupted)


def test_a_run_from_drive_is_published_and_what_a_stranger_gets_is_the_runs_best(
    tmp_path: Path, uninterrupted: Path
) -> None:
    """Someone names another's repository, is refused, names their own; then edits the card and pushes again."""
    colab, name = FakeColab(tmp_path, uninterrupted.parents[2] / "My Drive"), f"tester/{RUN}"
    forms = ({"HUB_REPO": "tester/bert"}, {"PRIVATE": True, "SPACE": "tester/page", "LICENSE": "cc0-1.0"}, {})
    refused, first, second = (opened("save_to_hugging_face.ipynb", PUSH=True, **form).cells for form in forms)
    (push,) = (cell for cell in second if "hub.publish(" in cell.source)
    refused[2].metadata.tags = ["raises-exception"]
    with serve() as hub:
        at_hub = hub.environment(tmp_path / "home")
        hub.endpoints.repos["tester/bert"] = Repo(commits=[Commit("theirs", {"vocab.txt": File(b"", False)}, "")])
        (checkpoint,) = uninterrupted.glob(f"checkpoints/epoch_{EPOCHS:03d}.pt")
        hub.rate = checkpoint.stat().st_size / 2  # two seconds
        cells = [*refused[:3], *first[1:], BY_HAND, *second[1:3], push, "hub.publish(run)"]
        publishing = nbformat.v4.new_notebook()
        publishing.cells = [nbformat.v4.new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
        secret = {"FAKE_COLAB_SECRET": WRITE}
        said = execute(publishing, colab.content, colab.environment | at_hub | secret)
        hub.rate = None
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        dry = opened("save_to_hugging_face.ipynb", RUN=name, HUB_REPO=name, SPACE="tester/another")
        again = execute(dry, elsewhere, at_hub | {"HF_TOKEN": WRITE})
        images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        stranger = in_process(hub, tmp_path / "strangers home", STRANGER, name=name, images=images.tolist())

    (refusal,) = (output for output in refused[2].outputs if output.output_type == "error")
    assert refusal.traceback == [
        "RunError: tester/bert on the Hub holds files that are no run of s8lib's, such as vocab.txt: "
        "name another repository or revision or, to publish there, say overwrite"
    ]
    assert len(hub.endpoints.repos["tester/bert"].commits) == 1
    assert hub.endpoints.repos.keys() == {"tester/bert", name, "spaces/tester/page"}
    assert hub.endpoints.repos[name].private
    assert hub.endpoints.repos["spaces/tester/page"].private

    commit, last = hub.commits(name)  # by hand; publishing again changed nothing more, and nothing is no commit
    assert said.count(f"is on the Hub: {hub.url}/{name}/commit/") == 3
    assert f"checkpoints/epoch_{EPOCHS:03d}.pt" in hub.resume(name).files
    cards = [one.files["README.md"].content.decode() for one in hub.commits(name)]
    assert [re.findall("license: (.*)", card) for card in cards] == [["cc0-1.0"], ["cc-by-4.0"]]
    assert not [file for file in last.files if file.endswith(".pt")]
    for export in ("model.onnx", "model.pt2", "exports.json"):
        assert last.files[export] == commit.files[export]
    (page,) = hub.commits("spaces/tester/page")
    assert page.files["model.onnx"] == commit.files["model.onnx"]
    assert said.index(f"no repository is named: {name}") < said.index(f"is on the Hub: {hub.url}/{name}/commit")
    assert re.search(rf"epoch {EPOCHS} to {name} on the Hub: +[1-9]\d*%.*?B/s", said), "no bar"

    log = s8.EpochLog.read(uninterrupted / "epoch_log.csv")
    best_epoch, best = s8.RunFolder(uninterrupted).best_weights()
    assert best_epoch == log.best.epoch
    assert commit.files["model.safetensors"].content == (best / "model.safetensors").read_bytes()
    assert stranger["logits"] == predict_logits(s8.load_model(best), images, "fp32").tolist()
    assert stranger["figures"] == [round(log.best.test_acc, 2), round(log.best.test_top5, 2)]

    logged = f"logged in epoch {best_epoch}: {log.best.test_acc:.2f}%; now: {log.best.test_acc:.2f}%, as logged"
    for text, source in ((said, "from the Hub"), (again, "from the run")):
        assert logged in text
        assert f"epoch {best_epoch}, {source}: sha256 equal" in text
        assert "logits of 32 test images equal" in text
    assert f"epoch {EPOCHS} is on the Hub: {hub.url}/{name}/commit/{commit.oid}" in said
    assert f"{name} on the Hub: epoch {EPOCHS} is brought to" in again
    assert "PUSH is off: nothing was sent" in again

    written = (path for path in tmp_path.rglob("*") if path.is_file())
    assert not any(WRITE.encode() in content for content in (said.encode(), *map(Path.read_bytes, written)))


BY_HAND = """
from huggingface_hub import HfApi, hf_hub_download

card = Path(hf_hub_download(HUB_REPO, "README.md", token=token)).read_text()
card = card.replace("license: cc0-1.0", "license: cc-by-4.0").replace("<!--", "Of my hamsters.\\n\\n<!--", 1)
sent = {"path_or_fileobj": card.encode(), "path_in_repo": "README.md", "commit_message": "by hand"}
_ = HfApi(token=token).upload_file(repo_id=HUB_REPO, **sent)
"""
STRANGER = """
import torch
import s8lib as s8
from huggingface_hub import ModelCard, __version__
from s8lib.metrics import predict_logits

card = ModelCard.load(name)
if not __version__.startswith("1."):  # which asks huggingface.co, whatever HF_ENDPOINT says
    card.validate()
model = s8.WideResNet.from_pretrained(name)
out = {
    "logits": predict_logits(model, torch.tensor(images, dtype=torch.uint8), "fp32").tolist(),
    "figures": [result.metric_value for result in card.data.eval_results],
}
"""
