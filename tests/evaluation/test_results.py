"""The claims of helpers/evaluation/results.py and helpers/distances/metrics.py."""

import dataclasses
import json
import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from helpers.config import LossConfig, preset
from helpers.distances.metrics import Metrics, psnr, ssim
from helpers.evaluation.results import Result, evaluate, format_sets, format_table, gain, summarise
from helpers.evaluation.results import read_metrics as read
from helpers.evaluation.results import write_metrics as write

NAMES = ("stlpips_alex", "psnr", "ssim")


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics(LossConfig(vgg="random", clip=0.0), device="cpu")


@pytest.fixture
def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    clean = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    degraded = 0.6 * clean + 0.4 * noise
    return [(clean[:2], degraded[:2], ["a", "b"]), (clean[2:], degraded[2:], ["c"])]


def test_psnr_of_a_known_error():
    clean = torch.full((2, 3, 16, 16), 0.5)
    offset = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(clean + offset, clean), torch.tensor([20.0, 40.0]).double(),
                               rtol=1e-5, atol=0)
    assert psnr(clean, clean).tolist() == [math.inf] * 2


def test_psnr_and_ssim_equal_scikit_image(pairs):
    clean, degraded, _ = pairs[0]
    a, b = degraded[1].double().numpy(), clean[1].double().numpy()
    assert psnr(degraded, clean)[1].item() == pytest.approx(
        peak_signal_noise_ratio(b, a, data_range=1))
    assert ssim(degraded, clean)[1].item() == pytest.approx(structural_similarity(
        a, b, data_range=1, channel_axis=0, gaussian_weights=True, use_sample_covariance=False))
    assert ssim(clean, clean).tolist() == pytest.approx([1.0, 1.0])


def test_metrics_clamp_first_and_do_not_depend_on_the_batch(metrics, pairs):
    clean, degraded, _ = pairs[0]
    together, alone = metrics(degraded, clean), metrics(degraded[:1], clean[:1])
    assert tuple(together) == metrics.names == NAMES
    assert [together[n][0] for n in NAMES] == pytest.approx([alone[n][0] for n in NAMES], rel=1e-4)
    assert metrics(3 * degraded - 1, clean) == metrics((3 * degraded - 1).clamp(0, 1), clean)


def test_the_ranking_network_is_never_the_losss_and_all_are_named(monkeypatch):
    monkeypatch.setattr("helpers.distances.metrics.load_lpips",
                        lambda *_, **__: torch.nn.Identity())
    names = {vgg: Metrics(LossConfig(vgg=vgg), device="cpu").names for vgg in ("lpips", "stlpips")}
    assert names == {"lpips": ("stlpips_alex", "lpips_alex", "lpips_vgg", "psnr", "ssim"),
                     "stlpips": NAMES}


def test_evaluate_measures_every_image_against_doing_nothing(metrics, pairs):
    clean = torch.cat([pair[0] for pair in pairs])
    better = {id(degraded): 0.9 * c + 0.1 * degraded for c, degraded, _ in pairs}
    result = evaluate(lambda degraded: better[id(degraded)], pairs, metrics)
    assert result.n == 3 and set(result.restored) == set(NAMES)
    assert result.identities == ["a", "b", "c"] and result.summary()["identities"] == 3
    assert set(result.summary()["share_worse"].values()) == {0.0}
    assert result.degraded["psnr"] == pytest.approx(
        psnr(torch.cat([pair[1] for pair in pairs]), clean).tolist())
    assert result.gain["psnr"] == pytest.approx([20.0] * 3, abs=1e-3)
    assert all(value > 0 for values in result.gain.values() for value in values)
    nothing = evaluate(lambda degraded: degraded, pairs, metrics)
    assert all(value == 0 for values in nothing.gain.values() for value in values)


def test_gain_is_a_percentage_of_the_mean_or_a_difference():
    assert gain("lpips_vgg", [0.1, 0.3], [0.1, 0.1]) == pytest.approx([0.0, 100.0])
    assert gain("psnr", [20.0, 25.0], [22.0, 24.0]) == [2.0, -1.0]
    assert math.isnan(gain("lpips_vgg", [0.0], [0.1])[0])  # nothing was degraded
    assert math.isnan(gain("psnr", [math.inf], [30.0])[0])


@pytest.mark.parametrize("part", ["degraded", "restored"])
def test_pictures_that_are_not_finite_are_refused(metrics, pairs, part):
    clean, degraded, names = pairs[1]
    broken = degraded * math.nan
    with pytest.raises(ValueError, match=f"{part} images: expected finite values"):
        evaluate(lambda _: degraded if part == "degraded" else broken,
                 [(clean, broken if part == "degraded" else degraded, names)], metrics)


def test_bad_evaluations_are_refused(metrics, pairs):
    with pytest.raises(ValueError, match="of one shape"):
        evaluate(lambda degraded: degraded[..., 1:], pairs, metrics)
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(lambda degraded: degraded, [], metrics)


def test_clean_pictures_are_measured_though_doing_nothing_is_perfect(metrics, pairs):
    clean = [(clean, clean, names) for clean, _, names in pairs]
    summary = evaluate(lambda images: (0.95 * images).clamp(0, 1), clean, metrics).summary()
    assert "psnr" not in summary["degraded"] and "psnr" not in summary["gain"]
    assert summary["degraded"]["stlpips_alex"]["mean"] == 0 and summary["gain"].keys() == {"ssim"}
    assert 20 < summary["restored"]["psnr"]["mean"] < 45
    assert "–" in format_table(summary)


