"""A page to try a network on: drop an image, see its likeliest classes. Needs the extra `demo` (gradio)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from s8lib.data.pictures import ImageError
from s8lib.inference import predict
from s8lib.models.networks import Network

if TYPE_CHECKING:
    import gradio

EXAMPLES = ("apple", "sea", "mountain", "road")  # the files of `examples`, in their order on the page


def build_demo(model: Network, classes: Sequence[str] | None = None) -> gradio.Blocks:
    """The page; `.launch()` shows it, below the cell in a notebook. It tells nobody that it is used.

    Args:
        model: classifies where it is; move it to a GPU before.
        classes: the names of its outputs, in their order; by default those it was trained with.
    Raises:
        ImportError: without gradio.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the demo needs gradio: pip install gradio") from error
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
    folder = Path(__file__).with_name("examples")
    return [Image.open(folder / f"{name}.webp").convert("RGB") for name in EXAMPLES]
