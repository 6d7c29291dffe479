"""One pass over a set: three rows an image, resumed where it stopped, the same in any batches."""

from __future__ import annotations

import json
import math

import pytest
import torch

from helpers.config import LossConfig
from helpers.distances import Metrics
from helpers.evaluation import Batch, Filter, Result, Row, Rows, evaluate, measure, pick
from helpers.evaluation.measuring import show_again
from helpers.faces import REGIONS

CHEAP = Filter("unsharp", 1.0, 0.5)
DICE = torch.Generator().manual_seed(0)
CLEAN, NOISE = torch.rand(2, 10, 3, 32, 32, generator=DICE)
DEGRADED = 0.6 * CLEAN + 0.4 * NOISE
MAPS = torch.randint(0, 6, (10, 32, 32), generator=DICE).byte()


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics(LossConfig(vgg="random", clip=0.0), device="cpu")


def batches(size: int = 4, order=range(10), degraded=DEGRADED):
    order = list(order)
    for i in range(0, len(order), size):
        own = order[i:i + size]
        yield Batch(CLEAN[own], degraded[own], [f"who {n // 2}" for n in own],
                    [f"{n:04d}" for n in own], MAPS[own])


def halfway(batch: Batch):
    """Restores the half of the damage, and says where."""
    return torch.lerp(batch.degraded, batch.clean, 0.5), torch.full_like(batch.clean[:, :1], 0.5)


def as_they_are(degraded):
    return degraded


def test_doing_nothing_a_filter_and_the_enhancer_are_measured_of_every_image(metrics):
    found = measure("drawn", halfway, batches(), metrics, cheap=CHEAP)
    result = found.result
    assert result.n == 10 and result.images == [f"{i:04d}" for i in range(10)]
    names = {*metrics.names, *(f"stlpips_alex/{region}" for region in REGIONS)}
    assert set(result.degraded) == set(result.filtered) == set(result.restored) == names
    for kind, images in (("degraded", DEGRADED), ("filtered", CHEAP(DEGRADED)),
                         ("restored", torch.lerp(DEGRADED, CLEAN, 0.5))):
        expected = metrics(images, CLEAN)["stlpips_alex"]
        assert getattr(result, kind)["stlpips_alex"] == pytest.approx(expected, rel=1e-4), kind
    assert set(result.summary()["share_worse"].values()) == {0.0}
    shown = found.pictures[pick(result)["worst"][0]]
    assert shown.restored.dtype == torch.uint8 and int(shown.mask.unique()) == 128
    nothing = evaluate(as_they_are, batches(), metrics)
    assert set(nothing.gain["psnr"]) == {0.0} and not nothing.filtered


def test_summaries_depend_on_no_batch_and_no_order(metrics):
    one, other = (measure("a", halfway, batches(size, order), metrics, cheap=CHEAP).result
                  for size, order in ((4, range(10)), (3, reversed(range(10)))))
    for mine, theirs in ((one.summary(), other.summary()), (one.regions(), other.regions())):
        for path, value in numbers(mine).items():
            assert numbers(theirs)[path] == pytest.approx(value, rel=1e-4, abs=1e-6), path
    assert pick(one)["random"] == pick(other)["random"]


def numbers(part, path=()):
    """Every number in nested dicts, by its path."""
    if isinstance(part, dict):
        return {own: number for key, value in part.items()
                for own, number in numbers(value, (*path, key)).items()}
    return {path: part} if isinstance(part, int | float | list) else {}


class Killed(Exception):
    pass


def test_an_interrupted_evaluation_goes_on_and_ends_as_if_it_had_not_been(metrics, tmp_path):
    whole = measure("a", halfway, batches(), metrics, cheap=CHEAP)
    seen = []

    def dies_later(batch):
        if len(seen) == 2:
            raise Killed
        seen.append(batch.images)
        return halfway(batch)

    rows = Rows(tmp_path, {"step": 3})
    with pytest.raises(Killed):
        measure("a", dies_later, batches(), metrics, cheap=CHEAP, rows=rows)
    half_written = next((tmp_path / rows.of[:12] / "a").glob("0001.json"))
    half_written.write_bytes(half_written.read_bytes()[:-9])
    restored = []
    again = measure("a", lambda batch: restored.append(batch.images) or halfway(batch), batches(),
                    metrics, cheap=CHEAP, rows=Rows(tmp_path, {"step": 3}))
    assert [images[0] for images in restored] == ["0000", "0008"]  # the second was whole
    assert again.result == whole.result
    shown = show_again(again, halfway, batches())
    assert shown.pictures.keys() == whole.pictures.keys()
    for image, one in shown.pictures.items():
        assert torch.equal(one.restored, whole.pictures[image].restored)


def test_rows_of_other_weights_or_settings_are_never_mixed_in(metrics, tmp_path):
    measure("a", halfway, batches(), metrics, rows=Rows(tmp_path, {"step": 3}))
    other = Rows(tmp_path, {"step": 4})
    found = measure("a", lambda batch: batch.degraded, batches(), metrics, rows=other).result
    assert other.found == 0 and set(found.gain["psnr"]) == {0.0}
    path = tmp_path / other.of[:12] / "a" / "0000.json"
    stranger = json.loads(path.read_text()) | {"of": "0" * 64}
    path.write_text(json.dumps(stranger))
    assert other.read("a", "0000") is None and other.read("a", "0001") is not None


def test_black_and_identical_and_broken_pictures_are_named_and_end_nothing(metrics, tmp_path):
    degraded = DEGRADED.clone()
    degraded[1] = 0  # black
    degraded[2] = CLEAN[2]  # identical

    def breaks_one(batch):
        restored = batch.degraded.clone()
        restored[[image == "0005" for image in batch.images]] = math.nan
        return restored

    rows = Rows(tmp_path, {})
    for _ in range(2):  # measured, and read again
        result = measure("a", breaks_one, batches(degraded=degraded), metrics, cheap=CHEAP,
                         rows=rows).result
        summary = result.summary()
        assert summary["undefined"]["restored psnr"] == ["0002", "0005"]
        assert summary["undefined"]["restored stlpips_alex"] == ["0005"]
        assert summary["undefined"]["degraded psnr"] == ["0002"]
        assert summary["gain"]["stlpips_alex"]["mean"] == 0.0 and summary["n"] == 10


def test_what_is_shown_of_a_part_holds_all_that_is_shown_of_the_whole():
    dice = torch.Generator().manual_seed(3)
    left = torch.rand(30, generator=dice).tolist()
    rows = [Row(f"{i:04d}", "", {"degraded": {"a": 0.5}, "restored": {"a": value}})
            for i, value in enumerate(left)]
    whole = pick(Result.of(rows))
    assert [len(images) for images in whole.values()] == [3, 2, 3]
    wanted = {image for images in whole.values() for image in images}
    assert len(wanted) == 8
    values = dict(zip((row.image for row in rows), left, strict=True))
    others = [values[image] for image in values if image not in whole["random"]]
    assert [values[i] for i in whole["best"]] == sorted(others)[:2]
    assert [values[i] for i in whole["worst"]] == sorted(others)[:-4:-1]
    for count in range(1, 31):
        part = {image for images in pick(Result.of(rows[:count])).values() for image in images}
        assert {image for image in wanted if int(image) < count} <= part


def test_no_pairs_and_other_shapes_are_refused(metrics):
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(as_they_are, [], metrics)
    with pytest.raises(ValueError, match="of one shape"):
        evaluate(lambda degraded: degraded[..., 1:], batches(), metrics)
