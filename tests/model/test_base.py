"""The claims of helpers/model/base.py."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from helpers.model import base as base_module
from helpers.model.base import embed_prompt, is_embedded, read_alpha_bar
from tests.faulty import faulty

GOLDEN_BASE = Path(__file__).parents[1] / "fixtures" / "golden" / "base"


@pytest.fixture(scope="module")
def full_base(tmp_path_factory):
    """The golden base, completed by a tiny random tokenizer and text encoder."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(GOLDEN_BASE, folder, dirs_exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz',."
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    files = folder / "vocab.json", folder / "merges.txt"  # every version takes these
    files[0].write_text(json.dumps({word: i for i, word in enumerate(words)}))
    files[1].write_text("#version: 0.2\n")
    CLIPTokenizer(*map(str, files), model_max_length=77).save_pretrained(folder / "tokenizer")
    CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )).save_pretrained(folder / "text_encoder")
    return folder


def test_cached_prompt_needs_no_text_encoder(full_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(full_base, base)
    (tmp_path / "gone").touch()  # a cache that fails, as Drive does after hours
    caches = [tmp_path / "gone" / "there", None, tmp_path / "cache"]
    first = embed_prompt(str(base), "a face", caches)
    assert first.shape == (1, 77, 32) and not first.requires_grad
    shutil.rmtree(base / "text_encoder")
    assert torch.equal(embed_prompt(str(base), "a face", caches), first)
    with pytest.raises(ValueError, match="text_encoder"):
        embed_prompt(str(base), "another face", caches)
    kept, = (tmp_path / "cache").iterdir()
    assert kept.suffix == ".safetensors"
    kept.write_bytes(kept.read_bytes()[:-9])  # no good any more: embedded anew
    assert torch.equal(embed_prompt(str(full_base), "a face", [None]), first)
    with pytest.raises(ValueError, match="text_encoder"):
        embed_prompt(str(base), "a face", caches)


def test_a_drive_that_hangs_is_passed_over(full_base, tmp_path, monkeypatch):
    monkeypatch.setattr(base_module, "ANSWER_S", 0.05)
    (drive := tmp_path / "drive").mkdir()
    back, written = threading.Event(), tmp_path / "disk"
    with faulty(drive, hang=back) as faults:
        embedding = embed_prompt(str(full_base), "a face", [drive, written])
        assert not is_embedded(str(full_base), "a face", [drive])
        assert faults.hits >= 3 and not back.is_set()
        back.set()
    assert torch.equal(embed_prompt(str(full_base), "a face", [written]), embedding)


def test_a_network_without_all_its_weights_is_refused(full_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(full_base, base)
    path = base / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "fc1.bias" in name)]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"text_encoder of .*expected all its weights, got .*fc1"):
        embed_prompt(str(base), "a face")


def test_loading_shows_no_bar_and_leaves_bars_as_they_were(full_base, capsys):
    for shown in (False, True):
        logging.enable_progress_bar() if shown else logging.disable_progress_bar()
        embed_prompt(str(full_base), "a face")
        assert logging.is_progress_bar_enabled() is shown and not capsys.readouterr().err


def test_too_long_prompt_raises(full_base):
    with pytest.raises(ValueError, match="77 tokens at most, got 102"):
        embed_prompt(str(full_base), "a " * 100)


def test_noise_schedule_is_read_and_a_base_of_another_kind_is_refused(tmp_path):
    assert read_alpha_bar(str(GOLDEN_BASE), 999) ** 0.5 == pytest.approx(0.0682649, abs=1e-6)
    folder = tmp_path / "scheduler"
    shutil.copytree(GOLDEN_BASE / "scheduler", folder)
    settings = json.loads((folder / "scheduler_config.json").read_text())
    settings["prediction_type"] = "v_prediction"
    (folder / "scheduler_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="expected one that predicts epsilon, got 'v_prediction'"):
        read_alpha_bar(str(tmp_path), 999)
