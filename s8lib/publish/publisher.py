"""Publishing a run to the Hugging Face Hub while it trains: what is sent beside the save, and the public calls."""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from s8lib.data.augment import MEAN, SIDE, STD
from s8lib.hub_client import HubError, OutOfReach, check_repo_id, usable_token
from s8lib.machine.progress import tell
from s8lib.models.networks import Network
from s8lib.report import write_log
from s8lib.report.card import Export, make_card, merged
from s8lib.run.copies import Copies
from s8lib.run.folder import RunFolder
from s8lib.run.hub import EXPORTS, HubRepo
from s8lib.run.place import bring
from s8lib.run.save import CONFIG, WEIGHTS, Manifest
from s8lib.validation import check

FIRST_PAUSE = 10.0  # seconds before a failed upload is tried again
PATIENCE = 900.0  # seconds: a Hub that hangs for ten minutes does not cost the last commit
SENT = ("recipe.json", "environment.json", "report.json", "graph.jpg")
PACKAGE = Path(__file__).parents[1]
SOURCES = ("modeling_s8lib.py", "architectures.py", "layers.py")  # which transformers runs
LEFT_OUT = {"__pycache__", "results"}  # of the wheel: results are pictures of runs
WHEEL = "Wheel-Version: 1.0\nGenerator: s8lib\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


class HubPublisher(Copies):
    """Publishes a run: one commit every `every` epochs and one at its end, in the background.

    Each brings the best weights, the epoch log, the report and the card to `main`, and what a run goes on from to
    the branch `resume`, all of one moment. A failure never stops training: it is said in one line and tried again,
    with what is newest by then.

    Args:
        repo_id: "user/name"; the first commit makes the repository if it is not there.
        every: epochs between commits.
        token: by default the one of this machine, or of Colab's secrets; it needs write access.
        private: whether a new repository is private.
        overwrite: replace what is in the repository, if that is another run or none of ours.
        license: of the weights, as the Hub calls it; by default what the card there says, at first "mit".
        transformers: send what transformers needs to open the network.
        wait: seconds without a byte moving, after which `finish` no longer waits for the last commit.
        say: takes one line for people at a time.
    Raises:
        HubError: no token, a wrong one, or a repository it may not write to.
        RunError: the repository holds something else than a run. A Hub that cannot be reached is no error: what is
            due is sent when it can be. But a run of which nothing is on this disk does not begin without it.
    """

    def __init__(
        self,
        repo_id: str,
        every: int = 10,
        token: str | None = None,
        private: bool = False,
        *,
        overwrite: bool = False,
        license: str | None = None,
        transformers: bool = True,
        wait: float = PATIENCE,
        say: Callable[[str], None] = tell,
    ) -> None:
        if every < 1:
            raise HubError(f"every = {every}: must be at least 1 epoch")
        self.repo = HubRepo(check_repo_id(repo_id), usable_token(token), private, overwrite=overwrite)
        self.repo.renewed_card = functools.partial(merged, license=license)
        self._license, self._transformers = license, transformers
        self._exports: Sequence[Export] = ()  # to be sent
        super().__init__(self.repo, every, wait, FIRST_PAUSE)
        try:
            self.repo.claim(Manifest())  # of no run yet: the token and whose repository it is are seen now
        except OutOfReach as error:
            say(f"{error}; tried again when a commit is due")

    def extras(self, run: RunFolder) -> tuple[Mapping[str, Path | str | bytes], str]:
        """The report, the curves, the card, the exports, and what makes it usable; the commit's message."""
        log = run.log()
        write_log(run, log)
        epoch, _ = run.best_weights()
        best, last = log[epoch - 1], log[-1]
        sent = {name: run.path / name for name in SENT if (run.path / name).is_file()}
        files: dict[str, Path | str | bytes] = {**sent, **beside(run, self._transformers)}
        files |= {export.path.name: export.path for export in self._exports}
        if exports := self._all_exports(weights := run.manifest().files[WEIGHTS].sha256):
            known = {weights: [dataclasses.asdict(export) for export in exports]}
            files[EXPORTS] = json.dumps(known, indent=2, default=lambda path: path.name)
        files["README.md"] = str(make_card(run, self.repo.repo_id, log, exports, files, self._license))
        return files, f"epoch {last.epoch}: {last.test_acc:.2f}% top-1; best epoch {epoch}: {best.test_acc:.2f}%"

    def _all_exports(self, weights: str) -> list[Export]:
        """Those to be sent, and those in the repository that are of these `weights`, which stay there."""
        there: dict[str, list[Export]] = {}
        with contextlib.suppress(HubError):  # none, or damaged: the card does without
            there = check(dict[str, list[Export]], self.repo.exports, HubError)
        return [*{one.path.name: one for one in (*there.get(weights, ()), *self._exports)}.values()]

    def publish(self, run: RunFolder, exports: Sequence[Export] = ()) -> str:
        """Send what a run folder holds, and wait for it as `finish` does; the address of the commit on `main`.

        Args:
            exports: of its best weights, in other formats; they stay while these are the best.
        Raises:
            RunError: the folder holds no epoch, or another process is training in it; or the repository holds
                something else.
            HubError: the Hub refuses it.
            ConnectionError: the Hub could not be reached, or did not take it in time.
        """
        epoch = run.log()[-1].epoch
        self.repo.claim(run.manifest())
        self._exports, self._sent, self._due = tuple(exports), None, True
        with RunFolder(run.path, run.say).lock():
            done = self.finish(run)
        self._exports = ()
        if not done:
            what = f"epoch {epoch} is not on the Hub: {self.problem or f'nothing moved for {self.wait:.0f} s'}"
            raise OutOfReach(what) if isinstance(self.problem, OSError | None) else HubError(what)
        return self.repo.url


