"""The film of a run plays everywhere, grows with the run, and is whole or not there."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

import s8lib as s8
from s8lib import report
from s8lib.report.training_curves import LONGEST
from tests.test_report import made_up_log

# imageio-ffmpeg leaves closing its pipes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("epochs", [1, 9])
def test_the_video_plays_in_quicktime_and_browsers_and_lasts_no_longer_than_it_may(
    tmp_path: Path, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LONGEST < 60
    monkeypatch.setattr("s8lib.report.training_curves.LONGEST", 9.0)
    recipe = s8.SEED_100.stretched(epochs / 100)
    path = report.video(made_up_log(recipe), recipe, tmp_path / "epoch_log.mov")
    frames = imageio_ffmpeg.read_frames(path)
    found = next(frames)
    assert found["codec"] == "h264"
    assert found["pix_fmt"].startswith("yuv420p")
    assert found["size"] == (1280, 720)
    assert found["duration"] <= 10
    picture = np.frombuffer(next(frames), np.uint8).reshape(720, 1280, 3)
    frames.close()
    assert 150 < picture.mean() < 255
    assert picture.std() > 10, "something is drawn"
    content = path.read_bytes()
    assert content[4:12] == b"ftypqt  "
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes first, so that browsers can stream"
    assert b"avc1" in content
    assert len(content) < 3_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["epoch_log.mov"]


def test_the_last_frame_of_the_video_shows_more_than_the_first(tmp_path: Path) -> None:
    recipe = s8.QUICK.stretched(1 / 3)
    path = report.video(made_up_log(recipe), recipe, tmp_path / "epoch_log.mov")
    frames = imageio_ffmpeg.read_frames(path)
    next(frames)
    pictures = [np.frombuffer(frame, np.uint8).reshape(720, 1280, 3) for frame in frames]
    assert len(pictures) == 3 * 25 + 4 * 25
    plots = [picture[80:330, 60:770].astype(int) for picture in pictures]
    blue = [(plot[..., 2] - plot[..., 0] > 120).sum() for plot in plots]
    assert blue[0] < blue[30] < blue[-1]


@pytest.mark.parametrize("fails", ["exit 1", 'for last; do :; done; head -c 9999 > "$last"; cat > /dev/null'])
def test_a_film_that_ffmpeg_fails_to_write_leaves_the_old_one(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ffmpeg, folder = tmp_path / "ffmpeg", tmp_path / "run"
    ffmpeg.write_text(f"#!/bin/sh\n{fails}\n")
    ffmpeg.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg))
    folder.mkdir()
    (folder / "epoch_log.mov").write_bytes(b"the film of before")
    with pytest.raises(OSError, match="cannot write .*epoch_log.mov: ffmpeg failed"):
        report.video(made_up_log(s8.QUICK), s8.QUICK, folder / "epoch_log.mov")
    assert [file.name for file in folder.iterdir()] == ["epoch_log.mov"]
    assert (folder / "epoch_log.mov").read_bytes() == b"the film of before"


def test_an_interrupt_that_reaches_ffmpeg_too_is_still_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexit 255\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("s8lib.report.training_curves.EpochLog", interrupt)  # as the first picture is drawn
    with pytest.raises(KeyboardInterrupt):
        report.video(made_up_log(s8.QUICK), s8.QUICK, tmp_path / "epoch_log.mov")
    assert [file.name for file in tmp_path.iterdir()] == ["ffmpeg"]
