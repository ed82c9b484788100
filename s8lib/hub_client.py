"""The Hugging Face Hub's client: the token, its errors as sentences, and its uploads in a process of their own.

A process, because the client sets no time limits on uploads and a thread that hangs cannot be ended; because its
thread pools would hold up the exit of a training that was stopped; and because what it prints must not reach a
notebook's cell. A line of JSON on stdin says what to do, the last line of its output what came of it; when stdin
closes, whoever asked is gone and it ends too. The token comes by stdin alone, as arguments can be read by everyone
on the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors, get_session, get_token
from huggingface_hub.utils import parse_ratelimit_headers, tqdm, validate_repo_id

from s8lib.validation import BadInput

SILENT_FOR = 120.0  # seconds without a byte, after which an upload gives up
BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "0", "TQDM_DISABLE": ""}  # on: `_tell_what_moves` reads them
TICK = 0.1  # seconds between two looks at a process that is waited for
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
    """The Hub cannot be reached or does not want to answer now: trying again, after `wait` seconds, may help."""

    def __init__(self, error: str, wait: float = 0.0) -> None:
        super().__init__(error)
        self.wait = wait


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
        answer = ask("whoami", 20.0, token=usable_token(token))
    except (HubError, OutOfReach) as error:
        return f"whose it is was not to be learned: {error}"
    role = answer.get("auth", {}).get("accessToken", {}).get("role", "")
    can = {
        "read": f"it can only read: publishing needs one with write access, {TOKENS_PAGE}",
        "fineGrained": "it can publish where its fine-grained permissions allow it",
    }
    return f"{answer['name']}'s; {can.get(role, 'it can publish')}"


def check_repo_id(repo_id: str) -> str:
    """`repo_id`, if it is "user/name"; else HubError."""
    with contextlib.suppress(errors.HFValidationError):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return repo_id
    raise HubError(f"{repo_id!r} is no name of a repository: write USER/NAME, in letters, digits, '-', '_', '.'")


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
    permanent = isinstance(error, ValueError)
    while error.__cause__ is not None and not isinstance(error, errors.HfHubHTTPError):
        error = error.__cause__
    if not isinstance(error, errors.HfHubHTTPError):
        said = one_line(error)
        return HubError(what + said) if permanent else OutOfReach(f"{what}the Hub is out of reach: {said}")
    status, headers = error.response.status_code, error.response.headers
    said = re.sub(r"hf_\w+", "<token>", " ".join((error.server_message or error.response.reason_phrase).split()))
    said = f"{what}the Hub answered {status}, {said[:200].rstrip('.')}{ADVICE.get(status, '')}"
    if 400 <= status < 500 and status not in TRY_AGAIN:
        return HubError(said)
    wait, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers) if status == 429 else None
    return OutOfReach(said, int(wait) if wait.isdigit() else limit.reset_in_seconds if limit else 0)


def one_line(error: BaseException) -> str:
    """What is at the root of `error`: the client wraps "Connection refused" in a paragraph of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def ask(
    task: str,
    limit: float,
    stop: threading.Event | None = None,
    hear: Callable[[int], None] = lambda moved: None,
    **job: Any,
) -> dict[str, Any]:
    """What `check`, `read` or `send` below answers in a process of its own, to `job` and its `token`.

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
            [sys.executable, "-m", "s8lib.hub_client"],
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
            process.stdin.write(json.dumps({"task": task, **job}).encode() + b"\n")
        deadline, moved = time.monotonic() + limit, 0
        while process.poll() is None:
            if time.monotonic() > deadline or (stop and stop.is_set()):
                process.kill()
                raise OutOfReach(f"no answer from the Hub in {limit:.0f} s")
            if (now := _moved(Path(output.name))) > moved:
                deadline, moved = time.monotonic() + limit, now
                hear(moved)
            time.sleep(TICK)
        text = Path(output.name).read_text(errors="replace")
    last_line = text.strip().rpartition("\n")[2].replace(job["token"] or "\n", "<token>")
    try:
        answer = dict(json.loads(last_line))
    except (ValueError, TypeError):  # it was killed, or failed in a way that it does not know
        raise OutOfReach(f"its process ended with {process.returncode}: {last_line[:200]}") from None
    if "error" in answer:
        raise HubError(answer["error"]) if answer["wait"] is None else OutOfReach(**answer)
    return answer


def _moved(output: Path) -> int:
    """How many bytes a process has sent, by its last word of that."""
    with open(output, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
        return int((re.findall(rb"\nmoved (\d+)\n", file.read()) or [0])[-1])


def main() -> None:
    """The process that `ask` starts."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    get_session().timeout = SILENT_FOR
    tasks: dict[str, Callable[..., Any]] = {"check": check, "read": read, "send": send, "whoami": HfApi.whoami}
    try:
        with open(os.devnull, "w") as nobody, contextlib.redirect_stderr(nobody):  # the client's bars and warnings
            answer = tasks[job.pop("task")](HfApi(token=job.pop("token")), **job) or {}
    # OSError: a staged file, offline mode. RuntimeError: what the client makes of any failure in mid-file.
    # ValueError: HubError, or an answer that the client does not understand.
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        problem = error if isinstance(error, HubError) else explained(error)
        answer = {"error": str(problem), "wait": getattr(problem, "wait", None)}
    print("\n" + json.dumps(answer), flush=True)
    os._exit(0)  # no word of the client may follow, and none of its threads is waited for


