"""The epoch log and the run's folder as plain text."""

from __future__ import annotations

from s8lib.checkpoint import RunFolder
from s8lib.epoch_log import EpochLog

WHAT = {
    "checkpoints": "what a resume needs, the newest epochs",
    "best": "the best weights: config.json + model.safetensors, for from_pretrained",
    "recipe.json": "every setting of the training",
    "environment.json": "the machines it ran on",
    "manifest.json": "names, sizes and sha256 of what is complete",
    "epoch_log.csv": "the log, one row an epoch",
    "epoch_log.mov": "the log as a video",
    "graph.jpg": "accuracy, loss and learning rate",
    "schedule.png": "the schedule",
    "samples.png": "training images, augmented",
    "param_1.png": "the network's layers, first half",
    "param_2.png": "the network's layers, second half",
    "confusion.png": "which superclass is taken for which",
    "worst_classes.png": "the classes it knows least",
    "mistakes.png": "its most confident mistakes",
    "reliability.png": "whether its confidence can be trusted",
    "report.json": "every number",
}


def epoch_table(log: EpochLog, last: int | None = None) -> str:
    """The log as text, a line an epoch: all of them, or the `last` ones. `*` marks the best epoch."""
    head = (
        "epoch  phase        lr  dropout  mixup  augmentation  train loss  acc %  test loss  acc %  top-5 %  "
        "images/s      s"
    )
    rows = [
        f"{row.epoch:5d}{'*' if row is log.best else ' '}{row.phase:6d}  {row.lr:8.6f}  {row.dropout:7.4g}  "
        f"{row.mixup_alpha:5.4g}  {row.augmentation:<12}  {row.train_loss:10.4f}  {row.train_acc:5.2f}  "
        f"{row.test_loss:9.4f}  {row.test_acc:5.2f}  {row.test_top5:7.2f}  {row.images_per_s:8,.0f}  "
        f"{row.seconds:5.1f}"
        for row in log.rows[-last if last else None :]
    ]
    return "\n".join([head, *rows])


def contents(run: RunFolder) -> str:
    """What a run's folder holds, with sizes, a line each."""
    lines = []
    for name, what in WHAT.items():
        path = run.path / name
        if not path.exists():
            continue
        files = sorted(path.glob("*")) if path.is_dir() else [path]
        lines.append(f"{name:<18} {_size(sum(file.stat().st_size for file in files)):>9}   {what}")
        if name == "checkpoints":
            lines += [f"  {file.name:<16} {_size(file.stat().st_size):>9}" for file in files]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
