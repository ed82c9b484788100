"""The demo as a Space of the Hugging Face Hub: a folder that runs by itself, and its way there."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

from huggingface_hub import HfApi, SpaceCard, SpaceCardData

from s8lib.hub_client import check_repo_id, hub_errors, usable_token
from s8lib.validation import user_path

APP = '''"""The demo of {repo_id}."""

import s8lib as s8
from s8lib.publish.demo import build_demo

demo = build_demo(s8.load_model("{repo_id}"))

if __name__ == "__main__":
    demo.launch()
'''

# Of s8lib's own requirements, those that its demo never imports; the Space brings gradio.
NOT_NEEDED = ("torchvision", "pyarrow", "matplotlib", "torchsummary", "imageio-ffmpeg")
CPU_BUILDS = "--extra-index-url https://download.pytorch.org/whl/cpu"  # free Spaces have no GPU; much smaller


def write_space(folder: str | Path, repo_id: str) -> Path:
    """Write a Space that shows the network in `repo_id`: app, requirements, metadata, and s8lib itself.

    Raises:
        ImportError: gradio or s8lib is not installed; the Space takes over the version and the requirements.
    """
    try:
        gradio_version, required = importlib.metadata.version("gradio"), importlib.metadata.requires("s8lib")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"a Space needs {error.name}, which is not installed here: install it") from error
    needed = [one for one in required or () if "extra ==" not in one and not one.startswith(NOT_NEEDED)]
    folder = user_path(folder)
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
    (folder / "requirements.txt").write_text("\n".join([CPU_BUILDS, *needed, ""]), encoding="utf-8")
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
    with hub_errors(check_repo_id(space_id)):
        space = api.create_repo(space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=space_id, folder_path=folder, repo_type="space", commit_message="The demo, as s8lib wrote it"
        )
    return str(space)
