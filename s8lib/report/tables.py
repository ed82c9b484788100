"""The epoch log and the run's folder as plain text."""

from __future__ import annotations

from s8lib.report.write import read
from s8lib.run.folder import RunFolder
from s8lib.run.log import Epoch, EpochLog, selector

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
    "model.onnx": "the best weights as ONNX",
    "model.pt2": "the best weights as a torch.export program",
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


def overview(run: RunFolder) -> str:
    """What a run is and how far it came, as text: network, recipe, epochs, best, final, sizes.

    Raises:
        RunError: it holds no finished epoch, or its best weights are damaged.
    """
    recipe, log, model = read(run)
    manifest, sessions = run.manifest(), run.read_json("environment.json", default=[])
    newest = max(manifest["checkpoints"].values(), key=lambda entry: entry["epoch"])
    best, minutes = manifest["best"], sum(row.seconds for row in log) / 60
    rows = {
        "run": run.path.name,
        "network": f"{recipe.model}, {sum(weights.numel() for weights in model.parameters()):,} parameters",
        "recipe": f"{recipe.name}, seed {recipe.seed}",
        "data": sessions[-1].get("data", "unnamed") if sessions else "unnamed",
        "epochs": f"{len(log)} of {recipe.epochs}, in {minutes:.1f} minutes",
        "best": _scores(log.best),
        "chosen on": selector(log.best.holdout_acc is not None),
        "final": _scores(log[-1]),
        "weights": f"of epoch {best['epoch']}, {_size(best['bytes'])}, sha256 {best['sha256'][:16]}...",
        "checkpoint": f"of epoch {newest['epoch']}, {_size(newest['bytes'])}",
    }
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())


def _scores(row: Epoch) -> str:
    return f"epoch {row.epoch}: {row.test_acc:.2f}% top-1, {row.test_top5:.2f}% top-5 on the test set"


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
