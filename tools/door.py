"""The notebooks as a newcomer opens them, nothing typed and nothing installed: Colab, Kaggle, plain Jupyter.

Each machine begins with what such machines have: torch, and nothing of s8lib. Colab and Kaggle are a folder each,
and Colab gives every notebook a new machine; the project's address on GitHub is a server here, which serves what
git has committed.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"MODEL": "wrn-10-1", "EPOCHS": 1}  # of what the forms offer, the shortest
NOTEBOOKS = ("session_8.ipynb", "save_to_hugging_face.ipynb")


class GitHub(http.server.BaseHTTPRequestHandler):
    """Serves the committed project as GitHub's archive does, and Colab's list of open notebooks."""

    def do_GET(self) -> None:
        opened = quote("https://github.com/founders/s8lib/blob/main/session_8.ipynb")
        answer = json.dumps([{"path": f"fileId={opened}"}]).encode()
        if self.path.endswith(".zip"):
            archive = ["git", "archive", "--format=zip", "--prefix=s8lib-main/", "HEAD"]
            answer = subprocess.run(archive, cwd=ROOT, check=True, capture_output=True).stdout
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def run_all(name: str, folder: Path, environment: dict[str, str], places: dict[str, str]) -> None:
    """Every cell of a notebook in `folder`, `places` being where this machine has what the cell names."""
    notebook = nbformat.read(ROOT / name, as_version=4)
    for cell in notebook.cells:
        for there, here in places.items():
            cell.source = cell.source.replace(there, here)
        if "parameters" in cell.metadata.get("tags", ()):
            for setting, value in SETTINGS.items():
                cell.source = re.sub(rf"(?m)^{setting} = [^#]*", f"{setting} = {value!r}  ", cell.source)
    environment = {**os.environ, "S8_DATA": "synthetic", "HF_HUB_OFFLINE": "1", **environment}
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}})
    client.extra_arguments = ["--log-level=ERROR"]
    client.execute(env=environment)


def empty_machine() -> None:
    """Take away whatever was installed since the Makefile made the environment."""
    first = {line.partition("==")[0] for line in (ROOT / ".venv-door" / "installed").read_text().split()}
    if since := {found.name for found in distributions()} - first:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *since], check=True)


def main() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), GitHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = str(server.server_port)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        for name in ("content", "My Drive", "working", "input", "jupyter"):
            (base / name).mkdir()
        checkout = base / "input" / "datasets" / "founders" / "a-copy" / "s8lib"
        subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
        subprocess.run(["git", "clone", "--quiet", ROOT, base / "jupyter" / "s8lib"], check=True)
        (base / "secrets").mkdir()
        (base / "secrets" / "kaggle_secrets.py").write_text(
            "class CredentialError(Exception): pass\nclass BackendError(Exception): pass\n"
            "class UserSecretsClient:\n    def get_secret(self, label): raise BackendError('no such secret')\n"
        )
        colab = {
            "COLAB_RELEASE_TAG": "release", "COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": port,
            "PYTHONPATH": str(ROOT / "tests" / "fake_colab"),
            "FAKE_COLAB_CONTENT": str(base / "content"), "FAKE_COLAB_DRIVE": str(base / "My Drive"),
        }  # fmt: skip
        kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "PYTHONPATH": str(base / "secrets")}
        for what, folder, environment, places in (
            ("Colab", base / "content", colab, {"https://github.com/{": f"http://127.0.0.1:{port}/{{"}),
            ("Kaggle", base / "working", kaggle, {"/kaggle/input": str(base / "input")}),
            ("Jupyter", base / "jupyter" / "s8lib", {}, {}),
        ):
            empty_machine()
            for name in NOTEBOOKS:
                if what == "Colab" and name == NOTEBOOKS[1]:  # a new machine: Drive has the run
                    empty_machine()
                    shutil.rmtree(folder)
                    folder.mkdir()
                started = time.perf_counter()
                run_all(name, folder, environment, places)
                print(f"{what}: {name} ran to its end in {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
