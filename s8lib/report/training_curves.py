"""Loss, accuracy and learning rate over the epochs: a picture, one that a notebook renews, and a film."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.animation import FFMpegWriter
from matplotlib.axes import Axes

from s8lib.machine.progress import in_notebook, progress_bar
from s8lib.recipe import Recipe
from s8lib.report.figures import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, SCREEN_DPI, Figure, light
from s8lib.report.knobs import mark_phases, moments, plot_lr
from s8lib.run.checkpoint import EpochLog
from s8lib.run.save import replacing
from s8lib.validation import user_path

PANELS: dict[str, Any] = {"nrows": 3, "sharex": True, "height_ratios": (3.2, 2.4, 1.2)}
PLANNED = "#9A9A9A"  # the learning rate that is still to come
PAUSE = 20  # of the live picture, times what it took: drawing costs at most 5% of the training
WIDTH, HEIGHT, FPS = 1280, 720, 25  # of the film
LONGEST, SLOWEST, LAST = 59.0, 1.0, 4.0  # seconds: the film, an epoch's picture, and how long the last one stays
ROWS = 9  # of the log, beside the film's curves
# Text is still sharp, and 400 noisy epochs come to 2.7 MB. QuickTime wants the tag, browsers the index in front.
FFMPEG = f"""-vf tpad=stop_mode=clone:stop_duration={LAST} -r {FPS} -pix_fmt yuv420p -crf 25 -preset veryfast
    -vtag avc1 -movflags +faststart -f mov"""


@light
def curves(log: EpochLog, recipe: Recipe, target: float | None = None) -> Figure:
    """Accuracy and loss, train and test, over the learning rate; `target` is a test accuracy in percent.

    Epochs run to the recipe's end, so a run that is under way shows how far it has come.
    """
    figure = Figure(7.6, f"{recipe.name}, {recipe.model}, seed {recipe.seed}")
    plot_curves(figure.subplots(**PANELS), recipe, log, log, target)
    batches = "augmented, mixed-up batches" if any(recipe.mixup_alpha) else "augmented batches"
    explanation = (
        f"Train is measured on {batches} while the network changes: not comparable with test.\n"
        f"The best epoch is chosen on {log.chosen_on}."
    )
    figure.supxlabel(explanation, fontsize=8.5, color=FAINT)
    return figure


class LiveCurves:
    """What `train(watch=...)` takes: shows the curves once, then renews that picture in place.

    After every epoch, or less often where epochs are short; after the last one always. Outside a notebook nothing
    is drawn.
    """

    def __init__(self, recipe: Recipe, target: float | None = None) -> None:
        self._recipe, self._target = recipe, target
        self._display: Any = None
        self._next = 0.0

    def __call__(self, log: EpochLog) -> None:
        started = time.perf_counter()
        accuracy = [row.selection_acc for row in log]
        is_last = len(log) == self._recipe.epochs or self._recipe.out_of_patience(accuracy)
        if not in_notebook() or (started < self._next and not is_last):
            return
        from IPython.display import display

        figure = curves(log, self._recipe, self._target)
        if self._display is None:
            self._display = display(figure, display_id=True)
        else:
            self._display.update(figure)
        now = time.perf_counter()
        self._next = now + PAUSE * (now - started)


@light
def video(log: EpochLog, recipe: Recipe, path: str | Path) -> Path:
    """Write the film to `path`: H.264 in QuickTime's container, 1280x720, at most a minute.

    Curves grow epoch by epoch beside the knobs of the moment and the last rows of the log.

    Raises:
        ImportError: without imageio-ffmpeg.
        OSError: if the file cannot be written; nothing half-written stays.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        ffmpeg = get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # the latter where the package brings no ffmpeg for the machine
        raise ImportError("the video needs ffmpeg: pip install imageio-ffmpeg") from error
    # Absolute, because ffmpeg takes `12:30.mov` for a protocol and `-x.mov` for an option.
    path, figure = user_path(path).absolute(), Figure(HEIGHT / SCREEN_DPI, width=WIDTH / SCREEN_DPI, layout=None)
    rate: Any = max(1 / SLOWEST, len(log) / (LONGEST - LAST))  # pictures a second; the stub wants an int
    film = FFMpegWriter(rate, "libx264", extra_args=FFMPEG.split())
    with replacing(path) as partial:
        try:
            with rc_context({"animation.ffmpeg_path": ffmpeg}), film.saving(figure, partial, SCREEN_DPI):
                for last in progress_bar(range(1, len(log) + 1), "epoch_log.mov"):
                    _draw_page(figure, recipe, EpochLog(log[:last]), log)
                    film.grab_frame()
            if b"moov" not in partial.read_bytes()[:64]:  # moving the index to the front is ffmpeg's last step
                raise OSError("its index is missing")
        except (OSError, subprocess.CalledProcessError) as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # which has ended ffmpeg, too
                raise error.__context__ from None
            what = f"cannot write {path}: ffmpeg failed, on a full disk perhaps; it may have said why"
            raise OSError(what) from error
    return path


