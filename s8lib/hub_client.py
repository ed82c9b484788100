"""The Hub's client at work: check a token, send one commit. `hub_process` runs this file as a process of its own.

A process, because the client sets no timeout and a thread that hangs cannot be ended; because its thread pools
would hold up the exit of a training that was stopped; and because what it prints must not reach a notebook's cell.
It imports nothing of s8lib, so it starts in half a second. A line of JSON on stdin says what to do, the last line
of its output what came of it; when stdin closes, whoever asked is gone and it ends too. The token comes by stdin
alone, as arguments can be read by everyone on the machine.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers

SILENT_FOR = 120.0  # seconds without a byte, after which the client gives up
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
TRY_AGAIN = (408, 409, 412, 425, 429)  # of the 4xx: those that may pass
ADVICE = {
    401: f"the token is not valid any more: make a new one with write access at {TOKENS_PAGE}",
    403: f"the token may not do this: give it write access at {TOKENS_PAGE}",
    404: "the repository is not there any more: was it deleted or renamed?",
    413: "a file is larger than the Hub takes",
}


class Refused(Exception):
    """What the person has to change, in one sentence."""


def main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    disable_progress_bars()
    get_session().timeout = SILENT_FOR
    api = HfApi(token=job["token"])
    answer: dict[str, Any] = {}
    try:
        if job["check"]:
            check(api, job["repo_id"], job["private"])
        if "files" in job:
            answer = send(api, job)
    except Refused as error:
        answer = {"error": str(error), "permanent": True}
    # HTTPError: httpx's or httpx2's, whichever this client is built on. OSError: a staged file, offline mode.
    # RuntimeError: what the client makes of any failure in mid-file. ValueError: an answer it does not understand.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        answer = explain(error)
    print("\n" + json.dumps(answer), flush=True)
    os._exit(0)  # no word of the client may follow, and none of its threads is waited for


def check(api: HfApi, repo_id: str, private: bool) -> None:
    """See that the token may publish to `repo_id`, and make the repository if it is not there.

    `create_repo` alone would not tell: where the repository exists, it succeeds with any token.
    """
    try:
        who = api.whoami()
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise Refused(
                f"the Hub does not accept this token: make one with write access at {TOKENS_PAGE}"
            ) from None
        raise
    namespace, name = repo_id.split("/")
    mine = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if namespace not in mine:
        raise Refused(
            f"this token is {who['name']}'s, who cannot write to {namespace}: publish to "
            + " or ".join(f"{one}/{name}" for one in mine)
        )
    token = who.get("auth", {}).get("accessToken", {})  # a token of OAuth has none, and shows its rights when used
    if token.get("role") == "read":
        raise Refused(f"this token may only read: make one with write access at {TOKENS_PAGE}")
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", [])
        writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        if not writable & {namespace, repo_id}:
            raise Refused(f"this fine-grained token may not write to {namespace}: allow that at {TOKENS_PAGE}")
    api.create_repo(repo_id, private=private, exist_ok=True)


def send(api: HfApi, job: dict[str, Any]) -> dict[str, Any]:
    """One commit of the job's files; what they take the place of leaves the repository's head in the same commit.

    That is the checkpoint before, and exports of what may be other weights.
    With the head it was made for as its parent, so that it fails rather than mixes with another's commit.
    """
    files: dict[str, str] = job["files"]
    head = api.model_info(job["repo_id"], timeout=SILENT_FOR)
    held = {sibling.rfilename for sibling in head.siblings or ()}
    _check_not_behind(api, job, head.sha, held)
    additions = [CommitOperationAdd(name, path) for name, path in files.items()]
    for addition in additions:
        expected = job["sha256"].get(addition.path_in_repo)
        if expected and addition.upload_info.sha256.hex() != expected:
            raise OSError(f"{addition.path_in_repo} is not what the manifest says")
    outdated = [name for name in held - files.keys() if _epoch(name) or re.fullmatch(r"[^/]+\.(onnx|pt2)", name)]
    commit = api.create_commit(
        job["repo_id"],
        [*additions, *map(CommitOperationDelete, outdated)],
        commit_message=job["message"],
        parent_commit=head.sha,
    )
    return {"url": commit.commit_url}


def _check_not_behind(api: HfApi, job: dict[str, Any], revision: str | None, held: set[str]) -> None:
    """A run that had to start over must not take the place of its own later epochs; another run may."""
    newest = max(map(_epoch, held), default=0)
    if newest <= max(map(_epoch, job["files"])) or "recipe.json" not in held & job["files"].keys():
        return
    theirs = api.hf_hub_download(job["repo_id"], "recipe.json", revision=revision)
    with open(theirs, encoding="utf-8") as there, open(job["files"]["recipe.json"], encoding="utf-8") as here:
        if json.load(there) == json.load(here):
            raise Refused(
                f"it holds epoch {newest} of this very recipe, and is not set back to an earlier one: go on from "
                "there in an empty run folder, or publish to another repository"
            )


def explain(error: BaseException) -> dict[str, Any]:
    """What went wrong in one line, whether trying again can help, and after how many seconds the Hub wants it."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    http = next((link for link in chain if isinstance(link, HfHubHTTPError)), None)
    if http is None:
        root = chain[-1]
        return {"error": _line(str(root)) or type(root).__name__, "permanent": isinstance(error, ValueError)}
    status = http.response.status_code
    said = _line(http.server_message or http.response.reason_phrase)
    limit, wait = parse_ratelimit_headers(http.response.headers), http.response.headers.get("Retry-After", "")
    return {
        "error": f"the Hub answered {status}, {said}" + (f"; {ADVICE[status]}" if status in ADVICE else ""),
        "permanent": 400 <= status < 500 and status not in TRY_AGAIN,
        "retry_after": int(wait) if wait.isdigit() else limit.reset_in_seconds if limit and status == 429 else 0,
    }


def _epoch(name: str) -> int:
    """The epoch of a checkpoint, by its name in the repository; 0 for every other file."""
    match = re.fullmatch(r"checkpoints/epoch_(\d+)\.pt", name)
    return int(match[1]) if match else 0


def _line(text: str) -> str:
    return " ".join(text.split())[:200].rstrip(".")


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
