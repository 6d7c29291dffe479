"""Exports: two files that load bit-equal or nearly so, that name damage, and that the hub takes."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from splat_enhancer.config import SD_TURBO, TINY_BASE, preset
from splat_enhancer.files import sha256
from splat_enhancer.model import export as export_module
from splat_enhancer.model.enhancer import SplatEnhancer
from splat_enhancer.model.export import (
    CARD,
    FORMAT,
    WEIGHTS,
    add_metrics,
    describe,
    export,
    load,
    push,
    read,
    start_from,
)

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
EXPECTED = safetensors.torch.load_file(GOLDEN / "tensors.safetensors")
IMAGES = (EXPECTED["input"] + 1) / 2
CONFIG = preset("demo").replace(pretrained_model_name_or_path=str(GOLDEN / "base"), timestep=199)


def build(config=CONFIG, dtype=torch.float32):
    """A model whose trained tensors all differ from those of a fresh one."""
    model = SplatEnhancer.from_pretrained(config, device="cpu", dtype=dtype, seed=5,
                                          prompt_embedding=EXPECTED["prompt_embedding"])
    with torch.no_grad():
        for i, parameter in enumerate(model.trainable().values()):
            rng = torch.Generator().manual_seed(i)
            parameter += 0.01 * torch.randn(parameter.shape, generator=rng)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(model, CONFIG, tmp_path_factory.mktemp("export") / "enhancer", step=300,
                  metrics={"heads": {"psnr": 25.93}})


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "enhancer"))


def test_an_export_of_all_weights_may_leave_to_the_base_what_the_base_has(tmp_path):
    config = CONFIG.replace(train_base="full", blend="correction")
    model = build(config)
    changed = {name: tensor for name, tensor in model.trained_state().items()
               if name.startswith("skips")}
    written = export(model, config, tmp_path / "enhancer", trained=changed)
    expected = SplatEnhancer.from_pretrained(config, device="cpu", seed=5,
                                             prompt_embedding=EXPECTED["prompt_embedding"])
    expected.load_trained(expected.trained_state() | changed)
    fresh = SplatEnhancer.from_pretrained(config, device="cpu", seed=5,
                                          prompt_embedding=EXPECTED["prompt_embedding"])
    start_from(fresh, written)
    restored = expected.enhance(IMAGES)
    torch.testing.assert_close(fresh.enhance(IMAGES), restored, atol=1e-4, rtol=0)
    torch.testing.assert_close(load(written).enhance(IMAGES), restored, atol=1e-4, rtol=0)



def rewrite(folder, **changes):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | changes))


def rewrite_model(folder, **changes):
    rewrite(folder, model=json.loads((folder / CARD).read_text())["model"] | changes)


def rewrite_weights(folder, content):
    (folder / WEIGHTS).write_bytes(content)
    rewrite(folder, sha256=sha256(content))


@pytest.mark.parametrize("blend", ["none", "masked_residual", "residual", "correction"])
@pytest.mark.parametrize(("train_base", "dtype", "tolerance"), [
    ("lora", torch.float32, 1e-4), ("full", torch.float16, 0.02)])
def test_loaded_model_restores_as_the_exported_one(tmp_path, blend, train_base, dtype, tolerance):
    config = CONFIG.replace(train_base=train_base, blend=blend)
    model = build(config)
    loaded = load(export(model, config, tmp_path / "enhancer"))
    assert {t.dtype for t in read(tmp_path / "enhancer")[1].values()} == {dtype}
    assert not loaded.training and not loaded.trainable() and loaded.config.blend == blend
    difference = (loaded.enhance(IMAGES) - model.enhance(IMAGES)).abs()
    assert difference.max() < tolerance
    assert loaded.trained_state().keys() == model.trained_state().keys()


def test_loading_imports_neither_text_encoder_nor_lora(exported, monkeypatch):
    monkeypatch.setattr("peft.inject_adapter_in_model", lambda *_: pytest.fail("LoRA was added"))
    assert not (GOLDEN / "base" / "text_encoder").exists()
    assert load(exported).enhance(IMAGES).shape == IMAGES.shape


def test_masters_of_a_run_are_exported_where_its_model_is_rounded(tmp_path):
    half, weights = build(dtype=torch.float16), build().trained_state()
    written = read(export(half, CONFIG, tmp_path / "enhancer", trained=weights))[1]
    assert all(torch.equal(written[name], value) for name, value in weights.items())
    assert any(not torch.equal(written[n], value) for n, value in half.trained_state().items())


def test_training_goes_on_from_an_export_bit_equal(model, exported):
    card, _ = read(exported)
    other = SplatEnhancer.from_pretrained(preset("demo").replace(**card["model"]), device="cpu",
                                          prompt_embedding=EXPECTED["prompt_embedding"])
    start_from(other, exported)
    assert all(torch.equal(t, model.trained_state()[n]) for n, t in other.trained_state().items())
    assert torch.equal(other(IMAGES), model(IMAGES))
    with pytest.raises(ValueError, match="blend and train_base that they were trained with"):
        start_from(build(CONFIG.replace(blend="none")), exported)


def test_loaded_export_can_be_exported_again(exported, tmp_path):
    again = export(load(exported), CONFIG, tmp_path / "again", step=300,
                   metrics={"heads": {"psnr": 25.93}})
    for name in (WEIGHTS, CARD):
        assert (again / name).read_bytes() == (exported / name).read_bytes()


def test_two_files_hold_trained_tensors_and_a_readable_card_and_nothing_else(model, exported):
    card, tensors = read(exported)
    assert sorted(p.name for p in exported.iterdir()) == [CARD, WEIGHTS]
    assert tensors.keys() == model.trainable().keys() | {"prompt_embedding"}
    assert card["model"] == {name: getattr(CONFIG, name) for name in card["model"]}
    training = {name: card["training"][name] for name in ("resolution", "steps", "source")}
    assert training == {"resolution": 128, "steps": 300, "source": "heads"}
    assert card["metrics"] == {"heads": {"psnr": 25.93}} and card["versions"]["torch"]
    add_metrics(exported, card["metrics"])
    assert read(exported)[0] == card


def test_another_base_under_the_same_name_is_refused(exported, monkeypatch):
    build_model = SplatEnhancer.from_pretrained

    def changed(*arguments, **options):
        model = build_model(*arguments, **options)
        model.base_fingerprint["unet"] *= 1.5
        return model
    load(exported, dtype=torch.bfloat16)  # rounding alone is no other base
    monkeypatch.setattr(SplatEnhancer, "from_pretrained", changed)
    with pytest.raises(ValueError, match=r"base .*expected weights of mean magnitude"):
        load(exported)


@pytest.mark.parametrize(("device", "dtype"), [
    ("cpu", torch.float32), ("cuda", torch.float16), (torch.device("cuda:1"), torch.float16)])
def test_precision_follows_the_device_unless_named(exported, device, dtype, monkeypatch):
    asked = []

    def stop(*_, **options):
        asked.append(options["dtype"])
        raise InterruptedError
    monkeypatch.setattr(SplatEnhancer, "from_pretrained", stop)
    for options in ({}, {"dtype": torch.bfloat16}):
        with pytest.raises(InterruptedError):
            load(exported, device=device, **options)
    assert asked == [dtype, torch.bfloat16]


def test_interrupted_export_is_never_loadable(model, folder, tmp_path, monkeypatch):
    write = export_module.atomic_write

    def stop_at_the_card(path, content):
        if path.name == CARD:
            raise OSError("No space left on device")
        return write(path, content)
    monkeypatch.setattr(export_module, "atomic_write", stop_at_the_card)
    rewrite_weights(folder, b"an older export")
    for place in (folder, tmp_path / "new"):  # over an older export, and in an empty folder
        with pytest.raises(OSError, match="No space left"):
            export(model, CONFIG, place)
        with pytest.raises(ValueError, match="expected an export of format"):
            load(place)


@pytest.mark.parametrize(("base", "source", "words"), [
    (TINY_BASE, "heads", ["without people"]), (SD_TURBO, "heads", ["Stability AI Community"]),
    (SD_TURBO, "celeba-hq", ["Stability AI Community", "non-commercial"]),
    ("someone/base", "/home/me/faces", ["licence of the base", "photographs"])])
def test_card_names_the_licences_that_apply_and_no_private_folder(base, source, words):
    card = describe(CONFIG.replace(pretrained_model_name_or_path=base, source=source), 0)
    assert len(card["licence"]) == len(words)
    assert all(word in note for word, note in zip(words, card["licence"], strict=True))
    assert "/home/me" not in json.dumps(card)


@pytest.mark.parametrize("metrics", [{"psnr": float("nan")}, {"psnr": torch.ones(1)}])
def test_metrics_that_json_cannot_hold_are_refused_before_anything_is_written(
        model, metrics, tmp_path):
    with pytest.raises((ValueError, TypeError), match="JSON"):
        export(model, CONFIG, tmp_path / "new", metrics=metrics)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("damage", "words"), [
    (lambda f: (f / WEIGHTS).unlink(), "FileNotFoundError"),
    (lambda f: (f / CARD).write_bytes(b"\xff{"), "UnicodeDecodeError"),
    (lambda f: rewrite(f, format="splat-enhancer-export-1"), f"of format {FORMAT}"),
    (lambda f: rewrite(f, sha256="0" * 64), "in place of 0000"),
    (lambda f: rewrite_model(f, lora_rank_unet="8"), "lora_rank_unet: expected int"),
    (lambda f: rewrite_model(f, pretrained_model_name_or_path="../no/base"), "../no/base"),
    (lambda f: rewrite_model(f, pretrained_model_name_or_path=str(f)), "in diffusers layout"),
    (lambda f: rewrite_model(f, pretrained_model_name_or_path=TINY_BASE), "same base"),
    (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "in place of")])
def test_damaged_export_is_refused_by_name(folder, damage, words):
    damage(folder)
    with pytest.raises(ValueError, match="expected") as caught:
        load(folder)
    assert words in str(caught.value)


def test_without_a_shipped_enhancer_loading_none_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(export_module, "SHIPPED", tmp_path / "enhancer")
    for name in (None, "shipped"):
        with pytest.raises(ValueError, match=r"enhancer: expected an export of format"):
            load(name)


class Hub:
    """Stands in for HfApi: records what it is asked."""

    def __init__(self, private=True):
        self.calls, self.private = [], private

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def repo_info(self, repo_id):
        return self

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options["repo_id"], options["allow_patterns"]))


def test_push_uploads_two_files_into_a_private_repository(folder, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    with pytest.raises(ValueError, match="base: expected a hub name"):
        push(folder, "owner/enhancer")
    assert not hub.calls
    rewrite_model(folder, pretrained_model_name_or_path=SD_TURBO)
    assert push(str(folder), "owner/enhancer") == "https://huggingface.co/owner/enhancer"
    assert hub.calls == [("create_repo", "owner/enhancer", {"private": True, "exist_ok": True}),
                         ("upload_folder", "owner/enhancer", [WEIGHTS, CARD])]


def test_push_to_a_public_repository_must_be_asked_for(folder, monkeypatch):
    rewrite_model(folder, pretrained_model_name_or_path=TINY_BASE)
    hub = Hub(private=False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    with pytest.raises(ValueError, match="expected a private repository"):
        push(folder, "owner/enhancer")
    assert [call[0] for call in hub.calls] == ["create_repo"]
    push(folder, "owner/enhancer", private=False)
    assert hub.calls[-1][0] == "upload_folder"
