"""Fitted pairs: made once with the faces, whatever interrupts it, and kept on Drive."""

import multiprocessing
import os
import shutil
import signal

import pytest
import torch

from helpers.config import PairsConfig
from helpers.faces import data
from helpers.faces import store as stores
from helpers.pairs import fitted
from helpers.pairs.fitted import prepare_fitted
from helpers.pairs.underfit import fit_poorly

SIX = PairsConfig(fitted_faces=6)


class Counted:
    """A fit that is quick, counted, and may be interrupted once."""

    def __init__(self, stop_at=None, error=KeyboardInterrupt):
        self.calls, self.stop_at, self.error = 0, stop_at, error

    def __call__(self, image, seeds):
        self.calls += 1
        if self.calls == self.stop_at:
            raise self.error("interrupted")
        dice = torch.Generator().manual_seed(int(seeds[0]))
        return (image + 0.1 * torch.rand(image.shape, generator=dice)).clamp(0, 1)


@pytest.fixture
def fit(monkeypatch):
    counted = Counted()
    monkeypatch.setattr(fitted, "fit_poorly", lambda *arguments: counted(*arguments))
    return counted


def content(pairs):
    return pairs.rows.to_dict()


def make(faces, folder, settings=SIX, **options):
    return prepare_fitted(settings, faces, folder, progress=None, **options)


def test_a_pair_is_the_fit_of_its_face_in_steps_of_255(faces, tmp_path):
    pairs = make(faces, tmp_path, PairsConfig(fitted_faces=1))
    degraded, clean = pairs.load([0])
    seed = fitted.derive_number(0, "fitted", faces.train["key"][0])
    truth = fit_poorly(faces.load("train", [0])[0], torch.tensor([seed]))
    assert torch.equal(clean, faces.load("train", [0])[0])
    assert degraded.dtype == torch.float32 and (degraded - truth).abs().max() <= 0.5 / 255 + 1e-6


def test_they_are_made_once_as_many_as_there_are_faces_and_by_seed(faces, tmp_path, fit):
    pairs = make(faces, tmp_path, PairsConfig(fitted_faces=99))
    again = make(faces, tmp_path, PairsConfig(fitted_faces=99))
    assert len(pairs) == len(faces.train) == fit.calls == 6 and again.store == pairs.store
    other = make(faces, tmp_path, seed=1)
    assert other.store != pairs.store and not torch.equal(other.load([0])[0], pairs.load([0])[0])
    assert len(make(faces, tmp_path, PairsConfig(fitted_faces=2))) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_an_interrupted_preparation_goes_on_from_the_last_group(faces, tmp_path, fit, error):
    calm = make(faces, tmp_path / "calm")
    fit.calls, fit.stop_at, fit.error = 0, 6, error
    with pytest.raises(error):
        make(faces, tmp_path / "broken")
    assert not [path for path in (tmp_path / "broken").glob("fitted-*") if not path.suffix
                and path.is_dir()]
    fit.calls, fit.stop_at = 0, None
    assert content(make(faces, tmp_path / "broken")) == content(calm)
    assert fit.calls == len(faces.train) - stores.GROUP


def prepare_and_die(store, folder):
    """Fit six faces, and be killed at the sixth."""
    counted = Counted()

    def fatal(image, seeds):
        if counted.calls == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return counted(image, seeds)
    fitted.fit_poorly = fatal
    make(data.Faces(store), folder)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
def test_a_killed_preparation_goes_on_from_the_last_group(faces, tmp_path, fit):
    process = multiprocessing.get_context("spawn").Process(
        target=prepare_and_die, args=(faces.store, tmp_path / "killed"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    killed = make(faces, tmp_path / "killed")
    assert fit.calls == len(faces.train) - stores.GROUP
    assert content(killed) == content(make(faces, tmp_path / "calm"))


def test_drive_keeps_them_for_another_machine(faces, tmp_path, fit, capsys):
    (tmp_path / "drive").mkdir()
    here = make(faces, tmp_path / "here", drive=tmp_path / "drive")
    there = make(faces, tmp_path / "there", drive=tmp_path / "drive")
    assert fit.calls == 6 and content(here) == content(there)
    assert [path.suffix for path in (tmp_path / "drive").iterdir()] == [".tar"]
    assert "is taken from" in capsys.readouterr().out


def test_a_bar_shows_how_far_it_is(faces, tmp_path, fit):
    seen = {}

    def bar(rows, **options):
        seen.update(options)
        return rows
    prepare_fitted(SIX, faces, tmp_path, progress=bar)
    assert (seen["total"], seen["initial"], seen["desc"]) == (6, 0, "Fitting faces")


def test_draws_follow_from_their_seeds_and_half_are_mirrored(faces, tmp_path, fit):
    pairs, seeds = make(faces, tmp_path), torch.arange(40)
    degraded, clean = pairs.draw(seeds)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pairs.draw(seeds[order])[0], degraded[order])
    faces_seen, everything = set(), faces.load("train", range(6))[0]
    for seed, one in enumerate(clean):
        one = one.flip(-1) if seed % 2 else one
        faces_seen |= {i for i in range(6) if torch.equal(one, everything[i])}
        assert ((degraded[seed] - clean[seed]) > -1 / 255).all()  # both sides are mirrored
    assert faces_seen == set(range(6))


def test_a_damaged_folder_and_fits_of_other_faces_are_refused(faces, tmp_path, fit):
    pairs = make(faces, tmp_path)
    renamed = type("Renamed", (), {"train": {"key": ["x"] * 6}, "store": faces.store})
    with pytest.raises(ValueError, match="fits of other faces"):
        fitted.FittedPairs(pairs.store, renamed)
    file = next(pairs.store.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 7 + b"\1")
    with pytest.raises(ValueError, match="expected what was prepared, got other bytes"):
        make(faces, tmp_path)
    shutil.rmtree(pairs.store)
    assert len(make(faces, tmp_path)) == 6
