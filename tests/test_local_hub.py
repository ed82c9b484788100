"""The local Hub answers the real client the way the real Hub does, and fails when it is told to."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_endpoints import READ, WRITE
from tests.hub_runs import NAME, ROOT, in_process
from tests.local_hub import LocalHub, serve


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with serve() as hub:
        yield hub


def ask(hub: LocalHub, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", hub.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    response.content = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def test_what_the_real_client_uploads_comes_back_to_it_commit_by_commit(hub: LocalHub, tmp_path: Path) -> None:
    big = os.urandom(300_000)
    (tmp_path / "big.pt").write_bytes(big)
    out = in_process(
        hub,
        tmp_path / "home",
        """
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
api, out = HfApi(token=token), {}
out["url"] = api.create_repo(name, private=True)
out["again"] = api.create_repo(name, exist_ok=True)
first = api.create_commit(name, [
    CommitOperationAdd("checkpoints/a.pt", folder + "/big.pt"),
    CommitOperationAdd("README.md", b"---\\nlicense: mit\\n---\\n# Net\\n"),
], commit_message="one")
second = api.create_commit(name, [
    CommitOperationAdd("checkpoints/b.pt", folder + "/big.pt"),
    CommitOperationAdd("README.md", b"---\\nlicense: mit\\n---\\n# Net\\n"),
    CommitOperationDelete("checkpoints/a.pt"),
], commit_message="two", parent_commit=first.oid)
try:
    api.create_commit(name, [CommitOperationAdd("x", b"y")], commit_message="three", parent_commit=first.oid)
except HfHubHTTPError as error:
    out["raced"] = error.response.status_code
info = api.model_info(name)
out |= {"first": first.oid, "head": info.sha, "private": info.private}
out["held"] = [sibling.rfilename for sibling in info.siblings]
out["tree"] = [[entry.path, entry.size] for entry in api.list_repo_tree(name, recursive=True)]
out["pulled"] = open(hf_hub_download(name, "checkpoints/a.pt", revision=first.oid, token=token), "rb").read().hex()
out["all"] = sorted(p.name for p in __import__("pathlib").Path(snapshot_download(name, token=token)).rglob("*.*"))
""",
        folder=str(tmp_path),
    )
    assert out["url"] == out["again"] == f"{hub.url}/{NAME}"
    assert out["private"]
    assert bytes.fromhex(out["pulled"]) == big
    assert out["held"] == [".gitattributes", "README.md", "checkpoints/b.pt"] == [path for path, _ in out["tree"]]
    assert ["checkpoints/b.pt", len(big)] in out["tree"]
    assert out["all"] == [".gitattributes", "README.md", "b.pt"]
    assert out["raced"] == 412
    one, two = hub.commits(NAME)
    assert (one.title, one.oid, two.title, two.oid) == ("one", out["first"], "two", out["head"])
    assert sorted(one.files) == [".gitattributes", "README.md", "checkpoints/a.pt"]
    assert sorted(two.files) == [".gitattributes", "README.md", "checkpoints/b.pt"]
    assert hub.requests.count("lfs_put") == 1  # the second time the content is there already
    unknown = {name for name in hub.requests if " " in name}
    assert unknown <= {"GET /api/agent-harnesses"}  # asked once a day; no is an answer


def test_who_may_do_what(hub: LocalHub, tmp_path: Path) -> None:
    out = in_process(
        hub,
        tmp_path,
        """
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
api, out = HfApi(), {}
def status(call, *arguments, **options):
    try:
        return call(*arguments, **options) and 200
    except HfHubHTTPError as error:
        return error.response.status_code
out["create"] = [status(api.create_repo, name, token=t) for t in (bad, read, write)]
out["create existing"] = status(api.create_repo, name, token=bad, exist_ok=True)
out["whoami"] = [status(api.whoami, token=t) for t in (bad, read, write)]
def commit(repo, token):
    files = [CommitOperationAdd("x", b"y")]
    return status(api.create_commit, repo, files, commit_message="m", token=token)
out["commit"] = [commit(name, t) for t in (bad, read, write)] + [commit("nobody/net", write)]
out["bad card"] = False
try:
    card = CommitOperationAdd("README.md", b"---\\na: [\\n---\\n")
    api.create_commit(name, [card], commit_message="m", token=write)
except ValueError as error:
    out["bad card"] = "Invalid metadata" in str(error)
""",
        bad="hf_nobody",
        read=READ,
        write=WRITE,
    )
    assert out["create"] == [401, 403, 200]
    assert out["create existing"] == 200  # the trap: the token is bad all the same
    assert out["whoami"] == [401, 200, 200]
    assert out["commit"] == [401, 403, 200, 404]
    assert out["bad card"]


def test_a_file_is_served_with_what_the_client_goes_by_and_in_parts(hub: LocalHub, tmp_path: Path) -> None:
    script = """
from huggingface_hub import CommitOperationAdd, HfApi
api = HfApi(token=token)
api.create_repo(name)
out = api.create_commit(name, [CommitOperationAdd("w.pt", b"0123456789")], commit_message="m").oid
"""
    oid = in_process(hub, tmp_path, script)
    path = f"/{NAME}/resolve/main/w.pt"
    head, whole, part = ask(hub, "HEAD", path), ask(hub, "GET", path), ask(hub, "GET", path, Range="bytes=4-")
    assert (head.status, head.content, whole.content) == (200, b"", b"0123456789")  # type: ignore[attr-defined]
    for response in (head, whole):
        assert response.headers["X-Repo-Commit"] == oid
        assert response.headers["ETag"] == f'"{hashlib.sha256(b"0123456789").hexdigest()}"'
        assert response.headers["Content-Length"] == "10"
    assert (part.status, part.content) == (206, b"456789")  # type: ignore[attr-defined]
    assert part.headers["Content-Range"] == "bytes 4-9/10"
    missing = ask(hub, "HEAD", f"/{NAME}/resolve/main/nothing")
    assert (missing.status, missing.headers["X-Error-Code"]) == (404, "EntryNotFound")


def test_content_that_is_not_what_its_oid_says_is_refused(hub: LocalHub) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hub.server_port, timeout=10)
    for body, status in ((b"other", 400), (b"right", 200)):  # one connection: it is kept alive
        connection.request("PUT", f"/lfs/{hashlib.sha256(b'right').hexdigest()}", body)
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (status, True)
    connection.close()
    assert list(hub.endpoints.objects.values()) == [b"right"]


def test_it_fails_on_command_as_often_as_told(hub: LocalHub) -> None:
    path = "/api/models/tester/net"
    hub.fail("info", 429, retry_after=7, message="slow down")
    response = ask(hub, "GET", path)
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    assert json.loads(response.content) == {"error": "slow down"}  # type: ignore[attr-defined]
    assert ask(hub, "GET", path).status == 404  # once was asked for; there is no such repository
    hub.fail("*", "reset", times=2)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            ask(hub, "GET", path)
    hub.fail("info", "slow", seconds=0.01)
    assert ask(hub, "GET", path).status == 404
    hub.fail("info", "hang")
    connection = http.client.HTTPConnection("127.0.0.1", hub.server_port, timeout=0.3)
    connection.request("GET", path)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    assert hub.hanging.is_set()
    hub.heal()
    connection.close()


def test_it_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "tests.local_hub", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/api/whoami-v2", headers={"Authorization": f"Bearer {WRITE}"})
        assert json.loads(connection.getresponse().read())["name"] == "tester"
        connection.close()
        process.terminate()
