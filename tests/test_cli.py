"""The commands do what the README says, as processes of their own: exit codes, messages, kills, ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from unittest.mock import Mock, call

import pytest
import torch

import s8lib as s8
from s8lib import cli
from s8lib.data import synthetic
from s8lib.machine.ranks import Ranks
from s8lib.publish.demo import example_images
from s8lib.session import check_fit
from tests.hub_runs import until
from tests.runs import MODEL, assert_same_bits, command, finish, outcome, recipe, small_model

# 3 epochs of 20 steps on the stand-in, with a network that makes them a second or so each.
TRAIN = (
    "train", "--data", "synthetic", "--recipe", "quick", "--model", MODEL, "--epochs", "3", "--device", "cpu",
    "--set", "batch_size=124", "--set", "image_size=12",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("whole") / "run"
    code, output = finish(command(*TRAIN, "--run", run))
    assert code == 0, output
    return run, output


def start_and_wait_for_epoch(run: Path, epoch: int) -> subprocess.Popen[str]:
    """Start the run of `whole_run` and return in the middle of the epoch after `epoch`."""
    process = command(*TRAIN, "--run", run)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"epoch   {epoch}/"):
            time.sleep(0.1)
            return process
    raise AssertionError(f"the run ended before epoch {epoch}")


def test_a_run_killed_in_mid_epoch_and_started_again_equals_an_uninterrupted_one(
    tmp_path: Path, whole_run: tuple[Path, str]
) -> None:
    run = tmp_path / "run"
    process = start_and_wait_for_epoch(run, 1)
    until((run / "epoch_log.csv").exists)  # as soon as that epoch is saved, two epochs before the last
    process.kill()
    finish(process)
    assert 1 <= len(s8.EpochLog.read(run / "epoch_log.csv")) < 3
    assert cli.main([*TRAIN, "--run", str(run)]) == 0
    assert_same_bits(outcome(run), outcome(whole_run[0]))


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_stop_at_once_and_tell_how_to_go_on(
    tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    process = start_and_wait_for_epoch(tmp_path / "run", 1)
    process.send_signal(number)
    code, output = finish(process)
    assert code == expected
    assert re.search(f"stopped; the last good checkpoint is epoch [12] in {tmp_path / 'run'}, and", output)
    assert "the same command goes on from there" in output
    assert "Traceback" not in output


def test_the_log_is_a_line_an_epoch_and_the_run_ends_with_final_and_best(whole_run: tuple[Path, str]) -> None:
    output = whole_run[1]
    assert [line.split()[1] for line in output.splitlines() if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    assert "final epoch 3:" in output.splitlines()[-1]
    assert "chosen on the test set itself" in output.splitlines()[-1]


def test_a_finished_run_says_so(whole_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TRAIN, "--run", str(whole_run[0])]) == 0
    assert "this run is finished" in capsys.readouterr().out


def test_evaluate_measures_the_best_weights_as_logged(
    whole_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(whole_run[0])
    assert cli.main(["evaluate", "--run", run, "--data", "synthetic"]) == 0
    output = capsys.readouterr().out
    best = s8.EpochLog.read(whole_run[0] / "epoch_log.csv").best
    assert f"{best.test_acc:.2f}%" in output
    assert cli.main(["evaluate", "--model", f"{run}/best", "--data", "synthetic"]) == 0
    assert capsys.readouterr().out.splitlines() == output.splitlines()[2:]
    assert "final epoch 3" in output
    assert "chosen on the test set itself" in output


def test_evaluate_refuses_other_data_than_the_run_was_trained_on(
    whole_run: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = s8.synthetic_cifar100(1, 200, 100)
    monkeypatch.setattr("s8lib.report.choose_data", lambda *_, **__: other)
    assert cli.main(["evaluate", "--run", str(whole_run[0]), "--data", "synthetic"]) == 2
    assert "was trained on synthetic, seed 0, not on synthetic, seed 1" in capsys.readouterr().err


def test_evaluating_an_empty_run_folder_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "--data", "synthetic", "--run", str(tmp_path)]) == 2
    assert "holds no finished epoch" in capsys.readouterr().err


def test_only_the_recipe_a_cpu_gets_by_default_falls_back_to_the_stand_in_and_says_so_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(root: object, download: bool) -> s8.Cifar100:
        raise s8.DataError("CIFAR-100 could not be downloaded.")

    monkeypatch.delenv("S8_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    small = s8.synthetic_cifar100(train=512, test=100)
    monkeypatch.setattr(synthetic, "load_cifar100", unreachable)
    monkeypatch.setattr(synthetic, "synthetic_cifar100", lambda **_: small)
    assert cli.main(["train", "--device", "cpu", "--model", MODEL, "--epochs", "1"]) == 0
    assert "SYNTHETIC stand-in" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"quick-1ep-{MODEL}-synthetic-seed0"]
    for preset in s8.PRESETS:
        assert cli.main(["train", "--recipe", preset, "--device", "cpu"]) == 2
        assert "could not be downloaded" in capsys.readouterr().err


def test_s8_data_that_is_wrong_is_an_error_for_every_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S8_DATA", str(tmp_path))
    assert cli.main(["train", "--device", "cpu"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_settings_seed_model_and_epochs_reach_the_recipe(tmp_path: Path) -> None:
    options = cli._parser().parse_args(
        ["train", "--recipe", "seed-100", "--epochs", "50", "--seed", "7", "--model", "wrn-16-4"]
        + ["--set", "dropout=0.1,0", "--set", "patience=null", "--set", "augmentation=light"]
    )
    recipe = cli._recipe(options)
    assert (recipe.epochs, recipe.phase1_epochs, recipe.cycle_epochs) == (50, 30, 12.5)
    assert (recipe.seed, recipe.model, recipe.dropout) == (7, "wrn-16-4", (0.1, 0))
    assert (recipe.patience, recipe.augmentation) == (None, ("light", "light"))
    recipe.save(tmp_path / "recipe.json")
    again = cli._parser().parse_args(["train", "--recipe", str(tmp_path / "recipe.json")])
    assert cli._recipe(again) == recipe


def test_options_reach_the_training_and_the_publisher(
    tmp_path: Path, whole_run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, publisher = Mock(), Mock()
    monkeypatch.setattr(s8, "train", train)
    monkeypatch.setattr(s8, "HubPublisher", publisher)
    there = ["--hub-repo", "you/name", "--hub-private", "--overwrite"]
    how = ["--precision", "fp32", "--compile", "off", "--deterministic", "--holdout", "7", "--sync-batchnorm"]
    assert cli.main([*TRAIN, "--run", str(tmp_path / "run"), *how, *there]) == 0
    (_, _, data, run, hub, device), options = train.call_args
    assert (data.name, run.path, device.type) == ("synthetic, seed 0", tmp_path / "run", "cpu")
    assert hub is publisher.return_value
    given = {"precision": "fp32", "compile": "off", "deterministic": True, "holdout": 7, "sync_batchnorm": True}
    assert options == given
    assert cli.main(["publish", "--run", str(whole_run[0]), *there, "--license", "cc0-1.0"]) == 0
    told = {"private": True, "overwrite": True}
    assert publisher.call_args_list == [call("you/name", **told), call("you/name", **told, license="cc0-1.0")]
    assert publisher.return_value.publish.call_args.args[0].path == whole_run[0]


def torchrun(ranks: int, *arguments: object) -> tuple[int, str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    root = str(Path(s8.__file__).parents[1])
    done = subprocess.run(
        [*launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout + done.stderr


def test_two_ranks_train_as_one_and_a_resume_with_two_or_one_goes_on(
    tmp_path: Path, whole_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--set", "dropout=0.3", "--precision", "fp32")
    code, output = torchrun(2, "-m", "--", "s8lib", *TRAIN, *settings, "--run", tmp_path / "two")
    assert code == 0, output
    assert output.count("epoch   1/3") == 1, "rank 0 alone speaks"
    log, alone = (s8.EpochLog.read(run / "epoch_log.csv") for run in (tmp_path / "two", whole_run[0]))
    assert json.loads((tmp_path / "two" / "environment.json").read_text())[0]["ranks"] == 2
    assert [row.lr for row in log] == [row.lr for row in alone]

    by_one, by_two = (Path(shutil.copytree(tmp_path / "two", tmp_path / f"resumed-by-{n}")) for n in (1, 2))
    for run in (by_one, by_two):
        (run / "checkpoints" / "epoch_003.pt").unlink()
    code, output = torchrun(2, "-m", "--", "s8lib", *TRAIN, *settings, "--run", by_two)
    assert code == 0, output
    assert cli.main([*TRAIN, *settings, "--run", str(by_one)]) == 0
    for said in (output, capsys.readouterr().out):
        assert "epoch   3/3" in said
        assert "epoch   2/3" not in said
    assert_same_bits(outcome(tmp_path / "resumed-by-2"), outcome(tmp_path / "two"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"KMP_TARGET_PORT": "9000", "KMP_DUPLICATE_LIB_OK": "TRUE"}, "PASSIVE"),  # as on Colab, and with Anaconda
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "9"}, None),
        ({"KMP_BLOCKTIME": "9"}, None),
    ],
)
def test_a_commands_threads_sleep_while_they_wait_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str | None
) -> None:
    for name in [name for name in os.environ if name.startswith(("OMP_WAIT", "GOMP_", "KMP_"))]:
        monkeypatch.delenv(name)
    # This torch tells what the real one would find when it is loaded, and ends the command.
    (tmp_path / "torch.py").write_text("import os; print(os.environ.get('OMP_WAIT_POLICY')); raise SystemExit")
    path = os.pathsep.join([str(tmp_path), str(Path(s8.__file__).parents[1])])
    for said in (["evaluate", "--model", "/no/model", "--data", "synthetic"], ["checks"]):
        assert finish(command(*said, PYTHONPATH=path, **before)) == (0, f"{after}\n")


def test_a_compiler_that_fails_on_one_rank_is_left_by_all_who_end_with_one_network_and_evaluate_it_as_one_does(
    tmp_path: Path,
) -> None:
    script = tmp_path / "one_fails.py"
    script.write_text(
        "import hashlib, os, pathlib, torch, s8lib as s8\n"
        "from s8lib.machine.ranks import ALONE, join_ranks\n"
        "from s8lib.metrics import predict_logits\n"
        "from tests.runs import recipe, small_model, train\n"
        "def compile(step, **options):\n"
        "    def compiled(batch):\n"
        "        if os.environ['RANK'] == '1':\n"
        "            raise OSError('no cache here')\n"
        "        return step(batch)\n"
        "    return compiled\n"
        "torch.compile = compile\n"
        "model, lines = small_model(seed=0), []\n"
        "data = s8.synthetic_cifar100(0, 200, 100)\n"
        "muon = recipe(optimizer='muon')\n"
        "train(None, data, model=model, recipe=muon, precision='fp32', compile='on', lines=lines)\n"
        "print(*lines, sep='\\n')\n"
        "for again in range(20):  # a second training, say\n"
        "    with join_ranks(torch.device('cpu')) as ranks:\n"
        "        assert ranks.share(again) == again\n"
        "with join_ranks(torch.device('cpu')) as ranks:\n"
        "    alone, shared = (predict_logits(model, data.test.images, 'fp32', 32, r) for r in (ALONE, ranks))\n"
        "    assert ranks.world == 2 and torch.equal(shared, alone), 'an evaluation that ranks share'\n"
        "other = s8.synthetic_cifar100(int(os.environ['RANK']), 200, 100)\n"
        "try:\n"
        "    train(None, other, model=small_model())\n"
        "except s8.RecipeError as error:\n"
        "    assert 'were given different recipes or data' in str(error)\n"
        "else:\n"
        "    raise AssertionError('each has other images')\n"
        "state = b''.join(tensor.numpy().tobytes() for tensor in model.state_dict().values())\n"
        "file = pathlib.Path(__file__).with_name('rank' + os.environ['RANK'])\n"
        "file.write_text(hashlib.sha256(state).hexdigest())\n"
    )
    code, output = torchrun(2, script)
    assert code == 0, output
    assert "torch.compile failed (on another rank): training goes on" in output
    assert output.count("epoch   6/6") == 1
    digests = [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]
    assert digests[0] == digests[1]


def test_ranks_whose_loss_is_not_finite_all_say_what_came_of_the_save_that_the_first_of_them_was_writing(
    tmp_path: Path,
) -> None:
    script = tmp_path / "diverging.py"
    script.write_text(
        "import os, pathlib, time, torch, s8lib as s8\n"
        "from s8lib.run.checkpoint import Checkpoint\n"
        "from tests.runs import train\n"
        "class Diverging(s8.WideResNet):\n"
        "    evaluated = False\n"
        "    def forward(self, x):\n"
        "        self.evaluated |= not self.training\n"
        "        return super().forward(x) * (torch.nan if self.training and self.evaluated else 1)\n"
        "whole = Checkpoint.save\n"
        "Checkpoint.save = lambda *given: (time.sleep(1), whole(*given))\n"
        "here = pathlib.Path(__file__).parent\n"
        "try:\n"
        "    train(here / 'run', s8.synthetic_cifar100(0, 200, 100), model=Diverging(10, 1))\n"
        "except s8.NonFiniteLoss as error:\n"
        "    (here / ('words' + os.environ['RANK'])).write_text(str(error))\n"
    )
    code, output = torchrun(2, script)
    assert code == 0, output
    for rank in (0, 1):
        assert "epoch 2, step 1; the last good checkpoint is epoch 1 in" in (tmp_path / f"words{rank}").read_text()


def test_the_other_ranks_wait_a_day_for_what_the_first_fetches_whatever_else_they_wait_for(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import pathlib, time, torch\n"
        "from datetime import timedelta\n"
        "from torch.distributed.distributed_c10d import _get_default_store\n"
        "from s8lib.machine import ranks as library\n"
        "second, failed = timedelta(seconds=1), pathlib.Path(__file__).with_name('failed')\n"
        "with library.join_ranks(torch.device('cpu')) as ranks:\n"
        "    ranks.share(None)\n"
        "    _get_default_store().set_timeout(second)\n"
        "    if ranks.first:\n"
        "        time.sleep(3)\n"
        "    assert ranks.share('late' if ranks.first else None) == 'late'\n"
        "    library.A_DAY = second\n"
        "    end = time.monotonic() + 20\n"
        "    while ranks.first and not failed.exists() and time.monotonic() < end:\n"
        "        time.sleep(0.1)\n"
        "    if not ranks.first:\n"
        "        try:\n"
        "            ranks.share(None)\n"
        "        except RuntimeError as error:\n"
        "            failed.write_text(str(error))\n"
    )
    code, output = torchrun(2, script)
    assert code == 0, output
    assert "timeout after 1000ms" in (tmp_path / "failed").read_text(), "the day is what they wait"


def test_what_one_node_lacks_is_told_by_that_nodes_first_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for local, told in ((0, f"error: {tmp_path} (as named) does not hold CIFAR-100"), (1, "")):
        for name, value in (("RANK", 2 + local), ("LOCAL_RANK", local)):
            monkeypatch.setenv(name, str(value))
        assert cli.main(["train", "--recipe", "quick", "--data", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(told)
        assert bool(said) == bool(told)


def test_a_batch_that_cannot_be_shared_among_the_ranks_is_refused_by_each(tiny: s8.Cifar100) -> None:
    for rank in (0, 1):
        with pytest.raises(s8.RecipeError, match="batch_size = 125: cannot be shared evenly among 2 ranks"):
            check_fit(recipe(batch_size=125), small_model(), tiny, 200, Ranks(rank, 2), False, torch.device("cpu"))


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("from s8lib.cli import main; main(['train', '--help'])", "torch numpy huggingface_hub"),
        ("from s8lib.cli import main; main(['train', '--epochs', 'three'])", "torch numpy huggingface_hub"),
        ("s8lib.train", "torchvision matplotlib pyarrow PIL pandas torchsummary"),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(statement: str, unwanted: str) -> None:
    loaded = f"[name for name in {unwanted.split()} if name in sys.modules]"
    probe = f"import atexit, sys, s8lib; atexit.register(lambda: print({loaded}))"
    done = subprocess.run([sys.executable, "-c", f"{probe}; {statement}"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_command_for_each_thing_and_help_and_version_load_no_torch() -> None:
    for arguments in (["--version"], ["--help"], ["predict", "--help"]):
        code, output = finish(command(*arguments, PYTHONPROFILEIMPORTTIME="1"))
        assert code == 0
        assert not re.search(r"\| +(torch|numpy|matplotlib)$", output, re.MULTILINE)
    commands = ("train", "evaluate", "report", "publish", "predict", "export", "demo", "checks")
    help_text = finish(command("--help"))[1]
    assert finish(command()) == (0, help_text)
    assert all(re.search(rf"^    {name} ", help_text, re.MULTILINE) for name in commands)


def test_a_missing_run_or_model_is_told_before_any_data_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S8_DATA", str(tmp_path / "no data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    nope, picture = str(tmp_path / "nope"), str(tmp_path / "sea.png")
    example_images()[1].save(picture)
    for line in (
        ["evaluate", "--run", nope], ["evaluate", "--model", nope], ["report", "--run", nope],
        ["predict", "--run", nope, picture], ["publish", "--run", nope, "--hub-repo", "you/x"],
    ):  # fmt: skip
        assert cli.main(line) == 2
        told = capsys.readouterr()
        assert f"{nope} is no folder" in told.err
        assert not told.out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["train", "--model", "vgg-16"], "there is no model 'vgg-16'"),
        (["train", "--hub-repo", "typo"], "'typo' is no name of a repository"),
        (["train", "--hub-repo", "you/net"], "publishing needs a token"),
        (["predict", "--model", "you/net", "tpyo.jpg"], "tpyo.jpg"),
        (["evaluate", "--model", "you/net", "--data", "nowhere"], "nowhere"),
        (["export", "--model", "you/net"], "exporting to ONNX needs onnxruntime: pip install"),
        (["demo", "--model", "you/net"], "the demo needs gradio: pip install gradio"),
        (["export", "--run", "nope", "--to", "program", "--out", "new"], "nope is no folder"),
    ],
)
def test_what_is_mistyped_or_missing_here_is_told_before_anything_is_downloaded_or_made(
    line: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def download(*given: object, **options: object) -> None:
        pytest.fail("a download")

    monkeypatch.chdir(tmp_path)
    for name in ("S8_DATA", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("s8lib.models.networks.hf_hub_download", download)
    monkeypatch.setattr("s8lib.data.cifar100.download_into", download)
    monkeypatch.setenv("S8_CACHE", str(tmp_path / "cache"))
    for package in ("onnxruntime", "gradio"):
        monkeypatch.setitem(sys.modules, package, None)
    assert cli.main([*line, "--device", "cpu"] if line[0] in ("train", "evaluate") else line) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_trained_weights_predict_and_are_exported(
    whole_run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "sea.png"
    example_images()[1].save(picture)
    assert cli.main(["predict", "--run", str(whole_run[0]), str(picture)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"{re.escape(str(picture))}: ([\w ]+ \d+%(, )?){{5}}", line)
    named = shutil.copytree(whole_run[0] / "best", tmp_path / "named") / "config.json"  # as CIFAR-100's names are
    named.write_text(named.read_text().replace("synthetic ", "synthetic_"))
    assert cli.main(["predict", "--model", str(tmp_path / "named"), str(picture)]) == 0
    assert capsys.readouterr().out.splitlines() == [line], "a name is shown without underscores"
    assert cli.main(["predict", "--run", str(whole_run[0]), str(tmp_path / "nope.png")]) == 2
    assert "nope.png" in capsys.readouterr().err
    assert cli.main(["export", "--run", str(whole_run[0]), "--to", "program", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "model.pt2")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt2"]


def test_checks_and_a_demo_are_commands(
    whole_run: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["checks"]) == 0
    assert re.match(r"GPU: .+\nprecision: ", capsys.readouterr().out)
    shown: list[dict[str, bool]] = []
    page = types.SimpleNamespace(launch=lambda **options: shown.append(options))
    monkeypatch.setattr("s8lib.publish.demo.build_demo", lambda model: page)
    assert cli.main(["demo", "--run", str(whole_run[0])]) == 0
    assert shown == [{"inbrowser": True}]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "--run", str(whole_run[0])]) == 2, "nothing was begun"
    assert "the demo needs gradio: pip install gradio" in capsys.readouterr().err