def test_an_undefined_figure_of_one_picture_is_counted_and_ends_nothing():
    summary = Result({"psnr": [20.0, math.inf, 30.0]}, {"psnr": [21.0, 40.0, 32.0]}).summary()
    assert summary["degraded"]["psnr"]["undefined"] == 1 == summary["gain"]["psnr"]["undefined"]
    assert summary["degraded"]["psnr"]["mean"] == 25.0
    assert summary["gain"]["psnr"]["mean"] == 1.5 and "undefined" not in summary["restored"]["psnr"]


def test_summarise_known_numbers():
    summary = summarise([1.0, 2.0, 3.0, 10.0], list("abcd"))
    assert (summary["mean"], summary["median"]) == (4.0, 2.5)
    assert summary["std"] == pytest.approx(math.sqrt(12.5))
    assert summary == summarise([1.0, 2.0, 3.0, 10.0], list("abcd"))
    assert summarise([5.0], ["a"]) == {"mean": 5.0, "median": 5.0, "std": 0.0, "ci95": [5.0, 5.0]}


def test_interval_of_many_values_is_the_normal_one():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()
    low, high = summarise(values.tolist(), [str(i) for i in range(400)])["ci95"]
    mean, half = values.mean().item(), 1.96 * values.std().item() / 20
    assert [low, high] == pytest.approx([mean - half, mean + half], abs=0.02)


def test_the_interval_is_of_identities_and_covers_what_it_should():
    """Ten pictures of each of 20 people, who differ: pictures alone would give a third of it."""
    dice, covered, widths = torch.Generator().manual_seed(0), 0, []
    for _ in range(100):
        people = torch.randn(20, 1, generator=dice)
        values = (people + 0.1 * torch.randn(20, 10, generator=dice)).flatten().tolist()
        low, high = summarise(values, [str(i // 10) for i in range(200)])["ci95"]
        covered, widths = covered + (low <= 0 <= high), [*widths, high - low]
    assert covered >= 86 and 0.6 < sum(widths) / 100 < 1.0
    low, high = summarise(values, [str(i) for i in range(200)])["ci95"]
    assert high - low < 0.4


def test_the_summary_depends_on_no_order():
    values, who = [1.0, 2.0, 4.0, 8.0], ["a", "b", "a", "c"]
    assert summarise(values, who) == summarise(values[::-1], who[::-1])


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf], [[1.0]]])
def test_summarise_refuses_what_has_no_finite_value(bad):
    with pytest.raises(ValueError, match="some finite"):
        summarise(bad, ["a"] * len(bad))
    with pytest.raises(ValueError, match="an identity each"):
        summarise([1.0, 2.0], ["a"])


def test_metrics_json_round_trip(tmp_path):
    result = Result({"stlpips_alex": [0.4, 0.2], "psnr": [20.0, 22.0]},
                    {"stlpips_alex": [0.2, 0.1], "psnr": [23.0, 24.0]})
    path, config = tmp_path / "metrics.json", preset("demo")
    written = write(path, config=config, sets={"avatars": result}, device="cpu")
    assert read(path) == written and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert set(written) == {"config", "seed", "base", "versions", "device", "sets"}
    assert written["config"] == dataclasses.asdict(config) and written["device"] == "cpu"
    one = written["sets"]["avatars"]
    assert set(one) == {"n", "identities", "degraded", "restored", "gain", "share_worse"}
    assert set(one["gain"]["psnr"]) == {"mean", "median", "std", "ci95"}
    assert one["gain"]["stlpips_alex"]["mean"] == pytest.approx(50.0)
    assert format_table(one) == format_table(result)


def test_bad_metrics_leave_the_old_file_alone(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="expected"):
        write(path, config=preset("demo"), sets={}, device="cpu")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"sets": math.nan})])
def test_foreign_json_is_refused(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match="expected"):
        read(tmp_path / "metrics.json")


def test_table_is_aligned_and_shows_both_baselines():
    result = Result({"lpips_vgg": [0.4, 0.2], "psnr": [20.0, 22.0], "ssim": [0.5, 0.7]},
                    {"lpips_vgg": [0.2, 0.1], "psnr": [23.0, 24.0], "ssim": [0.6, 0.9]})
    head, _, *lines = format_table(result).splitlines()
    assert head == "2 pictures of 2 identities; mean ± std"
    assert len({len(line) for line in lines}) == 1
    assert "0.300 ± 0.100 " in lines[2] and "+50.0 % [" in lines[2] and "↓" in lines[2]
    assert "21.00 ± 1.00 dB" in lines[3] and "+2.50 dB [+2.00, +3.00]" in lines[3]
    assert "+0.150 [" in lines[4] and "↑" in lines[4]


def test_all_sets_stand_in_one_table_with_the_share_made_worse():
    drawn = Result({"stlpips_alex": [0.2, 0.4], "psnr": [20.0, 22.0]},
                   {"stlpips_alex": [0.05, 0.45], "psnr": [23.0, 24.0]})
    clean = Result({"stlpips_alex": [0.0], "psnr": [math.inf]},
                   {"stlpips_alex": [0.01], "psnr": [41.0]})
    *_, first, second = format_sets({"drawn": drawn, "clean": clean}).splitlines()
    assert first == ("| drawn (2) | 0.300 → 0.250 | +16.7 % [-16.7, +50.0] | "
                     "+2.50 dB [+2.00, +3.00] | 50 % |")
    assert second == "| clean (1) | 0.000 → 0.010 | – | 41.0 dB | – |"
