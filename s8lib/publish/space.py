"""The demo as a Space of the Hugging Face Hub: a folder that runs by itself, and its way there."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from huggingface_hub import HfApi, SpaceCard, SpaceCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from s8lib.data.download import one_line
from s8lib.hub_client import TOKENS_PAGE
from s8lib.publish.publisher import usable_token
from s8lib.run.hub import HubError

APP = '''"""The demo of {repo_id}."""

import s8lib as s8
from s8lib.publish.demo import build_demo

demo = build_demo(s8.load_model("{repo_id}"))

if __name__ == "__main__":
    demo.launch()
'''

# Of s8lib's own requirements, those that its demo imports; the Space brings gradio. Free Spaces have no GPU, and
# torch without CUDA is much smaller.
REQUIREMENTS = """--extra-index-url https://download.pytorch.org/whl/cpu
torch>=2.10
numpy>=1.26
huggingface_hub[torch]>=1.11,<3
pillow>=10.1
filelock>=3.13
tqdm>=4.66
"""

REFUSALS = {
    401: f"the Hub does not accept this token: make one with write access at {TOKENS_PAGE}",
    402: (
        "the Hub wants this account to pay for a Gradio Space (402); they are no longer free for everyone. The "
        "demo runs in the notebook all the same, and the folder can go to an account that has Spaces"
    ),
    403: f"this token may not write there: give it write access at {TOKENS_PAGE}, or use your own namespace",
}


def write_space(folder: str | Path, repo_id: str) -> Path:
    """Write a Space that shows the network in `repo_id`: app, requirements, metadata, and s8lib itself.

    Raises:
        ImportError: without gradio, whose version the Space is pinned to.
    """
    try:
        gradio_version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("the demo needs gradio: pip install gradio") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = SpaceCardData(
        title=f"{repo_id.rpartition('/')[2]}: what is on the picture?",
        sdk="gradio",
        sdk_version=gradio_version,
        python_version="3.11",  # the Hub's own default is older than s8lib allows
        app_file="app.py",
        license="mit",
        models=[repo_id],
    )
    text = f"Drop an image, and see what [{repo_id}](https://huggingface.co/{repo_id}) takes it for.\n"
    SpaceCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
    (folder / "app.py").write_text(APP.format(repo_id=repo_id), encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    source, target = Path(__file__).parents[1], folder / "s8lib"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    return folder


def create_space(space_id: str, folder: str | Path, token: str | None = None, private: bool = False) -> str:
    """Make the Space `space_id`, if it is not there, and send it `folder`; its address.

    Raises:
        HubError: the Hub refuses, with what can be done about it.
        ConnectionError: the Hub cannot be reached.
    """
    api = HfApi(token=usable_token(token))
    try:
        space = api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=space_id, folder_path=folder, repo_type="space", commit_message="The demo, as s8lib wrote it"
        )
    except HFValidationError as error:
        raise HubError(f"{space_id!r} is no name of a Space: write USER/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise HubError(f"{space_id}: {REFUSALS.get(status, f'the Hub answered {status}')}") from None
    # HTTPError: httpx's or httpx2's. RuntimeError: what the client makes of a failure in mid-file.
    except (HTTPError, RuntimeError) as error:
        raise ConnectionError(f"the Hub does not take {space_id}: {one_line(error)}") from None
    return str(space)
