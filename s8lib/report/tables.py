"""Runs as plain text: a run at a glance, its epochs, and the runs that the project keeps."""

from pathlib import Path

from s8lib.machine.progress import Table, tell
from s8lib.models.networks import Network, load_model
from s8lib.recipe import Recipe
from s8lib.report.card import machine_of
from s8lib.run.checkpoint import EpochLog
from s8lib.run.folder import RunFolder
from s8lib.run.save import WEIGHTS


def read(run: RunFolder) -> tuple[Recipe, EpochLog, Network]:
    """A run's recipe, its log and its best weights.

    Raises:
        RunError: if it holds no finished epoch, or is damaged.
    """
    log, (_, weights) = run.log(), run.best_weights()
    return run.recipe(), log, load_model(weights)


def epoch_table(log: EpochLog, last: int | None = None) -> Table:
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
        for row in log[-last if last else None :]
    ]
    return Table("\n".join([head, *rows]), head=True)


def overview(run: RunFolder) -> Table:
    """What a run is and how far it came, as text: network, recipe, epochs, best, final, sizes.

    Raises:
        RunError: it holds no finished epoch, or its best weights are damaged.
    """
    recipe, log, model = read(run)
    manifest, sessions = run.manifest(), run.sessions()
    newest, best = manifest.files[manifest.checkpoints[manifest.epoch]], manifest.files[WEIGHTS]
    scores = "epoch {0.epoch}: {0.test_acc:.2f}% top-1, {0.test_top5:.2f}% top-5 on the test set".format
    rows = {
        "run": run.path.name,
        "network": f"{recipe.model}, {sum(weights.numel() for weights in model.parameters()):,} parameters",
        "recipe": f"{recipe.name}, seed {recipe.seed}",
        "data": sessions[-1].get("data", "unnamed") if sessions else "unnamed",
        "epochs": f"{len(log)} of {recipe.epochs}, in {log.minutes:.1f} minutes",
        "best": scores(log.best),
        "chosen on": log.chosen_on,
        "final": scores(log[-1]),
        "weights": f"of epoch {manifest.best_epoch}, {size(best.bytes)}, sha256 {best.sha256[:16]}...",
        "checkpoint": f"of epoch {manifest.epoch}, {size(newest.bytes)}",
    }
    return Table("\n".join(f"{name:<11} {value}" for name, value in rows.items()))


def size(count: int) -> str:
    """Bytes, in words."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def reference_runs() -> None:
    """Print what the project's own runs reached, on which hardware and commit; in a notebook show their curves."""
    package = Path(__file__).parents[1]
    # A checkout has them beside the package, as people look for them there.
    folder = package / "results" if (package / "results").exists() else package.parent / "results"
    for path in sorted(folder.rglob("epoch_log.csv")):
        run, recipe = RunFolder(path.parent), Recipe.load(path.parent / "recipe.json")
        commit = str(run.read_json("report.json", default={}).get("commit", "unrecorded"))[:10]
        tell(f"{recipe.name}, {recipe.model}, seed {recipe.seed}")
        tell(f"    {EpochLog.read(path).summary()}".replace("; ", "\n    "))
        tell(f"    on {machine_of([{}, *run.sessions()][-1])}\n    commit {commit}")
    for graph in sorted(folder.rglob("graph.jpg")):
        from IPython.display import Image, display

        display(Image(graph, width=800))  # of 1600 pixels
