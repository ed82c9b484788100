"""`epoch_log.mov`: the run as a film, an epoch a picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from s8lib.machine.progress import progress_bar
from s8lib.recipe import Recipe
from s8lib.report.figures import FAINT, INK, SCREEN_DPI, Figure
from s8lib.report.network import MissingPackage
from s8lib.report.training_curves import HEIGHTS, CurvesPlot
from s8lib.run.log import EpochLog
from s8lib.run.save import replacing

WIDTH, HEIGHT, FPS = 1280, 720, 25
LONGEST, SLOWEST, LAST = 59.0, 1.0, 4.0  # seconds: the film, an epoch's picture, and how long the last one stays
ROWS = 9  # of the log, beside the curves


def video(log: EpochLog, recipe: Recipe, path: str | Path) -> Path:
    """Write the film to `path`: H.264 in QuickTime's container, 1280x720, at most a minute.

    Curves grow epoch by epoch beside the knobs of the moment and the last rows of the log.

    Raises:
        MissingPackage: without imageio-ffmpeg.
        OSError: if the file cannot be written; nothing half-written stays.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe, write_frames

        get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # the latter where the package brings no ffmpeg for the machine
        raise MissingPackage("the video needs ffmpeg: pip install imageio-ffmpeg") from error
    path = Path(path)
    rate = max(1 / SLOWEST, len(log) / (LONGEST - LAST))  # pictures a second
    with replacing(path) as partial:
        film = write_frames(
            str(partial),
            (WIDTH, HEIGHT),
            fps=rate,
            codec="libx264",
            pix_fmt_out="yuv420p",
            quality=None,
            ffmpeg_log_level="error",
            # 400 noisy epochs come to 2.7 MB, with text still sharp. QuickTime wants the tag avc1, browsers the
            # index in front.
            output_params=["-r", str(FPS), "-f", "mov", "-crf", "25", "-preset", "veryfast"]
            + ["-vtag", "avc1", "-movflags", "+faststart"],
            macro_block_size=1,
        )
        film.send(None)
        try:
            with contextlib.closing(film):
                for picture in _pictures(log, recipe):
                    film.send(picture)
                for _ in range(int(LAST * rate)):
                    film.send(picture)
            # ffmpeg moves the index to the front last of all, and write_frames does not tell if it got there.
            if b"moov" not in partial.read_bytes()[:64]:
                raise OSError("its index is missing")
        except OSError as error:
            what = f"cannot write {path}: ffmpeg failed, on a full disk perhaps; it may have said why"
            raise OSError(what) from error
    return path


def _pictures(log: EpochLog, recipe: Recipe) -> Iterator[np.ndarray]:
    """One picture an epoch, [720, 1280, 3] uint8; the background is drawn once, what moves is laid over it."""
    figure = Figure(HEIGHT / SCREEN_DPI, width=WIDTH / SCREEN_DPI, layout=None)
    canvas = FigureCanvasAgg(figure)
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
    moving = [*plot.moving, where, knobs, table]
    for artist in moving:
        artist.set_animated(True)  # left out of the background
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for last in progress_bar(range(1, len(log) + 1), "epoch_log.mov"):
        shown = EpochLog(log.rows[:last])
        plot.show(shown)
        row = shown[-1]
        where.set_text(f"epoch {row.epoch} of {recipe.epochs}, phase {row.phase}")
        knobs.set_text(
            f"test accuracy {row.test_acc:.2f}%, best so far {row.best_acc:.2f}%\n"
            f"learning rate {row.lr:.5f}, dropout {row.dropout:g}\n"
            f"MixUp α {row.mixup_alpha:g}, augmentation {row.augmentation}\n"
            f"{row.images_per_s:,.0f} images/s, {row.seconds:.1f} s an epoch"
        )
        lines = [
            f"{row.epoch:5d}{'*' if row is shown.best else ' '}{row.train_loss:11.3f}  {row.train_acc:5.1f}"
            f"{row.test_loss:12.3f}  {row.test_acc:5.1f}"
            for row in shown.rows[-ROWS:]
        ]
        table.set_text("\n".join(["epoch  train loss  acc %   test loss  acc %", *lines]))
        canvas.restore_region(background)
        for artist in moving:
            figure.draw_artist(artist)
        yield np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
