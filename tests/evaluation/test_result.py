"""How figures are summed up: gains, intervals over identities, the worst, the undefined; tables."""

import math

import pytest
import torch

from helpers.evaluation.result import Result, gain, summarise
from helpers.evaluation.tables import format_compared, format_sets, format_table


def test_gain_is_a_percentage_of_the_mean_or_a_difference():
    assert gain("lpips_vgg", [0.1, 0.3], [0.1, 0.1]) == pytest.approx([0.0, 100.0])
    assert gain("psnr", [20.0, 25.0], [22.0, 24.0]) == [2.0, -1.0]
    assert math.isnan(gain("lpips_vgg", [0.0], [0.1])[0])  # nothing was degraded
    assert math.isnan(gain("psnr", [math.inf], [30.0])[0])


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


def test_the_table_of_a_set_is_aligned_and_shows_all_three_rows():
    result = Result({"lpips_vgg": [0.4, 0.2], "psnr": [20.0, 22.0], "ssim": [0.5, 0.7]},
                    {"lpips_vgg": [0.2, 0.1], "psnr": [23.0, 24.0], "ssim": [0.6, 0.9]},
                    filtered={"lpips_vgg": [0.3, 0.2], "psnr": [20.0, 22.0], "ssim": [0.5, 0.7]})
    head, _, *lines = format_table(result).splitlines()
    assert head == "2 pictures of 2 identities; mean ± std"
    assert len({len(line) for line in lines}) == 1
    assert "0.300 ± 0.100 " in lines[2] and "+50.0 % [" in lines[2] and "↓" in lines[2]
    assert "0.250 ± 0.050 " in lines[2] and lines[2].rstrip(" |").endswith("0 %")
    assert "21.00 ± 1.00 dB" in lines[3] and "+2.50 dB [+2.00, +3.00]" in lines[3]
    assert "+0.150 [" in lines[4] and "↑" in lines[4]


def test_all_sets_stand_in_one_table_with_the_share_made_worse():
    drawn = Result({"stlpips_alex": [0.2, 0.4], "psnr": [20.0, 22.0]},
                   {"stlpips_alex": [0.05, 0.45], "psnr": [23.0, 24.0]})
    clean = Result({"stlpips_alex": [0.0], "psnr": [math.inf]},
                   {"stlpips_alex": [0.01], "psnr": [41.0]})
    *_, first, second = format_sets({"drawn": drawn, "clean": clean}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (first, second)]
    assert cells[0] == ["drawn (2)", "0.300", "–", "0.250", "+16.7 % [-16.7, +50.0]", "–",
                        "+2.50 dB [+2.00, +3.00]", "50 %"]
    assert cells[1] == ["clean (1)", "0.000", "–", "0.010", "–", "–", "comes out at 41.0 dB", "–"]


def three_rows() -> Result:
    """Four pictures of three people; the filter does half of what the enhancer does."""
    degraded = {"stlpips_alex": [0.4, 0.2, 0.3, 0.1], "psnr": [20.0, 22.0, 21.0, math.inf],
                "stlpips_alex/eyes": [0.5, math.nan, 0.3, 0.2],
                "stlpips_alex/hair": [math.nan] * 4}
    restored = {"stlpips_alex": [0.2, 0.1, 0.36, 0.1], "psnr": [22.0, 23.0, 20.0, math.inf],
                "stlpips_alex/eyes": [0.25, math.nan, 0.3, 0.3],
                "stlpips_alex/hair": [math.nan] * 4}
    filtered = {name: [(a + b) / 2 for a, b in zip(degraded[name], restored[name], strict=True)]
                for name in degraded}
    return Result(degraded, restored, list("aabc"), filtered, ["0", "1", "2", "3"])


def test_three_rows_gains_the_worst_and_the_undefined_are_summed_up():
    summary = three_rows().summary()
    assert (summary["n"], summary["identities"]) == (4, 3)
    assert summary["gain"]["stlpips_alex"]["mean"] == pytest.approx(24.0)
    assert summary["gain_filtered"]["stlpips_alex"]["mean"] == pytest.approx(12.0)
    assert summary["over_filter"]["stlpips_alex"]["mean"] == pytest.approx(12.0)
    assert summary["over_filter"]["psnr"]["mean"] == pytest.approx(1 / 3)
    assert summary["share_worse"] == {"stlpips_alex": 0.25, "psnr": pytest.approx(1 / 3)}
    assert summary["worst"] == {"image": "2", "identity": "b", "metric": "stlpips_alex",
                                "degraded": 0.3, "filtered": pytest.approx(0.33), "restored": 0.36}
    assert summary["undefined"] == {f"{kind} psnr": ["3"]
                                    for kind in ("degraded", "filtered", "restored")}


def test_regions_are_summed_up_over_the_pictures_that_show_them():
    regions = three_rows().regions()
    assert list(regions) == ["eyes"] and regions["eyes"]["n"] == 3
    eyes = regions["eyes"]
    assert eyes["degraded"]["stlpips_alex"]["mean"] == pytest.approx(1 / 3)
    assert eyes["gain"]["stlpips_alex"]["mean"] == pytest.approx(100 * (0.15 / 3) / (1 / 3))
    assert eyes["share_worse"] == {"stlpips_alex": pytest.approx(1 / 3)}


def test_a_restored_picture_without_any_figure_spoils_no_other():
    result = Result({"stlpips_alex": [0.4, 0.2], "psnr": [20.0, 22.0]},
                    {"stlpips_alex": [math.nan, 0.1], "psnr": [math.nan, 24.0]})
    summary = result.summary()
    assert summary["gain"]["stlpips_alex"]["mean"] == pytest.approx(50.0)
    assert summary["share_worse"] == {"stlpips_alex": 0.0, "psnr": 0.0}
    assert summary["worst"]["image"] == "0001" and result.order() == [1, 0]
    nothing = Result({"stlpips_alex": [0.4]}, {"stlpips_alex": [math.nan]})
    assert nothing.summary()["worst"] is None and nothing.summary()["gain"] == {}
    assert "–" in format_sets({"a": result, "b": nothing})


def test_several_enhancers_stand_in_one_table_with_a_dash_for_what_one_has_not():
    one = three_rows()
    lines = format_compared({"ours": {"drawn": one, "fitted": one}, "other": {"drawn": one}},
                            corner="by").splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["by", "drawn", "fitted"]
    assert "+24 %, +0.67 dB" in lines[2] and lines[3].split("|")[3].strip() == "–"
