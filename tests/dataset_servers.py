"""A made-up CIFAR-100 of a few images, a loopback server that publishes it as the Hub and as Toronto do, and a
process that loads it (this file, run). The Hub client reads its environment once, hence a process of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

HUB = "/datasets/uoft-cs/cifar100/resolve/main/"
TORONTO = "/cifar-100-python.tar.gz"


# --- the data ----------------------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    """A PNG of [3, H, W] uint8, stored rather than packed: a tenth of the work, which counts for 60,000."""
    _, height, width = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # every row starts with its filter: 0, none
    rows[:, 1:] = pixels.transpose(1, 2, 0).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png


def hub_table(images: np.ndarray, fine: list[int], coarse: list[int]) -> pa.Table:
    """The columns of the Hub's parquet files, from images [N, 3, 32, 32] uint8."""
    img = pa.StructArray.from_arrays(
        [pa.array([png(i) for i in images], pa.binary()), pa.nulls(len(images), pa.string())], ["bytes", "path"]
    )
    return pa.table({"img": img, "fine_label": fine, "coarse_label": coarse})


@dataclass
class MadeUp:
    """Both layouts on disk, and the digests by which s8lib and torchvision will take them for CIFAR-100."""

    pickles: Path  # holds cifar-100-python/
    parquet: Path  # holds cifar100/
    archive: bytes
    md5: dict[str, str]
    sha256: dict[str, str]


def make_up(folder: Path) -> MadeUp:
    made = MadeUp(folder / "pickles", folder / "parquet", b"", {}, {})
    for split, n in (("train", 40), ("test", 20)):
        random = np.random.default_rng(n)
        images = random.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        fine, coarse = random.integers(0, 100, n).tolist(), random.integers(0, 20, n).tolist()
        file = made.parquet / f"cifar100/{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(hub_table(images, fine, coarse), file)
        content = {"data": images.reshape(n, -1), "fine_labels": fine, "coarse_labels": coarse}
        file = made.pickles / "cifar-100-python" / split
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(content))
        labels = np.array([fine, coarse], dtype=np.int64)
        made.sha256[split] = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    names = {"fine_label_names": ["made up"] * 100, "coarse_label_names": ["made up"] * 20}
    (made.pickles / "cifar-100-python/meta").write_bytes(pickle.dumps(names))
    for name in ("train", "test", "meta"):
        blob = (made.pickles / "cifar-100-python" / name).read_bytes()
        made.md5[name] = hashlib.md5(blob).hexdigest()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(made.pickles / "cifar-100-python", "cifar-100-python")
    made.archive = archive.getvalue()
    return made


# --- the server --------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """`mode[host]`: ok; down (503); cut (half a file, then the line breaks; the rest can be had with Range);
    broken (the same, but the rest cannot); held (half a file, then silence until `release` is set)."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.mode = {"hub": "ok", "toronto": "ok"}
        self.requests: list[SimpleNamespace] = []
        self.holding, self.release = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, name: str) -> list[SimpleNamespace]:
        return [r for r in self.requests if r.method == "GET" and name in r.path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in mid-file is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(SimpleNamespace(method=self.command, path=self.path, headers=headers))
        mode = self.server.mode["hub" if self.path.startswith(HUB) else "toronto"]
        blob = self.server.files.get(self.path)
        if mode == "down" or blob is None:
            self.send_response(503 if mode == "down" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(blob).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(blob) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(blob) - 1}/{len(blob)}")
        self.end_headers()
        if not body:
            return
        half = len(blob) // 2
        if mode == "ok" or (mode == "cut" and start):
            self.wfile.write(blob[start:])
            return
        self.wfile.write(blob[start:half])
        if mode == "held":
            self.wfile.flush()
            self.server.holding.set()
            self.server.release.wait(60)
            self.wfile.write(blob[half:])
        else:
            self.close_connection = True


@contextmanager
def serve(made: MadeUp) -> Iterator[Server]:
    files = {HUB + str(p.relative_to(made.parquet)): p.read_bytes() for p in made.parquet.glob("*/*")}
    with Server({**files, TORONTO: made.archive}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


# --- the process that loads --------------------------------------------------------------------------------


class Loader:
    """Another process that calls load_cifar100, as often as it is asked to."""

    def __init__(self, made: MadeUp, url: str, home: Path):
        patches = {"md5": made.md5, "sha256": made.sha256, "tar": hashlib.md5(made.archive).hexdigest()}
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "S8_", "HUGGING"))}
        environment |= {
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "60",  # the default, 10 s, can pass before a second process has started
            "HF_TOKEN": "hf_expired",
        }
        environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "NO_PROXY": "127.0.0.1"}
        environment |= {
            "HF_HUB_DOWNLOAD_TIMEOUT": "60"
        }  # a busy machine holds the server longer than the usual 10 s
        self.process = subprocess.Popen(
            [sys.executable, __file__, url + TORONTO, json.dumps(patches)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def start(self, root: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{root}\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def outcome(self) -> SimpleNamespace:
        """Of the call under way: sha256 of the splits, source, error, and what was printed before."""
        printed = []
        while not (line := self.line()).startswith("{"):
            assert line, "the loading process died"
            printed.append(line)
        return SimpleNamespace(**json.loads(line), printed="".join(printed))

    def load(self, root: Path) -> SimpleNamespace:
        self.start(root)
        return self.outcome()


def main(toronto: str, patches: dict[str, Any]) -> None:
    from huggingface_hub import constants
    from torchvision.datasets import CIFAR100

    from s8lib.data import cifar100 as data

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.02))  # the Hub client would back off for 23 seconds
    constants.DOWNLOAD_CHUNK_SIZE = 4096  # its 10 MB are more than these files: nothing would be resumed
    data.MD5.update(patches["md5"])
    data.SHA256.update(patches["sha256"])
    CIFAR100.url, CIFAR100.tgz_md5 = toronto, patches["tar"]
    CIFAR100.train_list, CIFAR100.test_list = [["train", data.MD5["train"]]], [["test", data.MD5["test"]]]
    CIFAR100.meta = {**CIFAR100.meta, "md5": data.MD5["meta"]}
    for line in sys.stdin:
        sha256, source, error = [], None, None
        try:
            loaded = data.load_cifar100(line.strip())
            sha256, source = [loaded.train.sha256(), loaded.test.sha256()], loaded.source
        except data.DataError as caught:
            error = str(caught)
        timeout = socket.getdefaulttimeout()
        print(json.dumps({"sha256": sha256, "source": source, "error": error, "timeout": timeout}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]))
