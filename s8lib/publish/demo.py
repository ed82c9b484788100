"""Pages to try a network on: drop an image, see its likeliest classes.

One is gradio's, on this machine (extra `demo`); the other is a static Space of the Hub, whose ONNX runs in the
visitor's browser.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, SpaceCard, SpaceCardData
from PIL import Image

from s8lib.data.cifar100 import SUPERCLASS_OF
from s8lib.data.pictures import ImageError
from s8lib.hub_client import HubError, check_repo_id, hub_errors, usable_token
from s8lib.inference import predict
from s8lib.models.networks import Network
from s8lib.publish import need
from s8lib.validation import user_path

if TYPE_CHECKING:
    import gradio

PAGE, PICTURES = Path(__file__).with_name("page"), Path(__file__).with_name("examples")
EXAMPLES = ("apple", "sea", "mountain", "road")  # the files of `examples`, in their order on the page
RUNTIME = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/"  # another version needs another test


def build_demo(model: Network, classes: Sequence[str] | None = None) -> "gradio.Blocks":
    """The page; `.launch()` shows it, below the cell in a notebook. It tells nobody that it is used,
    though gradio before 6.17 loads fonts and a script from elsewhere.

    Args:
        model: classifies where it is; move it to a GPU before.
        classes: the names of its outputs, in their order; by default those it was trained with.
    Raises:
        ImportError: without gradio.
    """
    need("the demo")
    import gradio as gr

    model.eval()
    classes = classes or model.classes

    def classify(path: str | None) -> tuple[dict[str, float] | None, str]:
        if path is None:
            return None, ""
        try:
            guesses = predict(model, path, classes)[0]
        except ImageError as error:
            said = str(error).replace(repr(path), "This image")
            raise gr.Error(f"{said}. Save it as a PNG or JPEG, and try again.", print_exception=False) from error
        shown = {guess.name.replace("_", " "): guess.probability for guess in guesses}
        superclass = (guesses[0].superclass or "").replace("_", " ")
        return shown, f"Superclass of the first: **{superclass}**" if superclass else ""

    with gr.Blocks(title=f"{model.name}: what is on it?", analytics_enabled=False) as demo:
        gr.Markdown(
            f"# What is on the picture?\n`{model.name}` sees it at 32×32 pixels, so one thing that fills the "
            f"middle works best. It answers with one of its {len(classes)} classes, whatever you show it."
        )
        with gr.Row():
            with gr.Column():
                image = gr.Image(  # as it was uploaded: `predict` prepares it
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image", height=340
                )
            with gr.Column():
                # gradio's own opens the file, and where it cannot, the page is silent.
                image.preprocess = lambda payload: payload and payload.path  # type: ignore[assignment,return-value]
                label = gr.Label(num_top_classes=5, label="Likeliest classes")
                superclass = gr.Markdown()
        gr.Examples([[picture] for picture in example_images()], image, label="Drawn examples")
        image.change(classify, image, [label, superclass], api_name="classify")
    return demo


def example_images() -> list[Image.Image]:
    """A few pictures for the page, 512x512 RGB, drawn for it: none comes from a dataset."""
    return [Image.open(PICTURES / f"{name}.webp").convert("RGB") for name in EXAMPLES]


def write_space(
    folder: str | Path, repo_id: str, classes: Sequence[str], onnx: str | Path, runtime: str = RUNTIME
) -> Path:
    """Write a page that shows the network in `repo_id`; any static server shows it, and needs no other file.

    Args:
        classes: the names of the network's outputs, in their order.
        onnx: the network, as `export_onnx` writes it.
        runtime: where browsers find onnxruntime-web, ending in "/".
    """
    folder, onnx = user_path(folder), user_path(onnx)
    folder.mkdir(parents=True, exist_ok=True)
    examples = [f"{name}.webp" for name in EXAMPLES]
    for source in (PAGE / "index.html", *(PICTURES / name for name in examples)):
        shutil.copyfile(source, folder / source.name)
    shutil.copyfile(onnx, folder / "model.onnx")
    about = {
        "repo_id": repo_id,
        "runtime": runtime,
        "bytes": onnx.stat().st_size,
        "examples": examples,
        "classes": list(classes),
        "superclasses": {name: SUPERCLASS_OF[name] for name in classes if name in SUPERCLASS_OF},
    }
    (folder / "s8lib.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    title = f"{repo_id.rpartition('/')[2]}: what is on the picture?"
    card = SpaceCardData(title=title, sdk="static", app_file="index.html", models=[repo_id])
    text = f"Drop a picture, and see what [{repo_id}](https://huggingface.co/{repo_id}) takes it for.\n"
    SpaceCard(f"---\n{card.to_yaml()}\n---\n\n{text}").save(folder / "README.md")
    return folder


def create_space(
    space_id: str, folder: str | Path, token: str | None = None, private: bool = False, overwrite: bool = False
) -> str:
    """Make the Space `space_id`, if it is not there, and send it `folder`; its address.

    Args:
        overwrite: take the place of a Space that s8lib did not make.
    Raises:
        HubError: the Hub refuses, with what can be done about it; or someone else's Space is there.
        ConnectionError: the Hub cannot be reached.
    """
    api = HfApi(token=usable_token(token))
    kind: dict[str, Any] = {"repo_id": check_repo_id(space_id), "repo_type": "space"}
    with hub_errors(space_id):
        there = api.list_repo_files(**kind) if api.repo_exists(**kind) else []
        held = {*there} - {".gitattributes", "README.md"}
        if held and not overwrite and not any(name.startswith("s8lib") for name in held):
            raise HubError(f"{space_id} is another Space, with {min(held)}: name a new one, or say overwrite")
        space = api.create_repo(**kind, space_sdk="static", private=private, exist_ok=True)
        ours = ["app.py", "requirements.txt", "s8lib/**"] if "s8lib/__init__.py" in held else None  # of before
        message = "The page, as s8lib wrote it"
        api.upload_folder(**kind, folder_path=folder, commit_message=message, delete_patterns=ours)
    return str(space)
