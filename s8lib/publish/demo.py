"""A page to try a network on: drop an image, see its likeliest classes. Needs the extra `demo` (gradio)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFilter

from s8lib.data.cifar100 import CLASSES
from s8lib.inference import ImageError, predict
from s8lib.models.networks import Network

if TYPE_CHECKING:
    import gradio

SIDE = 512  # pixels, of the example pictures

Shape = tuple[str, tuple[float, ...]]  # a colour, and an ellipse's box (4 numbers) or the corners of a polygon

# The sky's colours, top and bottom, and what is before it.
PICTURES: dict[str, tuple[str, str, list[Shape]]] = {
    "apple": ("#f4efe6", "#cdbfa8", [
        ("#9d8f78", (110, 400, 400, 460)),
        ("#c0182a", (90, 150, 290, 430)),
        ("#c0182a", (220, 150, 420, 430)),
        ("#e2525a", (130, 190, 200, 290)),
        ("#5b3a1e", (247, 190, 267, 90, 283, 90, 263, 190)),
        ("#4c8c2b", (275, 80, 390, 135)),
    ]),
    "sea": ("#4a6fa5", "#f7b267", [
        ("#fff1c9", (200, 190, 320, 310)),
        ("#4678a0", (0, 270, SIDE, 270, SIDE, SIDE, 0, SIDE)),
        ("#2d5d87", (0, 330, SIDE, 330, SIDE, SIDE, 0, SIDE)),
        ("#184873", (0, 415, SIDE, 415, SIDE, SIDE, 0, SIDE)),
        ("#f9d9a0", (190, 276, 330, 288)),
        ("#f9d9a0", (205, 304, 315, 315)),
        ("#f9d9a0", (222, 342, 298, 352)),
        ("#f9d9a0", (236, 396, 284, 405)),
    ]),
    "mountain": ("#5d9bd5", "#e3f0fa", [
        ("#5f6b77", (0, 512, 170, 200, 330, 512)),
        ("#77828d", (130, 512, 330, 90, 540, 512)),
        ("#fbfdff", (330, 90, 270, 216, 310, 200, 335, 240, 360, 196, 392, 216)),
        ("#4f7a3a", (0, 450, SIDE, 450, SIDE, SIDE, 0, SIDE)),
    ]),
    "road": ("#86bdea", "#eaf4fb", [
        ("#7aa352", (0, 230, SIDE, 230, SIDE, SIDE, 0, SIDE)),
        ("#55585c", (240, 230, 272, 230, 470, SIDE, 42, SIDE)),
        ("#f4f4f0", (253, 264, 259, 264, 260, 271, 252, 271)),
        ("#f4f4f0", (251, 315, 261, 315, 263, 333, 249, 333)),
        ("#f4f4f0", (248, 385, 264, 385, 266, 418, 246, 418)),
        ("#f4f4f0", (245, 470, 267, 470, 270, SIDE, 242, SIDE)),
    ]),
}  # fmt: skip


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
    return [_drawn(*picture) for picture in PICTURES.values()]


def _drawn(top: str, bottom: str, shapes: list[Shape]) -> Image.Image:
    column = Image.linear_gradient("L").resize((SIDE, SIDE))
    image = Image.composite(Image.new("RGB", column.size, bottom), Image.new("RGB", column.size, top), column)
    draw = ImageDraw.Draw(image)
    for colour, numbers in shapes:
        (draw.ellipse if len(numbers) == 4 else draw.polygon)(numbers, fill=colour)
    return image.filter(ImageFilter.GaussianBlur(2))