def _draw_page(figure: Figure, recipe: Recipe, log: EpochLog, whole: EpochLog) -> None:
    """Draw one picture of the film of `whole` on `figure`: what was known after the epochs of `log`."""
    place = {"left": 0.055, "right": 0.60, "top": 0.88, "bottom": 0.08}
    beside: dict[str, Any] = {"x": 0.635, "color": INK, "va": "top"}
    row = log[-1]
    for artist in (*figure.axes, *figure.texts):
        artist.remove()
    plot_curves(figure.subplots(**PANELS, gridspec_kw=place), recipe, log, whole)
    title = f"{recipe.name}, {recipe.model}, seed {recipe.seed}"
    figure.text(0.055, 0.945, title, fontsize=15, weight="bold", color=INK)
    where = f"epoch {row.epoch} of {recipe.epochs}, phase {row.phase}"
    figure.text(y=0.88, s=where, fontsize=20, weight="bold", **beside)
    knobs = (
        f"test accuracy {row.test_acc:.2f}%, best so far {log.best.test_acc:.2f}%\n"
        f"learning rate {row.lr:.5f}, dropout {row.dropout:g}\n"
        f"MixUp α {row.mixup_alpha:g}, augmentation {row.augmentation}\n"
        f"{row.images_per_s:,.0f} images/s, {row.seconds:.1f} s for this epoch"
    )
    figure.text(y=0.80, s=knobs, fontsize=13, linespacing=1.5, **beside)
    lines = ["epoch  train loss  acc %   test loss  acc %"] + [
        f"{row.epoch:5d}{'*' if row is log.best else ' '}{row.train_loss:11.3f}  {row.train_acc:5.2f}"
        f"{row.test_loss:12.3f}  {row.test_acc:5.2f}"
        for row in log[-ROWS:]
    ]
    figure.text(y=0.54, s="\n".join(lines), fontsize=11.5, family="monospace", linespacing=1.5, **beside)
    caveat = "train: on augmented batches while the network changes;\nnot comparable with test"
    figure.text(0.635, 0.055, caveat, color=FAINT)


def plot_curves(
    axes: Sequence[Axes], recipe: Recipe, log: EpochLog, whole: EpochLog, target: float | None = None
) -> None:
    """The curves of `log` on three axes, top to bottom, which reach as far as the log `whole` needs."""
    accuracy, loss, lr = axes
    for ax in axes:
        mark_phases(ax, recipe, named=ax is accuracy)
    accuracy.set(ylabel="accuracy (%)", ylim=(0, 100), yticks=range(0, 101, 20))
    highest = max(max(row.train_loss, row.test_loss) for row in whole)
    loss.set(ylabel="loss (nats)", ylim=(0, max(1, 1.2 * highest)))
    if target is not None:
        accuracy.axhline(target, color=PURPLE, linewidth=1.4, linestyle=(0, (6, 2)))
        beside: dict[str, Any] = {"xytext": (6, 3), "textcoords": "offset points"}
        accuracy.annotate(f"target {target:g}%", (0, target), color=PURPLE, weight="bold", **beside)
    # Not clipped, so that marks on the border are whole. Of a long run only the last epoch is marked, or epoch 1
    # alone would not be seen.
    free: dict[str, Any] = {"clip_on": False, "in_layout": False}
    marks: dict[str, Any] = {"marker": "o", "markersize": 4, "markevery": None if recipe.epochs <= 30 else [-1]}
    epochs = [row.epoch for row in log]
    for name, ax, label, style, colour, order in (
        ("test_acc", accuracy, "test", "-", BLUE, 2.2),
        ("train_acc", accuracy, "train", "--", ORANGE, 2),
        ("holdout_acc", accuracy, "held-out", "-.", GREEN, 2.1),
        ("test_loss", loss, "test", "-", BLUE, 2.2),
        ("train_loss", loss, "train", "--", ORANGE, 2),
    ):
        values = [getattr(row, name) for row in log]
        if None not in values:
            ax.plot(epochs, values, style, label=label, color=colour, linewidth=2, zorder=order, **free, **marks)
    best = log.best
    accuracy.plot([best.epoch] * 2, [0, best.test_acc], color=RED, linewidth=1.2, zorder=2.3)
    star: dict[str, Any] = {"markersize": 14, "markeredgecolor": "white", "zorder": 2.3}
    accuracy.plot(best.epoch, best.test_acc, "*", color=RED, **star, **free)
    lines = {"best": best} if best is log[-1] else {"best": best, "last": log[-1]}
    told = [f"  {what}: {row.test_acc:.2f}% in epoch {row.epoch}  " for what, row in lines.items()]
    paper = {"facecolor": "#FFFFFFD0", "edgecolor": "none", "pad": 1}  # no line strikes the words out
    words: dict[str, Any] = {"color": RED, "weight": "bold", "in_layout": False, "bbox": paper}
    words["ha"] = "right" if best.epoch > recipe.epochs / 2 else "left"
    accuracy.text(best.epoch, 2, "\n".join(told), **words)
    accuracy.legend(loc="upper left", ncols=3, framealpha=1)
    loss.legend(loc="upper right", ncols=3, framealpha=1)
    planned = plot_lr(lr, recipe, PLANNED, 1.4)
    passed = [moment for moment in moments(recipe) if moment < epochs[-1]]
    (so_far,) = lr.plot(passed, [recipe.at(moment).lr for moment in passed], color=INK, linewidth=2)
    lr.set_xlabel("epoch")
    if len(whole) < recipe.epochs:
        lr.legend([so_far, planned], ["so far", "planned"], loc="upper right", ncols=2, framealpha=1)
