"""A Hugging Face Hub on loopback, for the real client to talk to; `python -m tests.local_hub` runs one.

Repositories keep every commit with the files it left, so that a test can look at each. What is uploaded is
checked: an LFS object has to be what its oid says, and a commit may only name objects that arrived. `fail` makes
any endpoint refuse, break off, dawdle or hang.

Clients run with HF_HUB_DISABLE_XET=1 and take LFS, not Xet, the real Hub's own way for large files. Where a test
wants Xet, `endpoints.xet` is a folder that hf_xet uses as its store; the Hub does not read it back. Multipart LFS,
redirects to a CDN, tags, pull requests and rate limits that count are not covered. Unlike the real Hub it lets
everyone read everything, and takes the names of repositories as they are written.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from s8lib.hub_client import answer_of
from tests.hub_endpoints import ROUTES, WRITE, Answer, Commit, Endpoints, Request


@dataclass
class Fault:
    """What befalls requests to `endpoint`. `how` is the status of a refusal, or
    "reset": the connection breaks before anything is done; "lost": it breaks after all is done, unanswered;
    "slow": the answer takes `seconds`; "hang": no answer comes at all; "stall": nor is more than half of the
    body taken. It begins after `skip` requests.
    """

    endpoint: str
    how: int | str
    times: float
    retry_after: int | None
    message: str
    seconds: float
    skip: int


class LocalHub(ThreadingHTTPServer):
    """Reachable at `url` once served; `requests` are the names of the endpoints asked, in order."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.endpoints = Endpoints()
        self.requests: list[str] = []
        self.received = 0  # bytes of the requests' bodies
        self.rate: float | None = None  # bytes a second that it takes
        self.faults: list[Fault] = []
        self.hanging, self._released = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # or loopback takes megabytes at once
        super().server_bind()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a process of the client needs before it imports huggingface_hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def commits(self, name: str) -> list[Commit]:
        """What was committed to `main` of the repository `name`, after the Hub's own first commit."""
        repo = self.endpoints.repos.get(name)
        return repo.commits[1:] if repo else []

    def resume(self, name: str) -> Commit:
        """What a run goes on from in the repository `name`: the one commit that its branch `resume` keeps."""
        (commit,) = self.endpoints.repos[name].branches["resume"]
        return commit

    def fail(
        self,
        endpoint: str,
        how: int | str,
        times: float = 1,
        *,
        retry_after: int | None = None,
        message: str = "made to fail",
        seconds: float = 1.0,
        skip: int = 0,
    ) -> None:
        """Let the next `times` requests to `endpoint` (its name in ROUTES, or *) fail; `how` as in Fault."""
        self.faults.append(Fault(endpoint, how, times, retry_after, message, seconds, skip))

    def heal(self) -> None:
        """Forget the faults; whoever hangs is hung up on."""
        self.faults.clear()
        self._released.set()
        self.hanging, self._released = threading.Event(), threading.Event()

    def fault(self, endpoint: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.endpoint in (endpoint, "*") and fault.times > 0:
                    fault.skip -= 1
                    if fault.skip < 0:
                        fault.times -= 1
                        return fault
        return None

    def hang(self) -> None:
        self.hanging.set()
        self._released.wait()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or give up in mid-request are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 40 ms an answer otherwise
    server: LocalHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        endpoint, named = self._route(unquote(urlsplit(self.path).path))
        self.server.requests.append(endpoint)
        fault = self.server.fault(endpoint)
        how = fault.how if fault else None
        if how == "stall":
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
        if how in ("hang", "stall"):
            self.server.hang()
        if how in ("hang", "stall", "reset"):
            self._hang_up()
            return
        request = self._request()
        if fault and isinstance(how, int):
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            answer = Answer({"error": fault.message}, how, headers)
        elif named is None:
            answer = Answer({"error": f"this Hub has no {endpoint}"}, 404)
        else:
            answer = self.server.endpoints.answer(endpoint, request, named)
        if how == "lost":
            self._hang_up()
            return
        if fault and how == "slow":
            time.sleep(fault.seconds)
        self._send(answer)

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self, path: str) -> tuple[str, dict[str, str | None] | None]:
        for methods, pattern, endpoint in ROUTES:
            if self.command in methods.split() and (match := re.fullmatch(pattern, path)):
                return endpoint, match.groupdict()
        return f"{self.command} {path}", None

    def _request(self) -> Request:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        query = parse_qs(urlsplit(self.path).query)
        return Request(self.server.url, token, self.headers.get("Range", ""), query, self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self._taken(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self._taken(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _taken(self, size: int) -> bytes:
        body, at_once = b"", 1 << 16
        self.server.received += size
        while rest := size - len(body):
            body += self.rfile.read(min(rest, at_once) if self.server.rate else rest)
            if self.server.rate:
                time.sleep(min(rest, at_once) / self.server.rate)
        return body

    def _send(self, answer: Answer) -> None:
        content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        """Close without a word: the client sees a connection that was reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextmanager
def serve(port: int = 0) -> Iterator[LocalHub]:
    """A Hub for the length of a block; whoever still hangs at its end is hung up on."""
    with LocalHub(port) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.heal()
            hub.shutdown()
            thread.join()


@contextmanager
def client_of(hub: LocalHub, home: Path) -> Iterator[None]:
    """The client of this process, imported before, and those of its children talk to `hub` with WRITE.

    This process asks the Hub itself: a process for each question costs .5 to .8 s. The fixture `processes` has
    them.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (hub.environment(home) | {"HF_TOKEN": WRITE}).items():
            patch.setenv(name, value)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (("ENDPOINT", hub.url), ("HUGGINGFACE_CO_URL_TEMPLATE", template)):
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("s8lib.hub_client.ask", ask_here)
        patch.setattr("s8lib.hub_client._tell_what_moves", lambda: None)
        yield


def ask_here(task: Callable[..., Any], *_: Any, token: str | None, **job: Any) -> Any:
    """What `hub_client.ask` returns or raises, without limit, stop, and what has moved."""
    for name in ("limit", "stop", "hear"):
        job.pop(name, None)
    answer = answer_of(task, token, job)
    if isinstance(answer, Exception):
        raise answer
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.local_hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one; the address is printed")
    with LocalHub(parser.parse_args().port) as hub:
        print(hub.url, flush=True)
        hub.serve_forever()


if __name__ == "__main__":
    main()
