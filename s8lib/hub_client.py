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
from collections.abc import Iterator
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # httpx's or httpx2's, whichever this client is built on
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers, validate_repo_id

from s8lib.validation import BadInput

SILENT_FOR = 120.0  # seconds without a byte, after which an upload gives up
TICK = 0.1  # seconds between two looks at a process that is waited for
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
TRY_AGAIN = (408, 409, 412, 425, 429)  # of the 4xx: those that may pass
ADVICE = {
    401: f"this token is not valid: make one with write access at {TOKENS_PAGE}",
    402: "it wants this account to pay for that",
    403: f"this token may not do this: give it write access at {TOKENS_PAGE}, or use your own namespace",
    404: "it is not there, or this token may not see it",
    413: "a file is larger than the Hub takes",
}


class HubError(BadInput):
    """A repository, a token or a setting that cannot be used with the Hub; the message says what to do."""


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
        raise HubError(
            "this token holds a character that no token of the Hub has: was it copied whole, and alone?"
        )
    return token


def check_repo_id(repo_id: str) -> str:
    """`repo_id`, if it is "user/name"; else HubError."""
    with contextlib.suppress(HFValidationError):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return repo_id
    raise HubError(f"{repo_id!r} is no name of a repository: write USER/NAME, in letters, digits, '-', '_', '.'")


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn whatever the client raises into HubError, or ConnectionError where trying again may help."""
    try:
        yield
    except HFValidationError:
        raise HubError(f"{what}: this is no name of a repository: write USER/NAME") from None
    # LocalEntryNotFoundError: no connection. RuntimeError: one that breaks, in the client's Xet transport.
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, RuntimeError) as error:
        answer = explain(error)
        raise (HubError if answer["permanent"] else ConnectionError)(f"{what}: {answer['error']}") from None


def explain(error: BaseException) -> dict[str, Any]:
    """What went wrong in one line, whether it is for good, and after how many seconds to try again."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    http = next((link for link in chain if isinstance(link, HfHubHTTPError)), None)
    if http is None:
        return {"error": one_line(error), "permanent": isinstance(error, ValueError)}
    status = http.response.status_code
    said = " ".join((http.server_message or http.response.reason_phrase).split())[:200].rstrip(".")
    limit, wait = parse_ratelimit_headers(http.response.headers), http.response.headers.get("Retry-After", "")
    return {
        "error": f"the Hub answered {status}, {said}" + (f"; {ADVICE[status]}" if status in ADVICE else ""),
        "permanent": 400 <= status < 500 and status not in TRY_AGAIN,
        "retry_after": int(wait) if wait.isdigit() else limit.reset_in_seconds if limit and status == 429 else 0,
    }


def one_line(error: BaseException) -> str:
    """What is at the root of `error`: the client wraps "Connection refused" in a paragraph of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def run_job(job: dict[str, Any], limit: float, stop: threading.Event | None = None) -> dict[str, Any]:
    """Do a job in a process of its own, which ends after `limit` seconds, with `stop`, or with this one.

    Args:
        job: `repo_id`, `token` and `private`; `check` to see that the token may write there; the name of a file to
            `read`; or `files` to send with the `sha256` of some, `outdated` to remove, `message` and `parent`.
    Returns:
        What was read, `url` of the commit, or `error`, whether it is `permanent`, and `retry_after` in seconds.
    """
    with tempfile.TemporaryFile() as output:  # a pipe could fill up and block
        process = subprocess.Popen(
            [sys.executable, "-m", "s8lib.hub_client"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the one who trains
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdin
        with process.stdin:
            with contextlib.suppress(BrokenPipeError):  # it could not start: its output says why
                process.stdin.write(json.dumps(job).encode() + b"\n")
            started = time.monotonic()
            while process.poll() is None and not (stop and stop.is_set()) and time.monotonic() < started + limit:
                time.sleep(TICK)
            if process.poll() is None:
                process.kill()
                process.wait()
                return {
                    "error": f"no answer from the Hub in {time.monotonic() - started:.0f} s",
                    "permanent": False,
                }
        output.seek(0)
        text = output.read().decode(errors="replace").replace(job["token"], "<token>")
    last_line = text.strip().rpartition("\n")[2]
    try:
        return dict(json.loads(last_line))
    except (ValueError, TypeError):  # it was killed, or failed in a way that it does not know
        return {"error": f"its process ended with {process.returncode}: {last_line[:200]}", "permanent": False}


def main() -> None:
    """The process that `run_job` starts."""
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    disable_progress_bars()
    get_session().timeout = SILENT_FOR
    api = HfApi(token=job["token"])
    answer: dict[str, Any] = {}
    try:
        if job.get("check"):
            check(api, job["repo_id"], job["private"])
        if "read" in job:
            answer = read(api, job)
        if "files" in job:
            answer = send(api, job)
    # OSError: a staged file, offline mode. RuntimeError: what the client makes of any failure in mid-file.
    # ValueError: HubError, or an answer that the client does not understand.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        answer = {"error": str(error), "permanent": True} if isinstance(error, HubError) else explain(error)
    print("\n" + json.dumps(answer), flush=True)
    os._exit(0)  # no word of the client may follow, and none of its threads is waited for


def check(api: HfApi, repo_id: str, private: bool) -> None:
    """See that the token may publish to `repo_id`, and make the repository if it is not there."""
    namespace, name = repo_id.split("/")
    try:
        who = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise HubError(
                f"the Hub does not accept this token: make one with write access at {TOKENS_PAGE}"
            ) from None
        raise
    mine = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if namespace not in mine:
        raise HubError(
            f"this token is {who['name']}'s, who cannot write to {namespace}: publish to "
            + " or ".join(f"{one}/{name}" for one in mine)
        )
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(repo_id, write=True)  # `create_repo` succeeds with any token where the repository exists
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise HubError(
                f"this token may not write to {repo_id}: give it write access at {TOKENS_PAGE}"
            ) from None
        raise


def read(api: HfApi, job: dict[str, Any]) -> dict[str, Any]:
    """The head of the repository, the names of its files, and the text of one of them; "" if it is not there."""
    info = api.model_info(job["repo_id"], timeout=SILENT_FOR)
    held, text = [sibling.rfilename for sibling in info.siblings or ()], ""
    if job["read"] in held:
        with tempfile.TemporaryDirectory() as folder:
            path = api.hf_hub_download(job["repo_id"], job["read"], revision=info.sha, local_dir=folder)
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
    return {"head": info.sha, "held": held, "text": text}


def send(api: HfApi, job: dict[str, Any]) -> dict[str, Any]:
    """One commit of the job's files, with the head it was made for as its parent: it fails rather than mixes."""
    additions = [CommitOperationAdd(name, path) for name, path in job["files"].items()]
    for addition in additions:
        expected = job["sha256"].get(addition.path_in_repo)
        if expected and addition.upload_info.sha256.hex() != expected:
            raise OSError(f"{addition.path_in_repo} is not what the manifest says")
    commit = api.create_commit(
        job["repo_id"],
        [*additions, *map(CommitOperationDelete, job["outdated"])],
        commit_message=job["message"],
        parent_commit=job["parent"],
    )
    return {"url": commit.commit_url}


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
