"""What cannot be used is refused in one sentence, with exit code 2, before anything is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import s8lib as s8
from s8lib import cli
from s8lib.machine.device import pick_compile, pick_precision
from s8lib.models.weights import save_model
from s8lib.validation import BadInput, short
from tests.runs import MODEL

Command = list[str]
# A name; a command, or what is called with an empty folder for its files and is refused or returns such a command;
# words of the refusal.
Row = tuple[str, Command | Callable[[Path], Any], str]
REFUSALS = (BadInput, s8.DataError, s8.RunError, s8.HubError)

CPU = torch.device("cpu")
HUGE, NUL = "9" * 400, "a\0b"
DEEP = "[" * 100_000
AT_LEAST, AT_MOST = "must be greater than or equal to ", "must be less than or equal to "
WHOLE, NUMBER, TEXT = "must be a valid integer", "must be a valid number", "must be a valid string"
FILE_NAME = "must be a plain file name"
NO_FIELD, NO_MODEL = "there is no field ", "use resnet-42, resnet-11, or wrn-D-K"


def train(*arguments: str) -> Command:
    return ["train", "--data", "synthetic", "--device", "cpu", *arguments]


def command(*arguments: str, words: str) -> Row:
    return " ".join(arguments), train(*arguments), words


def setting(text: str, words: str) -> Row:
    return f"--set {text}", train("--set", text), words


def field(name: str, value: object, words: str) -> Row:
    return f"{name} = {short(value)}", lambda folder: s8.Recipe.from_dict({name: value}), words


def recipe_file(content: bytes | None, words: str) -> Row:
    def write(folder: Path) -> Command:
        file = folder / "my recipe.json"
        if content is not None:
            file.write_bytes(content)
        return train("--recipe", str(file))

    return f"recipe.json of {content!r}", write, words


def network(text: str, build: Callable[[], object], words: str) -> Row:
    return text, lambda folder: build(), words


def config(changes: dict[str, Any], words: str) -> Row:
    return config_file(json.dumps(CONFIG | changes).encode(), words)


def config_file(content: bytes | None, words: str) -> Row:
    def load(folder: Path) -> None:
        save_model(s8.build_model("wrn-16-1", 10), folder)
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_bytes(content)
        s8.load_model(folder)

    return f"config.json of {content!r}", load, words


CONFIG = {"depth": 16, "widen_factor": 1, "num_classes": 10, "dropout": 0.0}


def weights(name: str, spoil: Callable[[Tensor], Tensor | None], words: str) -> Row:
    """The tensor `name` of a network changed, or gone."""

    def spoiled() -> dict[str, Tensor]:
        found = s8.build_model("wrn-10-1", 10, seed=0).state_dict()
        changed = spoil(found.pop(name) if name in found else torch.zeros(3))
        return found if changed is None else found | {name: changed}

    def load(folder: Path) -> None:
        save_model(s8.build_model("wrn-10-1", 10), folder)
        save_file(spoiled(), folder / "model.safetensors")
        s8.WideResNet.from_pretrained(folder)

    return f"{name}, {words}", load, words


def bytes_of_weights(change: Callable[[bytes], bytes | None], words: str) -> Row:
    def load(folder: Path) -> Command:
        save_model(s8.build_model(MODEL), folder)
        file = folder / "model.safetensors"
        content = change(file.read_bytes())
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        return ["evaluate", "--data", "synthetic", "--device", "cpu", "--model", str(folder)]

    return f"model.safetensors, {words}", load, words


def a_run(folder: Path) -> None:
    (folder / "best").mkdir()
    (folder / "best" / "config.json").touch()
    s8.load_model(folder)


def ten_classes(folder: Path) -> Command:
    save_model(s8.build_model(MODEL, 10), folder)
    return ["evaluate", "--data", "synthetic", "--device", "cpu", "--model", str(folder)]


RECIPES: list[Row] = [
    *(field(name, -0.1, AT_LEAST + "0") for name in ("lr_start", "lr_floor", "lr_final", "weight_decay")),
    *(field(name, -0.1, AT_LEAST + "0") for name in ("warmup_epochs", "momentum", "label_smoothing")),
    *(field(name, -1, AT_LEAST) for name in ("epochs", "phase1_epochs", "batch_size", "seed", "patience")),
    *(field(name, 0, AT_LEAST + "1") for name in ("epochs", "batch_size", "patience")),
    *(field(name, 0.0, "must be greater than 0") for name in ("lr_peak", "cycle_epochs")),
    *(field(name, 1.0, "must be less than 1") for name in ("momentum", "label_smoothing", "dropout")),
    *(field(name, 1e9, AT_MOST) for name in ("lr_start", "lr_peak", "lr_floor", "lr_final", "cycle_epochs")),
    *(field(name, 10**400, AT_MOST) for name in ("epochs", "batch_size", "patience")),
    *(field(name, 10**5000, "a huge number: ") for name in ("epochs", "seed", "cycle_epochs")),
    *(field(name, math.nan, "= nan: must be ") for name in ("lr_peak", "cycle_epochs", "dropout", "mixup_alpha")),
    *(field(name, math.inf, "= inf: must be ") for name in ("lr_peak", "weight_decay", "mixup_alpha")),
    *(field(name, "5", NUMBER) for name in ("weight_decay", "warmup_epochs", "dropout")),
    *(field("lr_peak", value, NUMBER) for value in (None, True, [0.1], {}, 10**400)),
    *(field("epochs", value, WHOLE) for value in (100.0, True, "9", None)),
    *(field("image_size", value, WHOLE) for value in (24.0, "24", (24, 32.0))),
    *(field("patience", value, WHOLE) for value in (1.5, True)),
    *(field("nesterov", value, "must be a valid boolean") for value in (1, "true", None)),
    *(field("model", value, TEXT) for value in (7, None)),
    *(field("augmentation", value, TEXT) for value in (None, ("full", 1))),
    field("augmentation", ("full", "autoaugment"), "must be of full, reduced, light, flip-crop, none"),
    field("dropout", (0.3,), "has too few values"),
    field("dropout", (0.3, 0.2, 0.1), "should have at most 2 items"),
    *(field("mixup_alpha", value, "must be ") for value in ((0.2, -0.1), (0, 2), 1.01)),
    *(field("image_size", value, "must be a multiple of 4") for value in (30, (32, 9))),
    field("image_size", (4, 32), AT_LEAST + "8"),
    field("image_size", (32, 36), AT_MOST + "32"),
    field("seed", 2**63, "must be less than 9223372036854775808"),
    field("phase1_epochs", 101, "must be within the 100 epochs"),
    field("warmup_epochs", 26, "must end within the first cycle"),
    field("warmup_epochs", math.inf, "must end within the first cycle"),
    field("lr_start", 0.2, "is above lr_peak"),
    field("lr_floor", 0.2, "is above lr_peak"),
    field("learning_rate", 0.1, NO_FIELD + "'learning_rate'; the fields are name, model"),
    ("nesterov alone", lambda folder: s8.Recipe(nesterov=True, momentum=0.0), "needs a momentum above 0"),
    (
        "a long warm-up",
        lambda folder: s8.Recipe(phase1_epochs=4),
        "warmup_epochs = 5: must end within the first cycle",
    ),
    ("1e9 restarts", lambda folder: s8.Recipe(cycle_epochs=1e-9, warmup_epochs=0), "must be at least 0.01"),
    ("no mapping", lambda folder: s8.Recipe.from_dict(None), "must be a valid dictionary"),  # type: ignore[arg-type]
    *(
        field("name", name, FILE_NAME)
        for name in ("", "../../x", "a/b", "a\\b", NUL, "a\nb", "x" * 300, "é" * 60, ".x", "..", "C:x", "\ud800")
    ),
    *(
        (
            f"stretched({factor!r:.30})",
            lambda folder, f=factor: s8.SEED_100.stretched(f),
            "the factor must be above 0",
        )
        for factor in (0, -1, math.nan, math.inf, 1e308, 10**400)
    ),
    ("stretched(1001)", lambda folder: s8.SEED_100.stretched(1001), "epochs = 100100: " + AT_MOST),
]

FILES: list[Row] = [
    recipe_file(None, "cannot read"),
    *(recipe_file(content, "Invalid JSON") for content in (b"", b"{not json", b"\xff\xfe\x00", b'{"seed": 1')),
    *(recipe_file(content, "must be an object") for content in (b"[1, 2]", b"null", b"5")),
    recipe_file(b'{"a":' * 100_000, "recursion limit exceeded"),
    recipe_file(b'{"seed": ' + b"9" * 5000 + b"}", "Invalid JSON: number out of range"),
    recipe_file(b'{"lr": 1}', NO_FIELD + "'lr'; the fields are name, model"),
    recipe_file(b'{"epochs": "9"}', "my recipe.json: epochs = '9': " + WHOLE),
    recipe_file(b'{"lr_peak": NaN}', "lr_peak = nan"),
    recipe_file(b'{"name": "../../x"}', FILE_NAME),
]


def one_class(folder: Path) -> Command:
    (folder / "train" / "cat").mkdir(parents=True)
    return train("--data", str(folder))


def no_pictures(folder: Path) -> Command:
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").touch()
    return train("--data", str(folder))


def damaged_picture(folder: Path) -> Command:
    command = no_pictures(folder)
    for name in ("cat/1.png", "cat/2.png", "dog/1.jpg", "dog/2.jpg"):
        (folder / name).write_bytes(b"no picture")
    return command


COMMANDS: list[Row] = [
    ("pictures of one class", one_class, "should hold a folder of pictures for each of two or more classes"),
    ("folders without pictures", no_pictures, "cat holds no picture (they end in .jpg, .jpeg, .png"),
    ("a damaged picture", damaged_picture, "cat/1.png' cannot be used: it is none of JPEG, PNG"),
    *(
        command("--recipe", name, words="there is no recipe")
        for name in ("seed-300", "", "SEED-100", "../seed-100")
    ),
    *(command("--recipe", name, words="cannot read") for name in ("no.json", NUL + ".json", "x" * 5000 + ".json")),
    *(command("--model", name, words=NO_MODEL) for name in ("vgg-16", "wrn-١٠-١", "wrn-10-9999999999")),
    *(command("--model", name, words=FILE_NAME) for name in ("", "../../x", NUL, "wrn-10-" + HUGE)),
    command("--model", "wrn-27-10", words="depth = 27: a WideResNet has 6n+4 layers"),
    command("--model", "wrn-1000000-1", words="depth = 1000000: " + AT_MOST),
    command("--model", "wrn-10-99999", words="widen_factor = 99999: " + AT_MOST),
    command("--model", "wrn-1000-1000", words="would have 1.6e+13 parameters"),
    *(command("--epochs", number, words=AT_LEAST + "1") for number in ("0", "-3", "-" + HUGE)),
    *(command("--epochs", number, words=AT_MOST + "100000") for number in ("100001", HUGE)),
    command("--seed", "-1", words="seed = -1: " + AT_LEAST),
    command("--seed", HUGE, words="seed = a huge number: must be less than"),
    *(command("--holdout", number, words="holdout can take 1 to") for number in ("-5", "1600", HUGE)),
    *(
        command("--device", name, words=f"device '{name}' ")
        for name in ("meta", "hpu", "xla", "tpu", "", "cuda:77")
    ),
    *(
        command("--hub-repo", name, words="is no name of a repository")
        for name in ("", "x", "a/b/c", "a b/c", "/x")
    ),
    command("--data", "/no/such/folder", words="/no/such/folder"),
    *(
        (f"{' '.join(parts)} --run of 300 letters", [*parts, "--run", "x" * 300], "File name too long")
        for parts in (
            ["train", "--data", "synthetic", "--device", "cpu"],
            *(["evaluate"], ["export"], ["demo"]),
            *(["report", "--no-video"], ["publish", "--hub-repo", "tester/net"]),
        )
    ),
    *(setting(text, "should look like lr_peak=0.05") for text in ("lr_peak", "")),
    *(setting(text, NO_FIELD) for text in ("lr=0.1", "=5", "Epochs=5")),
    *(
        setting(text, "a decimal comma?")
        for text in ("mixup_alpha=0,2", "mixup_alpha=0,1", "dropout=0,05", "lr_peak=0,1")
    ),
    *(
        setting(f"lr_peak={text}", NUMBER)
        for text in ("", "high", "0.1,0.2", '"0.1"', "null", DEEP, HUGE, "9" * 5000)
    ),
    *(setting(f"lr_peak={text}", AT_MOST) for text in ("NaN", "Infinity", "1e400")),
    *(setting(f"name={text}", FILE_NAME) for text in ("../../x", NUL, "x" * 300, "", "a/b")),
    *(setting(text, WHOLE) for text in ("seed=1e3", "epochs=1.5", "patience=never", "image_size=32,x")),
    setting("dropout=0.1,0.2,0.3", "at most 2 items"),
    setting("cycle_epochs=1e-9", "must be at least 0.01"),
    setting("model=../x", FILE_NAME),
]

NETWORKS: list[Row] = [
    *(
        network(f"build_model({name!r})", lambda name=name: s8.build_model(name), NO_MODEL)
        for name in (
            "resnet-50",
            "wrn",
            "wrn-28",
            "WRN-28-10",
            "wrn-28-10-2",
            "wrn-a-b",
            " wrn-28-10",
            "wrn--4-1",
            None,
        )
    ),
    *(
        network(f"{name}, dropout={p!r}", lambda name=name, p=p: s8.build_model(name, dropout=p), "dropout = ")
        for name in (MODEL, "resnet-42")
        for p in (math.nan, 1.0, -0.1, "0.3", None)
    ),
    *(
        network(f"{kind.__name__}, {n!r} classes", lambda kind=kind, n=n: kind(num_classes=n), "num_classes = ")
        for kind in (s8.WideResNet, s8.ResNet42)
        for n in (0, -1, 10.0, "10", None, True, 10**9)
    ),
    network("precision", lambda: pick_precision(CPU, "int4"), "precision 'int4' is unknown; there are auto, bf16"),
    network("compile", lambda: pick_compile(CPU, "yes"), "compile 'yes' is unknown; there are auto, on, off"),
    network("depth 4", lambda: s8.WideResNet(4), "depth = 4: " + AT_LEAST + "10"),
    network("depth -2", lambda: s8.WideResNet(-2), "depth = -2: " + AT_LEAST + "10"),
    network("width 0", lambda: s8.WideResNet(10, 0), "widen_factor = 0: " + AT_LEAST + "1"),
]

FOLDERS: list[Row] = [
    *(config({"depth": depth}, f"config.json: depth = {depth!r}: " + WHOLE) for depth in ("10", None, 10.0, True)),
    *(config({"depth": depth}, f"depth = {depth}: " + AT_MOST) for depth in (10**9, 120_004)),
    config({"depth": 17}, "depth = 17: a WideResNet has 6n+4 layers"),
    *(config({"widen_factor": width}, "widen_factor = ") for width in (0, "1", None, 1.0, 10**400)),
    config({"widen_factor": 200, "depth": 100}, "wrn-100-200 would have 6.2e+10 parameters"),
    *(config({"num_classes": classes}, "num_classes = ") for classes in (0, None, "ten", [10])),
    *(config({"dropout": p}, "dropout = ") for p in (2, 1, -1, math.nan, None, "0.1")),
    config({"depth": 22}, "model.safetensors does not fit wrn-22-1 with 10 classes"),
    config({"num_classes": 100}, "fc.bias: float [100] expected, float [10] found; fc.weight"),
    config_file(b'{"num_classes": 10}', "does not fit resnet-42 with 10 classes"),
    config_file(None, "config.json: No such file"),
    *(config_file(content, "Invalid JSON") for content in (b"", b"{", b"\xff", DEEP.encode())),
    *(config_file(content, "must be an object") for content in (b"[]", b"null", b"16")),
    weights("conv1.weight", lambda tensor: None, "conv1.weight: float [16, 3, 3, 3] expected, nothing found"),
    weights("head.weight", lambda tensor: tensor, "head.weight: nothing expected, float [3] found"),
    weights("fc.weight", lambda tensor: tensor[:7], "fc.weight: float [10, 64] expected, float [7, 64] found"),
    weights("fc.bias", lambda tensor: tensor.to(torch.int8), "float [10] expected, torch.int8 [10] found"),
    weights("fc.bias", lambda tensor: tensor.to(torch.bool), "float [10] expected, torch.bool [10] found"),
    weights("fc.bias", lambda tensor: tensor.to(torch.complex64), "torch.complex64 [10] found"),
    weights("bn1.num_batches_tracked", lambda tensor: tensor.float(), "torch.int64 [] expected, float [] found"),
    weights("fc.bias", lambda tensor: tensor.fill_(math.nan), "fc.bias holds NaN or infinity"),
    weights("fc.bias", lambda tensor: tensor.fill_(-math.inf), "fc.bias holds NaN or infinity"),
    weights("fc.bias", lambda tensor: tensor.double().fill_(1e300), "fc.bias holds NaN or infinity"),
    weights("bn1.running_var", lambda tensor: tensor.neg(), "bn1.running_var holds a negative variance"),
    *(bytes_of_weights(lambda content, n=n: content[:n], "cannot read the weights") for n in (0, 4, 1000, -1)),
    bytes_of_weights(lambda content: None, "cannot read the weights"),
    bytes_of_weights(lambda content: b"\x80\x04N.", "cannot read the weights"),  # a pickle
    ("a run's folder as a model", a_run, "is a run's folder: its weights are in "),
    ("10 classes where 100 are measured", ten_classes, "has 10 classes and the data 100"),
    *(
        (f"load_model({source[:20]!r})", lambda folder, source=source: s8.load_model(source), "is no folder here")
        for source in ("/no/such/folder", "", NUL, "x" * 5000)
    ),
]

TABLE = [*RECIPES, *FILES, *COMMANDS, *NETWORKS, *FOLDERS]


@pytest.mark.parametrize(("act", "words"), [pytest.param(*row[1:], id=row[0][:60]) for row in TABLE])
def test_it_is_refused_in_one_sentence_and_nothing_is_written(
    act: Command | Callable[[Path], Any],
    words: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if callable(act):
        try:
            act = act(tmp_path_factory.mktemp("given"))
        except REFUSALS as error:
            said = f"error: {error}\n"
    if isinstance(act, list):
        assert cli.main(act) == 2
        said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said
    assert not list(tmp_path.iterdir())


def test_the_table_has_150_inputs_and_25_refusals() -> None:
    assert len({row[0] for row in TABLE}) >= 150
    assert len({row[2] for row in TABLE}) >= 25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--epochs", "three"], "invalid int value: 'three'"),
        *(
            (["train", "--precision", name], f"--precision: invalid choice: '{name}'")
            for name in ("int4", "FP32", "")
        ),
        *((["train", "--compile", name], f"--compile: invalid choice: '{name}'") for name in ("yes", "")),
        (["train", "--seed", "9" * 5000], "invalid int value"),
        (["train", "--run", ""], "--run: names nothing"),
        (["train", "--speed", "9"], "unrecognized arguments: --speed 9"),
        (["evaluate"], "one of the arguments --run --model is required"),
        (["evaluate", "--run", "a", "--model", "b"], "not allowed with argument --run"),
        (["report", "--run", "a", "--target", "high"], "invalid float value: 'high'"),
        (["publish", "--run", "a"], "required: --hub-repo"),
    ],
)
def test_a_command_that_is_none_is_answered_with_its_usage(
    arguments: Command,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