def check(api: HfApi, repo_id: str, private: bool) -> None:
    """See that the token may publish to `repo_id`, and make the repository if it is not there."""
    namespace, name = repo_id.split("/")
    who = api.whoami()
    mine = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if namespace not in mine:
        theirs = " or ".join(f"{one}/{name}" for one in mine)
        raise HubError(f"this token is {who['name']}'s, who cannot write to {namespace}: publish to {theirs}")
    api.create_repo(repo_id, private=private, exist_ok=True)
    api.auth_check(repo_id, write=True)  # `create_repo` succeeds with any token where the repository exists


def read(api: HfApi, repo_id: str, revisions: list[str], names: list[str]) -> dict[str, Any]:
    """Of each revision its commit, the names of its files, and of those in `names` what is there, byte by byte.

    All but the last of `revisions` may be missing.
    """
    there = {}
    for revision in revisions:
        try:
            info = api.model_info(repo_id, revision=revision, timeout=SILENT_FOR)
        except errors.RevisionNotFoundError:
            if revision == revisions[-1]:
                raise
            continue
        held, texts = [sibling.rfilename for sibling in info.siblings or ()], {}
        with tempfile.TemporaryDirectory() as folder:
            for name in set(names) & set(held):
                path = Path(api.hf_hub_download(repo_id, name, revision=info.sha, local_dir=folder))
                texts[name] = path.read_bytes().decode("latin-1")
        there[revision] = {"commit": info.sha, "held": held, "texts": texts}
    return there


def send(
    api: HfApi,
    repo_id: str,
    files: dict[str, list[str]],
    outdated: list[str],
    new: bool,
    squash: bool,
    **commit: Any,
) -> dict[str, str]:
    """One commit of `files`, each a path and a sha256 or "", on top of the head it was made for, or none.

    Its branch is made if it is `new`. With `squash` only this commit is kept of its history; `kept` is why not.
    """
    _tell_what_moves()
    additions = [CommitOperationAdd(name, path) for name, (path, _) in files.items()]
    for addition in additions:
        if files[addition.path_in_repo][1] not in ("", addition.upload_info.sha256.hex()):
            raise HubError(f"{addition.path_in_repo} is not what the manifest says")
    if new:
        api.create_branch(repo_id, branch=commit["revision"], revision=commit["parent_commit"])
    url = api.create_commit(repo_id, [*additions, *map(CommitOperationDelete, outdated)], **commit).commit_url
    try:
        if squash:
            api.super_squash_history(repo_id, branch=commit["revision"], commit_message=commit["commit_message"])
    except errors.HTTPError as error:  # the save is there; the next one tries again
        return {"url": url, "kept": str(explained(error))}
    return {"url": url, "kept": ""}


def _tell_what_moves() -> None:
    """Print how many bytes have gone out. The client updates its bars for nobody; of Xet nothing else tells."""
    lock, moved, told, plain = threading.Lock(), 0, 0.0, tqdm.update

    def update(bar: Any, n: float | None = 1) -> bool | None:
        nonlocal moved, told
        with lock:
            # Bytes, and not those that Xet reads through to find what is new.
            if n and getattr(bar, "unit", "") == "B" and not bar.desc.startswith("Processing"):
                moved += int(n)
                if time.monotonic() > told + TICK or bar.n + n == bar.total:  # the end of a file
                    told = time.monotonic()
                    print(f"\nmoved {moved}", flush=True)
        return plain(bar, n)

    tqdm.update = update


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
