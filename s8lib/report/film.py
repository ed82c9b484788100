"""`epoch_log.mov`: the run as a film, an epoch a picture."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.animation import FFMpegWriter

from s8lib.machine.progress import progress_bar
from s8lib.recipe import Recipe
from s8lib.report.figures import FAINT, INK, SCREEN_DPI, Figure, light
from s8lib.report.network import MissingPackage
from s8lib.report.training_curves import HEIGHTS, CurvesPlot
from s8lib.run.log import EpochLog
from s8lib.run.save import replacing
from s8lib.validation import user_path

WIDTH, HEIGHT, FPS = 1280, 720, 25
LONGEST, SLOWEST, LAST = 59.0, 1.0, 4.0  # seconds: the film, an epoch's picture, and how long the last one stays
ROWS = 9  # of the log, beside the curves
# Text is still sharp, and 400 noisy epochs come to 2.7 MB. QuickTime wants the tag, browsers the index in front.
FFMPEG = f"""-vf tpad=stop_mode=clone:stop_duration={LAST} -r {FPS} -pix_fmt yuv420p -crf 25 -preset veryfast
    -vtag avc1 -movflags +faststart -f mov"""


@light
def video(log: EpochLog, recipe: Recipe, path: str | Path) -> Path:
    """Write the film to `path`: H.264 in QuickTime's container, 1280x720, at most a minute.

    Curves grow epoch by epoch beside the knobs of the moment and the last rows of the log.

    Raises:
        MissingPackage: without imageio-ffmpeg.
        OSError: if the file cannot be written; nothing half-written stays.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        ffmpeg = get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # the latter where the package brings no ffmpeg for the machine
        raise MissingPackage("the video needs ffmpeg: pip install imageio-ffmpeg") from error
    # Absolute, because ffmpeg takes `12:30.mov` for a protocol and `-x.mov` for an option.
    path, figure = user_path(path).absolute(), Figure(HEIGHT / SCREEN_DPI, width=WIDTH / SCREEN_DPI, layout=None)
    rate: Any = max(1 / SLOWEST, len(log) / (LONGEST - LAST))  # pictures a second; the stub wants an int
    film = FFMpegWriter(rate, "libx264", extra_args=FFMPEG.split())
    with replacing(path) as partial:
        try:
            with rc_context({"animation.ffmpeg_path": ffmpeg}), film.saving(figure, partial, SCREEN_DPI):
                for _ in _pages(figure, log, recipe):
                    film.grab_frame()
            if b"moov" not in partial.read_bytes()[:64]:  # moving the index to the front is ffmpeg's last step
                raise OSError("its index is missing")
        except (OSError, subprocess.CalledProcessError) as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # which has ended ffmpeg, too
                raise error.__context__ from None
            what = f"cannot write {path}: ffmpeg failed, on a full disk perhaps; it may have said why"
            raise OSError(what) from error
    return path


def _pages(figure: Figure, log: EpochLog, recipe: Recipe) -> Iterator[None]:
    """Draw on `figure` what was known after the first epoch, then after the second, and so on to the last."""
    place = {"left": 0.055, "right": 0.60, "top": 0.88, "bottom": 0.08}
    axes = figure.subplots(3, sharex=True, height_ratios=HEIGHTS, gridspec_kw=place)
    plot = CurvesPlot(axes, recipe, log)  # with the limits of the whole run, so that nothing jumps
    title = f"{recipe.name}, {recipe.model}, seed {recipe.seed}"
    figure.text(0.055, 0.945, title, fontsize=15, weight="bold", color=INK)
    where = figure.text(0.635, 0.88, "", fontsize=20, weight="bold", color=INK, va="top")
    knobs = figure.text(0.635, 0.80, "", fontsize=13, color=INK, va="top", linespacing=1.5)
    table = figure.text(0.635, 0.54, "", fontsize=11.5, color=INK, va="top", family="monospace", linespacing=1.5)
    caveat = "train: on augmented batches while the network changes;\nnot comparable with test"
    figure.text(0.635, 0.055, caveat, color=FAINT)
    for last in progress_bar(range(1, len(log) + 1), "epoch_log.mov"):
        shown = EpochLog(log[:last])
        plot.show(shown)
        row = shown[-1]
        where.set_text(f"epoch {row.epoch} of {recipe.epochs}, phase {row.phase}")
        knobs.set_text(
            f"test accuracy {row.test_acc:.2f}%, best so far {row.best_acc:.2f}%\n"
            f"learning rate {row.lr:.5f}, dropout {row.dropout:g}\n"
            f"MixUp α {row.mixup_alpha:g}, augmentation {row.augmentation}\n"
            f"{row.images_per_s:,.0f} images/s, {row.seconds:.1f} s for this epoch"
        )
        lines = [
            f"{row.epoch:5d}{'*' if row is shown.best else ' '}{row.train_loss:11.3f}  {row.train_acc:5.2f}"
            f"{row.test_loss:12.3f}  {row.test_acc:5.2f}"
            for row in shown[-ROWS:]
        ]
        table.set_text("\n".join(["epoch  train loss  acc %   test loss  acc %", *lines]))
        yield
