"""What the local Hub of the tests answers: its tokens, its repositories with their history, its endpoints."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

USER, ORG = "tester", "team"
WRITE, READ, FINE, FINE_READ, OAUTH = (
    f"hf_{role}PlantedTokenOfTheTests" for role in ("write", "read", "fine", "fineRead", "oauth")
)
LFS = (".pt", ".safetensors", ".onnx", ".pt2")  # what the real Hub's first .gitattributes sends to LFS, in part
ATTRIBUTES = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS).encode()

REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
FILES = r"/(?P<prefix>datasets/|spaces/)?(?P<name>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [  # methods, path, and the method of Endpoints that answers
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("GET", f"{REPO}/auth-check/write", "auth_check"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", f"{REPO}/branch/{REVISION}", "create_branch"),
    ("POST", f"{REPO}/super-squash/{REVISION}", "squash"),
    ("POST", f"{REPO}/preupload/{REVISION}", "preupload"),
    ("POST", f"{REPO}/commit/{REVISION}", "commit"),
    ("GET", f"{REPO}/xet-write-token/{REVISION}", "xet_token"),
    ("GET", f"{REPO}/tree/{REVISION}(?:/(?P<path>.*))?", "tree"),
    ("GET", f"{REPO}(?:/revision/{REVISION})?", "info"),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("POST", "/lfs/verify", "lfs_verify"),
    ("GET HEAD", f"{FILES}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]


def _token(role: str, *permissions: str) -> dict[str, Any]:
    token: dict[str, Any] = {"displayName": "a test's", "role": role}
    if permissions:
        entity = {"_id": "1", "type": "user", "name": USER}
        token["fineGrained"] = {"global": [], "scoped": [{"entity": entity, "permissions": list(permissions)}]}
    return {"type": "access_token", "accessToken": token}


TOKENS: dict[str, dict[str, Any]] = {  # every other token is a bad one
    WRITE: _token("write"),
    READ: _token("read"),
    FINE: _token("fineGrained", "repo.content.read", "repo.write"),
    FINE_READ: _token("fineGrained", "repo.content.read"),
    OAUTH: {"type": "oauth", "expiresAt": "2099-01-01T00:00:00.000Z"},
}


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool
    xet: str = ""  # the sha256 of a file whose content is in the store of Xet

    @property
    def oid(self) -> str:
        if self.xet:
            return self.xet
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    title: str
    files: dict[str, File]
    parent: str

    @property
    def oid(self) -> str:
        tree = sorted((path, file.oid) for path, file in self.files.items())
        return hashlib.sha1(json.dumps([self.title, tree, self.parent]).encode()).hexdigest()


@dataclass
class Repo:
    """`commits` are those of `main`; `branches` has every branch, each with its history, the oldest first."""

    private: bool = False
    commits: list[Commit] = field(default_factory=lambda: [Commit("initial commit", {}, "")])
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.branches = {"main": self.commits} | self.branches

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def stored(self) -> int:
        """Bytes that its branches, with their histories, keep: each content once."""
        files = (
            file for commits in self.branches.values() for commit in commits for file in commit.files.values()
        )
        return sum({file.oid: len(file.content) for file in files}.values())


@dataclass
class Request:
    url: str  # of this Hub
    token: str
    range: str
    query: dict[str, list[str]]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Answer:
    content: object  # bytes, or what becomes JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **body: Any) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self.answer = Answer({"error": message} | body, status, headers)


class Endpoints:
    """`repos` by "user/name" ("spaces/user/name", "datasets/..."); `objects` of LFS by sha256."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.fetched: list[str] = []  # files, by name
        self.xet: Path | None = None  # where a client that uses Xet keeps what it uploads; it is not read back
        self._lock = threading.Lock()

    def answer(self, endpoint: str, request: Request, named: dict[str, str | None]) -> Answer:
        try:
            with self._lock:
                content = getattr(self, endpoint)(request, **{key: value or "" for key, value in named.items()})
        except Refusal as refusal:
            return refusal.answer
        return content if isinstance(content, Answer) else Answer(content)

    # --- who asks, and for what ----------------------------------------------------------------------------

    def _auth(self, request: Request) -> dict[str, Any]:
        if request.token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS[request.token]

    def _check_write(self, request: Request, name: str) -> None:
        token = self._auth(request).get("accessToken", {"role": "write"})
        scoped = token.get("fineGrained", {}).get("scoped", [])
        owners = [scope["entity"]["name"] for scope in scoped if "repo.write" in scope["permissions"]]
        if not (token["role"] == "write" or name.split("/")[0] in owners) or name.split("/")[0] not in (USER, ORG):
            raise Refusal(403, "You don't have the rights to write here")

    def _repo(self, name: str, kind: str = "models", prefix: str = "") -> Repo:
        key = (prefix or ("" if kind == "models" else f"{kind}/")) + name
        if key not in self.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.repos[key]

    def _at(self, repo: Repo, revision: str) -> Commit:
        if commits := repo.branches.get(revision or "main"):
            return commits[-1]
        for commit in (commit for commits in repo.branches.values() for commit in commits):
            if revision == commit.oid:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def _branch(self, repo: Repo, name: str) -> list[Commit]:
        if name not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return repo.branches[name]

    # --- the endpoints, by their names in ROUTES -----------------------------------------------------------

    def whoami(self, request: Request) -> dict[str, Any]:
        auth = self._auth(request)
        return {"type": "user", "name": USER, "orgs": [{"name": ORG, "roleInOrg": "write"}], "auth": auth}

    def create(self, request: Request) -> dict[str, Any]:
        asked = request.json
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        key, url = name if kind == "model" else f"{kind}s/{name}", f"{request.url}/{name}"
        if key in self.repos:  # whoever asks: this is why a bad token has to be found by whoami
            raise Refusal(409, f"You already created this {kind} repo", url=url)
        self._check_write(request, name)
        first = Commit("initial commit", {".gitattributes": File(ATTRIBUTES, lfs=False)}, "")
        self.repos[key] = Repo(asked.get("visibility") == "private", [first])
        return {"url": url, "name": name, "id": "1"}

    def auth_check(self, request: Request, kind: str, name: str) -> dict[str, Any]:
        self._repo(name, kind)
        self._check_write(request, name)
        return {}

    def validate_yaml(self, request: Request) -> dict[str, Any]:
        header = re.match(r"---\n(.*?)\n---\n", request.json["content"], re.DOTALL)
        if not header:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            if isinstance(yaml.safe_load(header[1]), dict):
                return {"errors": [], "warnings": []}
            problem = "the metadata is not a mapping"
        except yaml.YAMLError as error:
            problem = str(error)
        raise Refusal(400, "invalid metadata", errors=[{"message": problem}], warnings=[])

    def preupload(self, request: Request, kind: str, name: str, revision: str) -> dict[str, Any]:
        held = self._at(self._repo(name, kind), revision).files
        self._check_write(request, name)
        files = []
        for asked in request.json["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS) or asked["size"] > 10_000_000 else "regular"
            oid = held[path].oid if path in held else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def lfs_batch(self, request: Request, prefix: str, name: str) -> dict[str, Any]:
        self._repo(name, prefix=prefix)
        self._check_write(request, name)
        objects = []
        for asked in request.json["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.objects:
                put, verify = f"{request.url}/lfs/{asked['oid']}", f"{request.url}/lfs/verify"
                answer["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
            objects.append(answer)
        return {"transfer": "xet" if self.xet else "basic", "objects": objects}

    def xet_token(self, request: Request, kind: str, name: str, revision: str) -> Answer:
        """As headers, which the oldest client allowed reads, and as JSON."""
        self._check_write(request, name)
        said = {"casUrl": f"local://{self.xet}", "exp": 4_000_000_000, "accessToken": "a test's"}
        keys = {"casUrl": "X-Xet-Cas-Url", "exp": "X-Xet-Token-Expiration", "accessToken": "X-Xet-Access-Token"}
        return Answer(said, headers={keys[key]: str(value) for key, value in said.items()})

    def lfs_put(self, request: Request, oid: str) -> dict[str, Any]:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "the content is not what its oid says")
        self.objects[oid] = request.body
        return {}

    def lfs_verify(self, request: Request) -> dict[str, Any]:
        if len(self.objects.get(request.json["oid"], b"")) != request.json["size"]:
            raise Refusal(404, "no such object")
        return {}

    def commit(self, request: Request, kind: str, name: str, revision: str) -> dict[str, Any]:
        repo = self._repo(name, kind)
        self._check_write(request, name)
        commits = self._branch(repo, revision)
        header, *changes = [json.loads(line) for line in request.body.splitlines()]
        if header["key"] != "header":
            raise Refusal(400, "a commit begins with its header")
        if header["value"].get("parentCommit") not in (None, commits[-1].oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(commits[-1].files)
        for change in changes:
            self._apply(files, change["key"], change["value"])
        commits.append(Commit(header["value"]["summary"], files, commits[-1].oid))
        url = f"{request.url}/{name}/commit/{commits[-1].oid}"
        return {"success": True, "commitOid": commits[-1].oid, "commitUrl": url}

    def create_branch(self, request: Request, kind: str, name: str, revision: str) -> dict[str, Any]:
        repo = self._repo(name, kind)
        self._check_write(request, name)
        if revision in repo.branches:
            raise Refusal(409, f"Reference already exists: {revision}")
        start = self._at(repo, request.json.get("startingPoint", "main"))
        history = next(commits for commits in repo.branches.values() if start in commits)
        repo.branches[revision] = history[: history.index(start) + 1]
        return {}

    def squash(self, request: Request, kind: str, name: str, revision: str) -> dict[str, Any]:
        """What was before is gone at once; the real Hub may take a while to free the room."""
        repo = self._repo(name, kind)
        self._check_write(request, name)
        commits = self._branch(repo, revision)
        commits[:] = [Commit(request.json["message"], commits[-1].files, "")]
        return {"commitOid": commits[-1].oid}

    def _apply(self, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = File(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if self.xet:
                files[path] = File(b"", lfs=True, xet=value["oid"])
                return
            if value["oid"] not in self.objects:
                raise Refusal(400, f"the LFS object of {path} was never uploaded")
            files[path] = File(self.objects[value["oid"]], lfs=True)
        else:
            gone = [held for held in files if held == path or (key == "deletedFolder" and held.startswith(path))]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for held in gone:
                del files[held]

    def info(self, request: Request, kind: str, name: str, revision: str) -> dict[str, Any]:
        repo = self._repo(name, kind)
        commit = self._at(repo, revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in request.query:
            for sibling in siblings:
                file = commit.files[sibling["rfilename"]]
                sibling |= {"size": len(file.content), "blobId": file.oid}
        return {"id": name, "sha": commit.oid, "private": repo.private, "siblings": siblings}

    def tree(self, request: Request, kind: str, name: str, revision: str, path: str) -> list[dict[str, Any]]:
        """Always recursive."""
        entries = []
        for held, file in sorted(self._at(self._repo(name, kind), revision).files.items()):
            if held.startswith(f"{path}/" if path else ""):
                entry = {"type": "file", "path": held, "oid": file.oid, "size": len(file.content)}
                lfs = {"oid": file.oid, "size": len(file.content), "pointerSize": 130}
                entries.append(entry | ({"lfs": lfs} if file.lfs else {}))
        return entries

    def resolve(self, request: Request, prefix: str, name: str, revision: str, path: str) -> Answer:
        commit = self._at(self._repo(name, prefix=prefix), revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        file = commit.files[path]
        self.fetched.append(path)
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range)
        if not wanted:
            return Answer(file.content, headers=headers)
        start, end = int(wanted[1]), min(int(wanted[2] or len(file.content)), len(file.content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(file.content)}"
        return Answer(file.content[start : end + 1], 206, headers)
