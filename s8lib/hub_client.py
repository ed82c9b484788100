"""The Hugging Face Hub's client: the token, its errors as sentences, and its uploads in a process of their own.

A process, because the client sets no time limits on uploads and a thread that hangs cannot be ended; because its
thread pools would hold up the exit of a training that was stopped; and because what it prints must not reach a
notebook's cell. It takes its task from stdin and leaves the answer in a temporary folder; when stdin closes,
whoever asked is gone and it ends too. The token comes by stdin alone: everyone on the machine can read arguments.
"""

import contextlib
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token
from huggingface_hub.utils import tqdm, validate_repo_id

from s8lib.validation import BadInput, one_line

BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "TQDM_DISABLE": ""}  # on: `_tell_what_moves` reads them
TICK = 0.1  # seconds between two looks at a process that is waited for
MOVED, ANSWER = "moved", "answer"  # files by which a process tells what has gone out, and what came of it
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
TRY_AGAIN = (408, 409, 412, 425, 429)  # of the 4xx: those that may pass
ADVICE = {
    401: f"; this token is not valid: make one with write access at {TOKENS_PAGE}",
    402: "; it wants this account to pay for that",
    403: f"; this token may not do this: give it write access at {TOKENS_PAGE}, or use your own namespace",
    404: "; there is no such repository or revision, or this token may not see it",
    413: "; a file is larger than the Hub takes",
}


class HubError(BadInput):
    """A repository, a token or a setting that cannot be used with the Hub; the message says what to do."""


class OutOfReach(ConnectionError):
    """The Hub cannot be reached or does not want to answer now: trying again later may help."""


def usable_token(token: str | None = None) -> str:
    """The token given, or this machine's; asked for here, as Colab gives its secrets to the main thread only.

    Raises:
        HubError: there is none, or it cannot be one.
    """
    token = (token or get_token() or "").strip()
    if not token:
        raise HubError(
            "publishing needs a token of the Hugging Face Hub: set HF_TOKEN (on Colab, the secret of that name), "
            "or run `hf auth login`"
        )
    if not re.fullmatch(r"[\w.~+/=:-]+", token, re.ASCII):  # the client would quote it in its error
        raise HubError("this token holds a character that no token of the Hub has: was it copied whole?")
    return token


def owner_of(token: str) -> str:
    """Whose token it is and whether it may write, in a line; or why the Hub does not say."""
    try:
        answer = ask(HfApi.whoami, 20.0, token=usable_token(token))
    except (HubError, OutOfReach) as error:
        return f"whose it is was not to be learned: {error}"
    if answer.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return f"{answer['name']}'s; it can only read: publishing needs one with write access, {TOKENS_PAGE}"
    return f"{answer['name']}'s; it can publish, as far as its permissions go"


def check_repo_id(repo_id: str) -> str:
    """`repo_id`, if it is "user/name"; else HubError."""
    with contextlib.suppress(errors.HFValidationError):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return repo_id
    raise HubError(f"{repo_id!r} is no name of a repository: write USER/NAME, in letters, digits, '-', '_', '.'")


@contextlib.contextmanager
def without_xet() -> Iterator[None]:
    """Within it the client downloads over HTTP, with time limits; Xet's waits for a silent store for ever."""
    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn whatever the client raises into HubError, or OutOfReach where trying again may help."""
    try:
        yield
    # HTTPError: httpx's and the client's. LocalEntryNotFoundError: no connection. RuntimeError: one that Xet lost.
    except (errors.HTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, RuntimeError) as error:
        raise explained(error, f"{what}: ") from None


def explained(error: BaseException, what: str = "") -> HubError | OutOfReach:
    """The client's error in one line, without a token that the Hub repeats."""
    permanent = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)  # a proxy's page
    while error.__cause__ is not None and not isinstance(error, errors.HfHubHTTPError):
        error = error.__cause__
    status, said = 0, one_line(error)
    if isinstance(error, errors.HfHubHTTPError):
        status, said = error.response.status_code, error.server_message or error.response.reason_phrase
    elif refused := re.search(r"client error \((40[123])\b", said):  # by what hands out Xet's keys
        status = int(refused[1])
    said = re.sub(r"hf_\w+", "<token>", " ".join(said.split()))[:200].rstrip(".")
    if not status:
        return HubError(what + said) if permanent else OutOfReach(f"{what}the Hub is out of reach: {said}")
    # What it answers without a token where there is no such repository; no other token makes room.
    advice = ADVICE[404] if "username or password" in said else ADVICE.get(status, "")
    said = f"{what}the Hub answered {status}, {said}{'' if 'storage' in said else advice}"
    return HubError(said) if 400 <= status < 500 and status not in TRY_AGAIN else OutOfReach(said)


