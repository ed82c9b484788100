"""A run gets to the Hub, whole and of one moment, whatever the Hub does; training neither waits nor ends by it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import s8lib as s8
from s8lib import cli
from s8lib.hub_client import OutOfReach, explained
from s8lib.publish.publisher import FIRST_PAUSE, fetch_run
from s8lib.run.copies import RETRIES
from s8lib.run.hub import CHECK_LIMIT, STILL_LIMIT, HubRepo
from s8lib.run.place import Sending
from tests.hub_endpoints import FINE, FINE_READ, OAUTH, ORG, READ, WRITE, Commit, File, Repo
from tests.hub_runs import NAME, ROOT, USABLE, arrived, check_consistent, clients_of, until
from tests.local_hub import LocalHub, serve
from tests.runs import MODEL, RECIPE, Cut, assert_same_bits, command, finish, outcome, train
from tests.saves import Machine, contents


@pytest.fixture
def lines() -> list[str]:
    return []


def publisher(lines: list[str], **options: Any) -> s8.HubPublisher:
    return s8.HubPublisher(NAME, **{"token": WRITE, "say": lines.append, "wait": 60, **options})


def published(path: Path, lines: list[str], **options: Any) -> tuple[Machine, s8.HubPublisher]:
    publishing = publisher(lines, **options)
    return Machine(path, [publishing], lines=lines), publishing


def drawn(path: Path) -> bool:
    """What is written when something is published, and what is new in each process."""
    return path.name in (".lock", "report.json", "graph.jpg", "manifest.json")


def published_otherwise(path: Path) -> bool:
    """What is drawn, what lies beside a save for people to use, and what names that."""
    return drawn(path) or path.name in {*USABLE, "config.json"}


def test_25_epochs_leave_three_commits_each_a_consistent_set(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    for stop in (10, 20):
        run.until(stop)
        arrived()
        assert len(hub.commits(NAME)) == stop // 10
    run.until(25)
    publishing.finish(run.run)
    commits = hub.commits(NAME)
    for commit, epoch in zip(commits, (10, 20, 25), strict=True):
        check_consistent(commit, epoch, tmp_path)
    check_consistent(hub.resume(NAME), 25, tmp_path, resume=True)
    assert [commit.title.split(":")[0] for commit in commits] == ["epoch 10", "epoch 20", "epoch 25"]
    assert lines == [
        f"epoch {epoch} is on the Hub: {hub.url}/{NAME}/commit/{commit.oid}"
        for commit, epoch in zip(commits, (10, 20, 25), strict=True)
    ]
    assert contents(run.path, drawn) == contents(Machine(tmp_path / "alone").until(25).path, drawn)
    publishing.finish(run.run)
    assert len(hub.commits(NAME)) == 3  # nothing is sent twice


def test_what_is_sent_is_of_one_moment_though_training_goes_on_meanwhile(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    hub.fail("preupload", "slow", seconds=1.5)
    run.until(10)
    until(lambda: "preupload" in hub.requests)
    run.until(16)
    assert not (run.run.checkpoints / "epoch_010.pt").exists()
    publishing.finish(run.run)
    for commit, epoch in zip(hub.commits(NAME), (10, 16), strict=True):
        check_consistent(commit, epoch, tmp_path)


def test_a_failure_is_told_after_the_next_epoch_and_what_is_newest_by_then_is_sent(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    hub.fail("commit", 503)
    run.until(10)
    arrived()
    assert lines == []
    run.until(11)
    failed = f"{NAME} on the Hub: epoch 10 was not sent (the Hub answered 503, made to fail)"
    assert lines == [f"{failed}; it is tried again in 0 s or later"]
    arrived()
    run.until(12)
    assert lines[1].startswith("epoch 11 is on the Hub")
    check_consistent(hub.commits(NAME)[0], 11, tmp_path)
    hub.fail("commit", 403)
    run.until(20)
    arrived()
    run.until(21)
    assert lines[2].endswith("; it is tried again with epoch 30")


FAILURES = [  # endpoint, what it does, what is said of it, and whether it is tried again before the next commit
    ("commit", 401, "this token is not valid: make one with write access at", False),
    ("commit", 403, "give it write access at", False),
    ("info", 404, "there is no such repository", False),
    ("preupload", 413, "larger than the Hub takes", False),
    ("lfs_put", 403, "give it write access at", False),
    ("commit", 409, "the Hub answered 409, made to fail", True),
    ("commit", 429, "the Hub answered 429, made to fail", True),
    ("commit", 500, "the Hub answered 500, made to fail", True),
    ("commit", "reset", "", True),
]


def test_no_failure_stops_training_or_changes_it_and_all_is_sent_in_the_end(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines, every=1)
    for endpoint, how, words, again in FAILURES:
        hub.fail(endpoint, how)
        run.until(len(run.log) + 1)
        arrived()
        hub.fail(endpoint, how)  # when `finish` tries again, too
        publishing.finish(run.run)
        *failures, end = lines
        assert len(failures) == 2
        for failed in failures:
            assert failed.startswith(f"{NAME} on the Hub: epoch {len(run.log)} was not sent ("), (endpoint, how)
            assert words in failed, (endpoint, how, failed)
            assert "\n" not in failed
        assert ("is on the Hub" if again else "is NOT on the Hub") in end, (endpoint, how)
        lines.clear()
    check_consistent(hub.commits(NAME)[-1], len(FAILURES), tmp_path)
    assert contents(run.path, drawn) == contents(Machine(tmp_path / "alone").until(len(FAILURES)).path, drawn)


def test_what_is_damaged_here_is_told_and_not_sent(hub: LocalHub, tmp_path: Path, lines: list[str]) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(9)
    (run.run.best / "model.safetensors").write_bytes(b"damaged")
    publishing.finish(run.run)
    assert f"{run.run.best} is damaged or incomplete" in lines[0]
    assert len(lines) == 2, "what somebody has to change first is not tried again and again"
    run.until(11)  # which has new best weights
    (run.run.checkpoints / "epoch_011.pt").write_bytes(b"damaged")
    publishing.finish(run.run)
    assert "checkpoints/epoch_011.pt is not what the manifest says" in lines[-2]
    assert "is NOT on the Hub" in lines[-1]
    assert hub.commits(NAME) == []


@pytest.mark.parametrize("branch", ["main", "resume"])
def test_a_commit_of_someone_else_in_between_is_noticed_and_not_replaced(
    hub: LocalHub, tmp_path: Path, lines: list[str], branch: str
) -> None:
    run, publishing = published(tmp_path / "run", lines, every=1)
    hub.fail("preupload", "slow", seconds=1)
    run.until(1)
    until(lambda: "preupload" in hub.requests)
    branches = hub.endpoints.repos[NAME].branches
    theirs = Commit("theirs", {"README.md": File(b"theirs", lfs=False)}, branches[branch][-1].oid)
    branches[branch].append(theirs)
    arrived()
    assert branches[branch][-1] == theirs
    publishing.finish(run.run)
    assert "epoch 1 was not sent (the Hub answered 412, A commit has happened since" in lines[0]
    titles = [commit.title.split(":")[0] for commit in hub.commits(NAME)]
    assert titles == [*(["theirs"] if branch == "main" else []), "epoch 1"]
    check_consistent(hub.commits(NAME)[-1], 1, tmp_path)


def test_what_is_published_is_what_was_saved_though_the_log_was_changed_or_the_version_before_named_less(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run = Machine(tmp_path / "run").until(3)
    manifest = run.run.manifest()
    row = dataclasses.replace(run.log[-1], epoch=4, test_acc=99.0)
    (run.run.path / "epoch_log.csv").write_text(s8.EpochLog([*run.log, row]).to_csv())
    publisher(lines).publish(run.run)
    content = {name: dataclasses.asdict(content) for name, content in manifest.files.items()}
    names = {name.rpartition("/")[2]: (epoch, name) for epoch, name in manifest.checkpoints.items()}
    format_1 = {
        "checkpoints": {short: {"epoch": epoch, **content[name]} for short, (epoch, name) in names.items()},
        "best": {"epoch": 3, **content["best/model.safetensors"]},
        "identity": manifest.identity,
    }
    run.run.write_json("manifest.json", format_1)
    publisher(lines).publish(run.run)
    for commit in hub.commits(NAME):
        check_consistent(commit, 3, tmp_path)
    assert len(hub.commits(NAME)) == 2


def test_an_answer_that_is_lost_does_not_make_a_second_commit(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(3)
    hub.fail("commit", "lost")
    publishing.finish(run.run)
    assert "epoch 3 was not sent" in lines[0]
    assert lines[1] == f"epoch 3 is on the Hub: {hub.url}/{NAME}/commit/{hub.commits(NAME)[0].oid}"
    assert len(hub.commits(NAME)) == 1


def test_out_of_reach_from_the_start_a_run_that_is_here_goes_on_and_the_command_that_was_said_sends_all_later(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    port = hub.server_port
    hub.shutdown()
    hub.server_close()
    Machine(tmp_path / "my run").until(1)
    run, publishing = published(tmp_path / "my run", lines, wait=1)
    assert lines[0].startswith("the Hub is out of reach: ")
    assert run.resumed() == 1
    run.until(11)
    publishing.finish(run.run)
    said = lines[-1].partition("epoch 11 is NOT on the Hub; send it with: s8lib ")[2]
    with pytest.raises(ConnectionError, match="the Hub is out of reach: "):
        publishing.publish(run.run)
    with serve(port) as back:
        code, output = finish(command(*shlex.split(said), HF_TOKEN=WRITE))
        assert (code, output) == (
            0,
            f"epoch 11 is on the Hub: {back.url}/{NAME}/commit/{back.commits(NAME)[0].oid}\n",
        )
        check_consistent(back.commits(NAME)[0], 11, tmp_path)


@pytest.mark.usefixtures("processes")
def test_neither_finish_nor_a_question_waits_longer_than_it_may_and_no_process_is_left(
    hub: LocalHub, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, publishing = published(tmp_path / "run", lines, wait=2)
    run.until(2)
    hub.fail("*", "hang", times=100)
    publishing.finish(run.run)
    assert [line.split(";")[0] for line in lines] == ["epoch 2 is NOT on the Hub"]
    assert not clients_of(hub)
    assert list((run.path / ".outgoing").iterdir()) == []
    monkeypatch.setattr("s8lib.run.hub.CHECK_LIMIT", 1.0)
    publisher(lines)
    assert lines[1] == "no answer from the Hub in 1 s; tried again when a commit is due"
    assert not clients_of(hub)


def test_with_the_limits_as_they_are_a_hub_that_hangs_for_ten_minutes_costs_no_commit(
    hub: LocalHub, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only waiting moves: an upload hangs, and then every look at the Hub."""
    now, limits = 0.0, iter([STILL_LIMIT, *[CHECK_LIMIT] * 99])

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    publishing = s8.HubPublisher(NAME, token=WRITE, say=lines.append)
    publishing.pause, send = FIRST_PAUSE, publishing.repo.send

    def hanging(save: Sending) -> str:
        if now > 600:
            return send(save)
        sleep(next(limits))
        raise OutOfReach("no answer")

    monkeypatch.setattr(publishing.repo, "send", hanging)
    monkeypatch.setattr("s8lib.run.copies.time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    run = Machine(tmp_path / "run", [publishing], lines=lines).until(2)
    publishing.finish(run.run)
    assert lines[-1].startswith("epoch 2 is on the Hub")
    assert any("nothing has moved for" in line for line in lines)


def test_downloads_do_without_xet_whose_wait_for_a_silent_store_has_no_end(
    hub: LocalHub, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(1)
    publishing.finish(run.run)
    plain, offered = hub.endpoints.answer, []

    def over_xet_too(endpoint: str, request: Any, named: dict[str, str | None]) -> Any:
        answer = plain(endpoint, request, named)
        if endpoint == "resolve" and str(named["path"]).endswith((".pt", ".safetensors")):
            offered.append(named["path"])
            answer.headers.update({"X-Xet-Hash": "b" * 64, "X-Xet-Refresh-Route": f"{hub.url}/nowhere"})
        return answer

    monkeypatch.setattr(hub.endpoints, "answer", over_xet_too)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    assert fetch_run(NAME, s8.RunFolder(tmp_path / "there"))
    with pytest.raises(s8.ModelError, match="does not fit"):  # `Machine` saves no network; but it arrived
        s8.ResNet42.from_pretrained(NAME, cache_dir=tmp_path / "cache")
    assert len({*offered}) == 2


@pytest.mark.parametrize(
    ("message", "words", "otherwise"),
    [
        ("Invalid username or password.", "there is no such repository", "token is not valid"),
        ("Private repository storage limit reached", "limit reached", "write access"),
    ],
)
def test_the_hubs_own_words_are_not_followed_by_wrong_advice(
    hub: LocalHub, message: str, words: str, otherwise: str
) -> None:
    hub.fail("info", 401 if "password" in message else 403, message=message)
    with pytest.raises(s8.HubError, match=words) as raised:
        HubRepo(NAME).manifest()
    assert otherwise not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (json.JSONDecodeError("Expecting value", "<html>", 0), OutOfReach, "Expecting value"),  # a proxy's page
        (RuntimeError("HTTP status client error (403 Forbidden) for url"), s8.HubError, "give it write access"),
        (RuntimeError("HTTP status server error (503) for url"), OutOfReach, "server error"),
    ],
)
def test_errors_without_a_response_are_permanent_only_where_they_say_so(
    error: Exception, kind: type[Exception], words: str
) -> None:
    found = explained(error)
    assert type(found) is kind
    assert words in str(found)