def fetch_run(repo_id: str, run: RunFolder, token: str | None = None, revision: str | None = None) -> bool:
    """Bring the run in a Hub repository into `run`, if it is newer than what that holds; whether it was.

    Every file is of one commit, and verified before the first of them takes its place.

    Args:
        token: by default this machine's; only a private repository needs one.
        revision: a branch or commit; by default the newest.
    Raises:
        HubError: there is no such repository or revision.
        ConnectionError: the Hub cannot be reached, or the connection broke; nothing was changed.
        RunError: another process is training in the folder, or what the repository holds is damaged or no run.
    """
    here = RunFolder(run.path, run.say)  # without its copies, which must not follow this
    with here.lock():
        return bring(HubRepo(repo_id, token, revision=revision), here, here.fetch()) > 0


def beside(run: RunFolder, transformers: bool = True) -> dict[str, bytes | str]:
    """The files by their names in a run's folder, of which `best/` is the root of a repository.

    Args:
        transformers: with those that transformers needs.
    Raises:
        RunError: the run holds no finished epoch, or is damaged.
    """
    network = Network.without_weights(str(run.best_weights()[1]))
    if not transformers:
        return {**wheel()}
    module, kind = SOURCES[0].removesuffix(".py"), type(network).__name__
    names = {"AutoConfig": f"{kind}Config", "AutoModelForImageClassification": f"{kind}ForImageClassification"}
    config = network.saved_config() | {
        "architectures": [names["AutoModelForImageClassification"]],
        "auto_map": {auto: f"{module}.{name}" for auto, name in names.items()},
    }
    preparation = {
        "auto_map": {"AutoImageProcessor": f"{module}.ImageProcessor"},
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": MEAN,
        "image_std": STD,
    }
    texts = {CONFIG: config, "preprocessor_config.json": preparation}
    sources = {name: (PACKAGE / "models" / name).read_text(encoding="utf-8") for name in SOURCES}
    return wheel() | sources | {name: json.dumps(values, indent=2) + "\n" for name, values in texts.items()}


@functools.cache
def wheel() -> dict[str, bytes]:
    """The s8lib that runs here as a wheel by its name, the same bytes each time; none if it is not installed.

    It is packed from the installed files, or those of a checkout, as there need not be a source tree.
    """
    try:
        installed = importlib.metadata.distribution("s8lib")
    except importlib.metadata.PackageNotFoundError:  # its requirements are not known: such a wheel would not run
        return {}
    stem, packed, record = f"s8lib-{installed.version}", io.BytesIO(), ""
    own = (path for path in sorted(PACKAGE.rglob("*")) if path.is_file())
    own = (path for path in own if not LEFT_OUT & {*path.relative_to(PACKAGE).parts})
    files = {f"s8lib/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in own}
    about = {"METADATA": installed.read_text("METADATA") or installed.read_text("PKG-INFO") or "", "WHEEL": WHEEL}
    about["entry_points.txt"] = installed.read_text("entry_points.txt") or ""
    files |= {f"{stem}.dist-info/{name}": text.encode() for name, text in about.items()}
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            sha256 = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            record += f"{name},sha256={sha256},{len(content)}\n"
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        last = f"{stem}.dist-info/RECORD"
        archive.writestr(zipfile.ZipInfo(last), f"{record}{last},,\n", zipfile.ZIP_DEFLATED)
    return {f"{stem}-py3-none-any.whl": packed.getvalue()}
