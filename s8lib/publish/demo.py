"""A page to try a network on: drop an image, see its likeliest classes. Needs the extra `demo` (gradio)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFilter

from s8lib.data.cifar100 import CLASSES
from s8lib.inference import ImageError, predict
from s8lib.models.networks import Network

if TYPE_CHECKING:
    import gradio

SIDE = 512  # pixels, of the example pictures


def build_demo(model: Network, classes: Sequence[str] = CLASSES) -> gradio.Blocks:
    """The page; `.launch()` shows it, below the cell in a notebook. It tells nobody that it is used.

    Args:
        model: classifies where it is; move it to a GPU before.
        classes: the names of its outputs, in their order.
    Raises:
        ImportError: without gradio.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError("the demo needs gradio: pip install gradio") from error
    model.eval()

    def classify(path: str | None) -> tuple[dict[str, float] | None, str]:
        if path is None:
            return None, ""
        try:
            guesses = predict(model, path, classes)[0]
        except ImageError as error:
            advice = "This image cannot be read: save it as a PNG or JPEG with 8 bits a colour, and try again."
            raise gr.Error(advice, print_exception=False) from error
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
                label = gr.Label(num_top_classes=5, label="Likeliest classes")
                superclass = gr.Markdown()
        gr.Examples([[picture] for picture in example_images()], image, label="Drawn examples")
        image.change(classify, image, [label, superclass], api_name="classify")
    return demo


def example_images() -> list[Image.Image]:
    """A few pictures for the page, [SIDE, SIDE] RGB, drawn here: none comes from a dataset."""
    return [draw() for draw in (_apple, _sea, _mountain, _road)]


def _sky(top: str, bottom: str) -> tuple[Image.Image, Any]:
    """A vertical gradient, and what draws on it."""
    column = Image.linear_gradient("L").resize((SIDE, SIDE))
    image = Image.composite(Image.new("RGB", column.size, bottom), Image.new("RGB", column.size, top), column)
    return image, ImageDraw.Draw(image)


def _apple() -> Image.Image:
    image, draw = _sky("#f4efe6", "#cdbfa8")
    draw.ellipse((110, 400, 400, 460), fill="#9d8f78")
    draw.ellipse((90, 150, 290, 430), fill="#c0182a")
    draw.ellipse((220, 150, 420, 430), fill="#c0182a")
    draw.ellipse((130, 190, 200, 290), fill="#e2525a")
    draw.line((255, 190, 275, 90), fill="#5b3a1e", width=16)
    draw.ellipse((275, 80, 390, 135), fill="#4c8c2b")
    return image.filter(ImageFilter.GaussianBlur(2))


def _sea() -> Image.Image:
    image, draw = _sky("#4a6fa5", "#f7b267")
    draw.ellipse((200, 190, 320, 310), fill="#fff1c9")
    for y in range(270, SIDE, 6):
        depth = (y - 270) / (SIDE - 270)
        shade = tuple(round(near * depth + far * (1 - depth)) for near, far in ((12, 70), (44, 120), (90, 160)))
        draw.rectangle((0, y, SIDE, y + 6), fill=shade)
        glint = (80 - 60 * depth) * (0.6 + 0.4 * math.cos(y))
        draw.line((260 - glint, y, 260 + glint, y), fill="#f9d9a0", width=2)
    return image


def _mountain() -> Image.Image:
    image, draw = _sky("#5d9bd5", "#e3f0fa")
    draw.polygon([(0, 512), (170, 200), (330, 512)], fill="#5f6b77")
    draw.polygon([(130, 512), (330, 90), (540, 512)], fill="#77828d")
    draw.polygon([(330, 90), (270, 216), (310, 200), (335, 240), (360, 196), (392, 216)], fill="#fbfdff")
    draw.rectangle((0, 450, SIDE, SIDE), fill="#4f7a3a")
    return image.filter(ImageFilter.GaussianBlur(1))


def _road() -> Image.Image:
    image, draw = _sky("#86bdea", "#eaf4fb")
    draw.rectangle((0, 230, SIDE, SIDE), fill="#7aa352")
    draw.polygon([(240, 230), (272, 230), (470, SIDE), (42, SIDE)], fill="#55585c")
    for near in (0.12, 0.3, 0.55, 0.85):
        y, length, half = 230 + 282 * near, 60 * near, 2 + 10 * near
        corners = [(-half, y), (half, y), (1.3 * half, y + length), (-1.3 * half, y + length)]
        draw.polygon([(256 + x, y) for x, y in corners], fill="#f4f4f0")
    return image