BAD = [
    ({"token": "hf_nobodyKnows"}, "this token is not valid: make one with write access"),
    ({"token": READ}, "this token may not do this: give it write access at"),
    ({"token": FINE_READ}, "give it write access at"),
    ({"token": FINE, "repo_id": f"{ORG}/net"}, "is not there for this token"),
    ({"token": "hf_two words"}, "holds a character that no token of the Hub has"),
    ({"repo_id": "nobody/net"}, ", or use your own namespace"),
    ({"repo_id": "net"}, "'net' is no name of a repository: write USER/NAME"),
    ({"repo_id": "tester/a--b"}, "'tester/a--b' is no name of a repository"),
    ({"every": 0}, "every = 0"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[words[:20] for _, words in BAD])
def test_what_cannot_be_published_with_is_an_error_before_training(
    hub: LocalHub, lines: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(s8.HubError) as raised:
        s8.HubPublisher(**{"repo_id": NAME, "token": WRITE, "say": lines.append, **options})
    assert words in str(raised.value)
    assert options.get("token", WRITE) not in str(raised.value)
    assert (lines, hub.endpoints.repos) == ([], {})


def test_a_token_that_can_only_read_is_refused_where_the_repository_exists_too(
    hub: LocalHub, lines: list[str]
) -> None:
    hub.endpoints.repos[NAME] = Repo()
    with pytest.raises(s8.HubError, match="give it write access at"):
        publisher(lines, token=READ)


@pytest.mark.parametrize("token", [WRITE, FINE, OAUTH])
def test_a_token_that_may_write_makes_the_repository_private_only_if_asked(
    hub: LocalHub, tmp_path: Path, lines: list[str], token: str
) -> None:
    publishing = publisher(lines, token=token, private=token == WRITE)
    assert (hub.endpoints.repos, lines) == ({}, [])
    publishing.publish(Machine(tmp_path / "run").until(1).run)
    assert hub.endpoints.repos[NAME].private == (token == WRITE)


def test_who_is_refused_before_the_first_epoch_or_commit_has_made_no_repository(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Machine(tmp_path / "run").until(1).path
    small = ["--data", "synthetic", "--recipe", "quick", "--model", MODEL, "--device", "cpu"]
    assert cli.main(["train", *small, "--run", str(run), "--hub-repo", NAME]) == 2
    assert "was trained on other data" in capsys.readouterr().err
    with s8.RunFolder(run).lock():
        assert cli.main(["publish", "--run", str(run), "--hub-repo", NAME]) == 2
    assert "another process is training" in capsys.readouterr().err
    assert hub.endpoints.repos == {}


def test_a_run_that_is_nowhere_here_does_not_begin_before_the_hub_has_said_what_it_holds(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    published(tmp_path / "run", lines)[0].until(2).run.sync()
    lines.clear()
    hub.fail("auth_check", 503, times=99)
    new = published(tmp_path / "new", lines)[0]
    with pytest.raises(s8.RunError, match="must not start over because of that: see that tester/.* train without"):
        new.resumed()
    assert len(lines) == 1 + RETRIES
    hub.heal()
    hub.fail("auth_check", 503, times=2)
    assert new.resumed() == 2


def test_without_a_token_training_for_the_hub_is_bad_input_and_nothing_is_changed(
    hub: LocalHub, tmp_path: Path
) -> None:
    options = ("--data", "synthetic", "--model", "wrn-10-1", "--device", "cpu", "--run", tmp_path / "run")
    code, output = finish(command("train", *options, "--hub-repo", NAME, HF_TOKEN=""))
    assert code == 2
    assert "error: publishing needs a token of the Hugging Face Hub: set HF_TOKEN" in output
    assert not (tmp_path / "run").exists()


# A process that trains and is interrupted: epoch 10 is under way to a Hub that hangs, and epoch 12 done.
PUBLISHING = """
from pathlib import Path
from tests.hub_runs import NAME
from tests.saves import Machine
import s8lib as s8, os, sys
publishing = s8.HubPublisher(NAME)
run = Machine(Path(sys.argv[1]), [publishing])
run.run.say = print
run.until(12)
print("training", flush=True)
publishing.finish(run.run)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stop_in_mid_upload_waits_for_nothing_loses_nothing_and_leaks_no_token(
    hub: LocalHub, tmp_path: Path, lines: list[str], number: signal.Signals
) -> None:
    hub.fail("lfs_put", "hang", times=2)
    environment = {**os.environ, "HF_TOKEN": WRITE, "PYTHONPATH": str(ROOT)}
    script = [sys.executable, "-c", PUBLISHING, str(tmp_path / "run")]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        until(hub.hanging.is_set)
        commands = clients_of(hub)
        process.send_signal(number)
        output = (first + process.stdout.read()).decode()
    until(lambda: not clients_of(hub))  # the upload's process goes with the one that started it
    hub.heal()
    assert len(commands) == 1
    assert "training" in output
    told = r"epoch 12 is NOT on the Hub; of epoch 10, .* MB went out; send it with: s8lib publish"
    assert number == signal.SIGKILL or re.search(told, output)
    (tmp_path / "run/.hub/outgoing").mkdir(parents=True)  # as the version before left it
    assert list((tmp_path / "run/.outgoing").iterdir()) or number == signal.SIGINT
    assert Machine(tmp_path / "run").resumed() == 12
    assert not [name for name in (".hub", ".outgoing") if (tmp_path / "run" / name).exists()]
    publisher(lines).publish(s8.RunFolder(tmp_path / "run"))
    check_consistent(hub.commits(NAME)[0], 12, tmp_path)
    assert WRITE not in output + "".join(lines + commands)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and WRITE.encode() in file.read_bytes()]


@pytest.mark.usefixtures("processes")
def test_a_token_that_the_hub_repeats_in_its_answer_is_not_said(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(1)
    hub.fail("commit", 403, message=f"Bearer {WRITE} may not do this")
    publishing.finish(run.run)
    assert "Bearer <token> may not do this" in lines[0]
    assert WRITE not in "".join(lines)
    quoted = RuntimeError(f"Illegal header value b'Bearer {WRITE}\\n'")  # the line's end, too
    assert str(explained(quoted)).endswith("b'Bearer <token>\\n'")


def test_on_another_machine_the_command_line_goes_on_from_the_hub_and_equals_an_uninterrupted_run(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    settings = {"batch_size": 500, "image_size": 8}
    recipe = s8.choose_recipe("quick", model=MODEL, epochs=2, device="cpu").with_settings(settings)
    data = s8.choose_data("synthetic")
    for run, cut_after in (("whole", None), ("lost", 1)):
        model = s8.build_model(MODEL, len(data.classes), seed=recipe.seed)
        with pytest.raises(Cut) if cut_after else contextlib.nullcontext():
            train(tmp_path / run, data, recipe=recipe, model=model, cut_after=cut_after)
    publisher(lines).publish(s8.RunFolder(tmp_path / "lost"))
    options = ["--data", "synthetic", "--recipe", "quick", "--model", MODEL, "--epochs", 2, "--device", "cpu"]
    options += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    new = tmp_path / "new"
    code, output = finish(command("train", *options, "--run", new, "--hub-repo", NAME, HF_TOKEN=FINE))
    assert code == 0, output
    _, second = hub.commits(NAME)
    assert f"{NAME} on the Hub: epoch 1 is brought to {new} from https://huggingface.co/{NAME}" in output
    assert "epoch   1/2" not in output
    assert output.splitlines()[-1] == f"epoch 2 is on the Hub: {hub.url}/{NAME}/commit/{second.oid}"
    assert_same_bits(outcome(new), outcome(tmp_path / "whole"))
    with pytest.raises(s8.RunError, match="holds another run: recipe seed is 0 there and 4 here"):
        train(new, data, recipe=dataclasses.replace(recipe, seed=4))


def test_another_run_in_the_repository_is_left_there_and_replaced_only_if_asked_for(
    hub: LocalHub, tmp_path: Path, lines: list[str], tiny: s8.Cifar100
) -> None:
    for seed, overwrite in ((0, False), (4, False), (4, True)):
        short = dataclasses.replace(RECIPE, epochs=1, phase1_epochs=0, warmup_epochs=0, seed=seed)
        publishing = publisher(lines, overwrite=overwrite)
        with (
            pytest.raises(s8.RunError, match="holds another run: recipe seed is 0 there and 4 here")
            if seed and not overwrite
            else contextlib.nullcontext()
        ):
            train(tmp_path / str(seed), tiny, recipe=short, hub=publishing, lines=lines)
    assert (
        f"{NAME} on the Hub: another run is there (recipe seed is 0 there and 4 here): this one starts without"
        in lines
    )
    assert "is brought to" not in " ".join(lines)
    seeds = [json.loads(commit.files["recipe.json"].content)["seed"] for commit in hub.commits(NAME)]
    assert seeds == [0, 4]


def test_a_run_is_fetched_once_and_a_repository_without_one_or_none_is_told(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(2)
    publishing.finish(run.run)
    hub.endpoints.repos["tester/empty"] = Repo()
    here = s8.RunFolder(tmp_path / "new", lines.append)
    assert not fetch_run("tester/empty", here)
    with pytest.raises(s8.HubError, match="there is no such repository"):
        fetch_run("tester/none", here)
    hub.fail("info", "reset", times=9)
    with pytest.raises(ConnectionError, match="the Hub is out of reach: "):
        fetch_run(NAME, here)
    hub.heal()
    assert fetch_run(NAME, here)
    assert not fetch_run(NAME, here)
    assert here.best_weights() == (2, here.best)
    newest = contents(run.path, lambda path: published_otherwise(path) or path.name == "epoch_001.pt")
    assert contents(here.path, published_otherwise) == newest


def test_a_download_that_breaks_is_no_reason_to_start_over(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(2)
    publishing.finish(run.run)
    other = Machine(tmp_path / "new", [publisher(lines)], lines=lines)
    hub.fail("resolve", "reset", times=99, skip=4)  # a HEAD and a GET for the manifest on each branch
    with pytest.raises(s8.RunError, match="must not start over because of that: see that tester/"):
        other.resumed()
    hub.heal()
    assert other.resumed() == 2


def test_what_is_damaged_in_the_repository_is_left_there_and_named(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(2)
    publishing.finish(run.run)
    whole = hub.resume(NAME)
    damaged = ("model.safetensors", "recipe.json", "report.json")
    files = whole.files | {name: File(b"damaged", lfs=False) for name in damaged}
    hub.endpoints.repos[NAME].branches["resume"].append(Commit("damaged", files, ""))
    new = s8.RunFolder(tmp_path / "new", lines.append)
    assert fetch_run(NAME, new)
    for name in ("best/model.safetensors", "recipe.json", "report.json"):
        assert f"{NAME} on the Hub: {name} is damaged there: passed over" in lines
    with pytest.raises(s8.RunError, match="damaged or incomplete"):
        new.best_weights()
    assert fetch_run(NAME, s8.RunFolder(tmp_path / "whole"), revision=whole.oid)


def test_a_run_is_not_set_back_by_its_own_start_but_replaced_by_another_run(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    publishing = publisher(lines)
    ahead = Machine(tmp_path / "ahead").until(20)
    publishing.finish(ahead.run)
    again = Machine(tmp_path / "again", [publishing], lines=lines).until(10)
    publishing.finish(again.run)
    assert "it holds epoch 20 of this very run, and is not set back" in lines[0]
    assert "epoch 10 is NOT on the Hub" in lines[-1]
    other = Machine(tmp_path / "other", recipe=dataclasses.replace(RECIPE, seed=9)).until(10)
    publishing.finish(other.run)
    assert f"{NAME} holds another run: recipe seed is 3 there and 9 here" in other.lines[0]
    publishing.repo.overwrite = True
    publishing.finish(other.run)
    assert [commit.title.split(":")[0] for commit in hub.commits(NAME)] == ["epoch 20", "epoch 10"]
    check_consistent(hub.commits(NAME)[1], 10, tmp_path)


def test_what_s8lib_did_not_put_there_is_replaced_only_if_that_is_asked_for_and_nothing_of_it_is_deleted(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(2)
    bert = {name: File(b"theirs", False) for name in ("model.safetensors", "vocab.txt", "model.onnx", "README.md")}
    hub.endpoints.repos[NAME] = Repo()
    hub.endpoints.repos[NAME].commits.append(Commit("theirs", bert, ""))
    for start in (publishing.publish, publishing.claim):
        with pytest.raises(s8.RunError, match="holds files that are no run of s8lib's, such as model.onnx"):
            start(run.run)
    assert [commit.title for commit in hub.commits(NAME)] == ["theirs"]
    publishing.repo.overwrite = True
    publishing.publish(run.run)
    files = hub.commits(NAME)[-1].files
    assert {"vocab.txt", "model.onnx", "manifest.json"} <= files.keys()
    assert files["model.safetensors"].content != b"theirs"


def test_a_strangers_repository_is_bad_input_before_the_first_epoch_and_stays_as_it_is(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.endpoints.repos[NAME] = Repo(commits=[Commit("initial commit", {"vocab.txt": File(b"theirs", False)}, "")])
    small = ["--data", "synthetic", "--recipe", "quick", "--model", MODEL, "--device", "cpu"]
    training = ["train", *small, "--run", str(tmp_path / "new")]
    publishing = ["publish", "--run", str(Machine(tmp_path / "run").until(1).path)]
    for arguments in (training, publishing):
        assert cli.main([*arguments, "--hub-repo", NAME]) == 2
        printed = capsys.readouterr()
        assert printed.err == (
            f"error: {NAME} on the Hub holds files that are no run of s8lib's, such as vocab.txt: "
            "name another repository or revision or, to publish there, say overwrite\n"
        )
        assert "epoch   1/" not in printed.out
    assert hub.endpoints.repos[NAME].branches.keys() == {"main"}
    assert hub.commits(NAME) == []


def test_what_a_later_version_of_the_library_has_published_is_not_replaced(
    hub: LocalHub, tmp_path: Path, lines: list[str]
) -> None:
    run, publishing = published(tmp_path / "run", lines)
    run.until(2)
    hub.endpoints.repos[NAME] = Repo()
    hub.endpoints.repos[NAME].commits.append(
        Commit("later", {"manifest.json": File(b'{"format": 99}', False)}, "")
    )
    with pytest.raises(s8.RunError, match=f"{NAME} on the Hub: it was saved by a later version of s8lib"):
        publishing.publish(run.run)
    assert [commit.title for commit in hub.commits(NAME)] == ["later"]


@pytest.mark.skipif(
    "S8_LIVE_HF_TOKEN" not in os.environ, reason="S8_LIVE_HF_TOKEN, a token with write access, is not set"
)
def test_live_on_the_real_hub(tmp_path: Path, lines: list[str]) -> None:
    """Publishes to a private repository of the token's owner, fetches, and deletes it; by Xet, where installed."""
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ["S8_LIVE_HF_TOKEN"])
    name = f"{api.whoami()['name']}/s8lib-live-test-{os.getpid()}"
    run = Machine(tmp_path / "run").until(3)
    try:
        publishing = s8.HubPublisher(name, token=api.token, private=True, say=lines.append)  # type: ignore[arg-type]
        publishing.finish(run.run)
        assert lines[-1].startswith("epoch 3 is on the Hub: https://"), lines
        assert fetch_run(name, s8.RunFolder(tmp_path / "back"), api.token)
        assert s8.RunFolder(tmp_path / "back").best_weights() is not None
    finally:
        api.delete_repo(name, missing_ok=True)
