"""Three lines restore whatever holds a picture, and give back the same kind."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import load, restore
from helpers.commands import ROOT
from tests.pictures.files import every_kind, pixels

RGBA = pixels(channels=4)


def test_what_comes_back_is_of_the_kind_that_was_given_and_all_agree(enhancer, exported, tmp_path):
    model = load(exported, device="cpu")
    assert not model.training
    path = tmp_path / "rgba.png"
    path.write_bytes(every_kind()["rgba.png"])
    image = restore(model, str(path))
    assert image.mode == "RGBA" and image.size == (32, 24)
    assert np.array_equal(np.asarray(image)[..., 3], RGBA[..., 3])
    bytes_ = restore(model, RGBA)
    assert bytes_.dtype == np.uint8 and np.array_equal(bytes_[..., 3], RGBA[..., 3])
    rgb = torch.from_numpy(RGBA[..., :3].copy()).permute(2, 0, 1)
    one = restore(model, rgb.float() / 255)
    assert one.shape == rgb.shape and one.dtype == torch.float32
    assert torch.equal(one, enhancer.enhance(rgb[None].float() / 255)[0])
    assert (restore(model, rgb).float() / 255 - one).abs().max() < 0.6 / 255
    assert np.abs(bytes_[..., :3] / 255 - one.permute(1, 2, 0).numpy()).max() < 0.6 / 255
    both = restore(model, torch.stack([rgb, rgb]).half() / 255)
    assert both.shape == (2, 3, 24, 32) and both.dtype == torch.float16
    wide = restore(model, np.float64(RGBA[None]) / 255)
    assert wide.shape == (1, 24, 32, 4) and wide.dtype == np.float64
    assert np.array_equal(restore(model, (np.float64(RGBA) / 255).astype(">f8")), wide[0])
    plain = restore(model, Image.fromarray(RGBA[..., 0]), strength=0.0)
    assert plain.mode == "RGB" and np.array_equal(np.asarray(plain)[..., 1], RGBA[..., 0])
    many = restore(model, [path, image, rgb])
    assert [type(part) for part in many] == [Image.Image, Image.Image, torch.Tensor]
    assert restore(model, []) == []


@pytest.mark.parametrize(("wrong", "said"), [
    (torch.zeros(1, 8, 8), "a tensor"), (np.zeros((3, 8, 8)), "an array"), (7, "got 'int'"),
    (torch.full((3, 8, 8), 2.0), r"in \[0, 1\]"), (np.zeros((8, 8)), "put the colours last"),
    ("no/such.png", "check the path"), (np.zeros((8, 8, 3), object), "an array of numbers")])
def test_what_is_no_picture_is_refused(enhancer, wrong, said):
    with pytest.raises(ValueError, match=said):
        restore(enhancer, wrong)


def test_the_package_is_imported_without_its_rooms():
    code = ("import sys, helpers; from helpers import errors; assert 'torch' not in sys.modules; "
            "assert not hasattr(helpers, 'nothing')")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
