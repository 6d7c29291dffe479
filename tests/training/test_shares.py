"""What each term of the loss pulls at, told before training."""

from __future__ import annotations

import pytest
import torch

from helpers.distances.losses import EnhancerLoss
from helpers.training.shares import SCALES, Shares, _norm, gradient_shares


def test_shares_are_those_of_the_gradient_and_grow_with_the_weight(config, build, faces):
    config = config.with_({"loss.lpips": 0.5, "loss.gram": 1.0, "loss.vgg": "random",
                           "loss.vgg_view_px": 16})
    model = build()[0]
    one, two = (gradient_shares(own, model, EnhancerLoss(own.loss, device="cpu"), faces)
                for own in (config, config.with_({"loss.gram": 2.0})))
    assert list(one.norms) == ["l1", "lpips", "gram"] and all(one.norms.values())
    assert two.norms["gram"] == pytest.approx(2 * one.norms["gram"], rel=1e-3)
    assert two.norms["l1"] == pytest.approx(one.norms["l1"])
    assert sum(map(two.of, two.norms)) == pytest.approx(1)
    assert all(p.grad is None for p in model.trainable().values())


def test_a_term_that_does_nothing_is_told():
    line = str(Shares({"l1": 1e-3, "lpips": 4e-3, "gram": 2e-6}))
    assert line == ("gradient: L1 20 %, LPIPS 80 %, Gram 0.04 %; Gram does nothing: raise "
                    "loss.gram, or set it to 0")
    assert "nothing" not in str(Shares({"l1": 1.0, "gram": 0.01}))
    assert str(Shares({"l1": 0.0})).startswith("gradient: L1 0 %; L1 does nothing")


@pytest.mark.parametrize("slope", [1e-7, 1.0, 900.0])
def test_half_precision_neither_loses_nor_overflows_a_gradient(slope):
    pictures = torch.zeros(4, requires_grad=True)
    term = (pictures.half() * torch.tensor(slope)).float().sum()
    assert max(SCALES) * slope > 65_504 or slope < 1
    found = _norm(term, pictures)
    assert found == pytest.approx(2 * slope, rel=0.01)