def ask(
    task: Callable[..., Any],
    limit: float,
    stop: threading.Event | None = None,
    hear: Callable[[int], None] = lambda moved: None,
    *,
    token: str | None,
    **job: Any,
) -> Any:
    """What `task`, such as `read` or `send` below, returns in a process of its own, given HfApi and `job`.

    The process ends `limit` seconds after its start or the last byte it sent, with `stop`, or with this one.

    Args:
        hear: takes how many bytes of files have gone out.

    Raises:
        HubError: the Hub refuses it for good.
        OutOfReach: trying again may help.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        open(Path(folder, "output"), "wb") as output,  # a pipe could fill up and block
        subprocess.Popen(
            [sys.executable, "-c", "from s8lib.hub_client import main; main()", folder],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the one who trains
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **BARS},
        ) as process,
    ):
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # it could not start: its output says why
            process.stdin.write(pickle.dumps((task, token, job)))
        deadline, moved, told = time.monotonic() + limit, 0, Path(folder, MOVED)
        ended = False
        while not ended:
            ended = process.poll() is not None  # before the last look at what has moved
            if told.exists() and (now := int(told.read_text() or 0)) > moved:
                deadline, moved = time.monotonic() + limit, now
                hear(moved)
            if not ended and (time.monotonic() > deadline or (stop and stop.is_set())):
                process.kill()
                raise OutOfReach(f"no answer from the Hub in {limit:.0f} s")
            time.sleep(0 if ended else TICK)
        try:
            answer = pickle.loads(Path(folder, ANSWER).read_bytes())
        except (OSError, EOFError, pickle.UnpicklingError):  # killed, or failed in a way that it does not know
            said = Path(output.name).read_text(errors="replace").strip().rpartition("\n")[2]
            answer = OutOfReach(f"its process ended with {process.returncode}: {said[:200]}")
    if isinstance(answer, Exception):
        answer.args = (str(answer).replace(token or "\n", "<token>"),)
        raise answer
    return answer


def main() -> None:
    """The process that `ask` starts."""
    task, token, job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(os.devnull, "w") as nobody, contextlib.redirect_stderr(nobody):  # the client's bars and warnings
        answer = answer_of(task, token, job)
    Path(sys.argv[1], ANSWER).write_bytes(pickle.dumps(answer))
    os._exit(0)  # none of the client's threads is waited for


def answer_of(task: Callable[..., Any], token: str | None, job: dict[str, Any]) -> Any:
    """What `task` returns, or its error, explained."""
    try:
        return task(HfApi(token=token), **job)
    # OSError: a staged file, offline mode. RuntimeError: what the client makes of any failure in mid-file.
    # ValueError: HubError, or an answer that the client does not understand.
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        return error if isinstance(error, HubError) else explained(error)


class Head(NamedTuple):
    """A revision of a repository: its commit, the names of its files, and what is in those that were asked for."""

    commit: str
    held: set[str]
    contents: dict[str, bytes]


def read(
    api: HfApi, repo_id: str, revisions: list[str], names: tuple[str, ...], write: bool = False
) -> dict[str, Head]:
    """What is there in each revision; all but the last of them may be missing.

    If it is to be written there, the token has to do, and there need not be a repository: it has no commit then.
    """
    if write:
        try:
            api.auth_check(repo_id, write=True)
        except errors.RepositoryNotFoundError:
            _check_may_make(api.whoami(), repo_id)
            return {revisions[-1]: Head("", set(), {})}
    there = {}
    for revision in revisions:
        try:
            info = api.model_info(repo_id, revision=revision)
        except errors.RevisionNotFoundError:
            if revision == revisions[-1]:
                raise
            continue
        held, contents = {sibling.rfilename for sibling in info.siblings or ()}, {}
        with tempfile.TemporaryDirectory() as folder:
            for name in held.intersection(names):
                path = api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=folder)
                contents[name] = Path(path).read_bytes()
        there[revision] = Head(str(info.sha), held, contents)
    return there


def _check_may_make(who: dict[str, Any], repo_id: str) -> None:
    """Raise HubError if the token, of which the Hub says `who`, may not make this repository, or not see it."""
    token, owner = who.get("auth", {}).get("accessToken", {}), repo_id.lower().partition("/")[0]  # OAuth has none
    names = {who["name"], *(org["name"] for org in who.get("orgs", ()) if org.get("roleInOrg") != "read")}
    if token.get("role") == "fineGrained":  # what it may not see, private repositories, seems missing too
        scopes = token.get("fineGrained", {}).get("scoped", ())
        names &= {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
    if token.get("role") == "read" or owner not in map(str.lower, names):
        raise HubError(f"{repo_id} is not there for this token, which cannot make it{ADVICE[403]}")


def send(api: HfApi, repo_id: str, files: dict[str, tuple[str, str]], outdated: list[str], **commit: Any) -> str:
    """One commit of `files`, each a path and a sha256 or "", on top of the head it was made for, or none."""
    _tell_what_moves()
    additions = [CommitOperationAdd(name, path) for name, (path, _) in files.items()]
    for addition in additions:
        if files[addition.path_in_repo][1] not in ("", addition.upload_info.sha256.hex()):
            raise HubError(f"{addition.path_in_repo} is not what the manifest says")
    return api.create_commit(repo_id, [*additions, *map(CommitOperationDelete, outdated)], **commit).commit_url


def _tell_what_moves() -> None:
    """Write how many bytes have gone out. The client updates its bars for nobody; of Xet nothing else tells."""
    lock, moved, plain = threading.Lock(), 0, tqdm.update

    def update(bar: Any, n: float | None = 1) -> bool | None:
        nonlocal moved
        with lock:
            # Bytes, and not those that Xet reads through to find what is new.
            if n and getattr(bar, "unit", "") == "B" and not bar.desc.startswith("Processing"):
                moved += int(n)
                Path(sys.argv[1], MOVED).write_text(str(moved))
        return plain(bar, n)

    tqdm.update = update


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
