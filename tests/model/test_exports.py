"""The claims of exports.py, hub.py and pix2pix_turbo.py in helpers/model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from helpers.config import SD_TURBO, TINY_BASE, ModelConfig, preset
from helpers.model import exports, hub
from helpers.model.enhancer import SplatEnhancer
from helpers.model.exports import CARD, WEIGHTS, export, load, read
from helpers.model.hub import push
from helpers.model.pix2pix_turbo import from_pix2pix_turbo
from helpers.storage import HUB_ERRORS

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
EXPECTED = load_file(GOLDEN / "tensors.safetensors")
IMAGES = (EXPECTED["input"] + 1) / 2
TRAINED = load_file(GOLDEN / "trainable.safetensors")
CONFIG = preset("demo").with_({"model.base": str(GOLDEN / "base"), "model.timestep": 199,
                               "model.mask": False})  # as the reference
REFUSAL = r"(?s).+: expected .+, got .+; .+"


def golden_model(dtype: torch.dtype = torch.float32) -> SplatEnhancer:
    """A model whose trained tensors all differ from those of a fresh one."""
    model = SplatEnhancer.from_pretrained(CONFIG.model, device="cpu", dtype=dtype, seed=5,
                                          prompt_embedding=EXPECTED["prompt_embedding"])
    with torch.no_grad():
        for i, parameter in enumerate(model.trainable().values()):
            parameter += 0.01 * torch.randn(parameter.shape,
                                            generator=torch.Generator().manual_seed(i))
    return model


@pytest.fixture(scope="module")
def model():
    return golden_model()


def test_an_enhancer_with_a_mask_is_exported_with_it_and_with_no_other_config(tmp_path):
    config = CONFIG.with_({"model.mask": True})
    model = SplatEnhancer.from_pretrained(config.model, device="cpu", seed=5,
                                          prompt_embedding=EXPECTED["prompt_embedding"]).eval()
    torch.nn.init.normal_(model.mask.last.weight, generator=torch.Generator().manual_seed(0))
    loaded = load(export(model, config, tmp_path))
    for ours, theirs in zip(model.enhance_and_show(IMAGES), loaded.enhance_and_show(IMAGES),
                            strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"vae_rank, mask .*True.*as in the model"):
        export(model, CONFIG, tmp_path)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return export(model, CONFIG, tmp_path_factory.mktemp("export") / "enhancer", step=300,
                  metrics={"avatars": {"psnr": 25.93}})


@pytest.fixture
def folder(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "enhancer"))


def rewrite(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | changes))


def rewrite_weights(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    rewrite(folder, sha256=hashlib.sha256(content).hexdigest())


def test_loaded_model_is_bit_equal_to_the_exported_one(model, exported):
    loaded = load(str(exported))
    assert not loaded.training and loaded.prompt_embedding.dtype == torch.float32
    assert torch.equal(loaded.enhance(IMAGES), model.enhance(IMAGES))
    assert all(torch.equal(t, loaded.trained_state()[n]) for n, t in model.trained_state().items())


def test_a_half_precision_model_is_exported_in_fp32_and_comes_back_bit_equal(tmp_path):
    half = golden_model(torch.float16)
    folder = export(half, CONFIG, tmp_path)
    assert {t.dtype for t in read(folder)[1].values()} == {torch.float32}
    loaded = load(folder, dtype=torch.float16)
    assert torch.equal(loaded.enhance(IMAGES[:1]), half.enhance(IMAGES[:1]))


def test_the_masters_of_a_run_are_exported_where_its_model_is_rounded(tmp_path):
    half, masters = golden_model(torch.float16), golden_model().trained_state()
    written = read(export(half, CONFIG, tmp_path, trained=masters))[1]
    assert all(torch.equal(written[name], value) for name, value in masters.items())
    assert any(not torch.equal(written[n], value) for n, value in half.trained_state().items())
    with pytest.raises(ValueError, match="1 missing"):
        export(half, CONFIG, tmp_path, trained=dict(list(masters.items())[1:]))


def test_another_base_under_the_same_name_is_refused(exported, monkeypatch):
    build = SplatEnhancer.from_pretrained

    def changed(*arguments, **options):
        model = build(*arguments, **options)
        with torch.no_grad():
            model.unet.mid_block.resnets[0].norm1.weight.mul_(1.5)
        return model
    load(exported, dtype=torch.bfloat16)  # rounding alone is no other base
    monkeypatch.setattr(SplatEnhancer, "from_pretrained", changed)
    with pytest.raises(ValueError, match=r"base .*expected weights of mean magnitude"):
        load(exported)


@pytest.mark.parametrize(("device", "dtype"), [
    ("cpu", torch.float32), ("cuda", torch.float16), (torch.device("cuda:1"), torch.float16)])
def test_precision_follows_the_device_unless_named(exported, model, device, dtype, monkeypatch):
    asked = []
    monkeypatch.setattr(SplatEnhancer, "from_pretrained",
                        lambda *_, **options: asked.append(options["dtype"]) or model)
    load(exported, device=device)
    load(exported, device=device, dtype=torch.bfloat16)
    assert asked == [dtype, torch.bfloat16]


def test_loading_needs_no_text_encoder_and_no_fixed_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(GOLDEN)
    config = CONFIG.with_({"model.base": "base"})
    assert not (GOLDEN / "base" / "text_encoder").exists()
    export(golden_model(), config, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load(".").enhance(IMAGES).shape == IMAGES.shape


def test_two_files_hold_trained_tensors_and_a_readable_card_and_nothing_else(model, exported):
    card, tensors = read(exported)
    assert sorted(p.name for p in exported.iterdir()) == [CARD, WEIGHTS]
    assert tensors.keys() == model.trainable().keys() | {"prompt_embedding"}
    assert tensors["prompt_embedding"].shape == (1, 77, 32)
    assert card["model"] == {name: getattr(CONFIG.model, name) for name in (
        "base", "timestep", "unet_rank", "vae_rank", "mask", "prompt")}
    assert card["training"] == {"size_px": 128, "steps": 300, "source": "avatars",
                                "degrade": dataclasses.asdict(CONFIG.degrade)}
    assert card["metrics"] == {"avatars": {"psnr": 25.93}} and card["versions"]["torch"]
    assert len((exported / CARD).read_text().splitlines()) > 30


def test_exporting_twice_writes_the_same_bytes_and_leaves_no_partial_file(model, exported, folder):
    rewrite_weights(folder, b"an older export")
    export(model, CONFIG, folder, step=300, metrics={"avatars": {"psnr": 25.93}})
    for name in (WEIGHTS, CARD):
        assert (folder / name).read_bytes() == (exported / name).read_bytes()
    assert len(list(folder.iterdir())) == 2


def test_an_interrupted_export_is_never_loadable(model, folder, tmp_path, monkeypatch):
    replace, calls = Path.replace, []

    def stop_at_the_card(self, target):
        calls.append(Path(target).name)
        if calls[-1] == CARD:
            raise OSError("No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_the_card)
    rewrite_weights(folder, b"an older export")
    for place in (folder, tmp_path / "new"):  # over an older export, and in an empty folder
        with pytest.raises(OSError, match="No space left"):
            export(model, CONFIG, place)
        assert not list(place.glob("*.tmp"))
        with pytest.raises(ValueError, match=REFUSAL):
            load(place)
    assert calls == [WEIGHTS, CARD] * 2


@pytest.mark.parametrize(("base", "source", "words"), [
    (TINY_BASE, "avatars", ["no photograph"]), (SD_TURBO, "avatars", ["Stability AI Community"]),
    (SD_TURBO, "celeba-hq", ["Stability AI Community", "non-commercial"]),
    ("someone/base", "/home/me/faces", ["licence of the base", "photographs"])])
def test_card_names_the_licences_that_apply_and_no_private_folder(base, source, words):
    config = CONFIG.with_({"model.base": base, "data.source": source})
    card = exports._describe(config, 0, None)
    assert len(card["licence"]) == len(words)
    assert all(word in note for word, note in zip(words, card["licence"], strict=True))
    assert "/home/me" not in json.dumps(card)


@pytest.mark.parametrize("metrics", [{"psnr": float("nan")}, {"psnr": torch.ones(1)}])
def test_metrics_that_json_cannot_hold_are_refused_before_anything_is_written(
        model, metrics, tmp_path):
    with pytest.raises(ValueError, match="metrics: expected finite"):
        export(model, CONFIG, tmp_path / "new", metrics=metrics)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", [{"model.timestep": 999}, {"model.unet_rank": 4},
                                    {"model.vae_rank": 8}])
def test_a_config_of_another_model_is_not_exported(model, change, tmp_path):
    with pytest.raises(ValueError, match=r"config\.model: expected prompt, base, timestep"):
        export(model, CONFIG.with_(change), tmp_path)


def _tensors(folder, **changes):
    tensors = load_file(folder / WEIGHTS) | changes
    rewrite_weights(folder, safetensors.torch.save({n: t for n, t in tensors.items()
                                                    if t is not None}))


def _settings(folder, **changes):
    rewrite(folder, model=json.loads((folder / CARD).read_text())["model"] | changes)


@pytest.mark.parametrize(("damage", "words"), [
    (lambda f: (f / WEIGHTS).unlink(), "readable safetensors"),
    (lambda f: (f / CARD).write_bytes(b"\xff{"), "readable card"),
    (lambda f: rewrite(f, format="splat-enhancer-1"), "format splat-enhancer-export-1"),
    (lambda f: rewrite(f, file=f"/elsewhere/{WEIGHTS}"), "file splat_enhancer.safetensors"),
    (lambda f: rewrite(f, sha256=None), "sha256"),
    (lambda f: rewrite(f, sha256="0" * 64), "in place of 0000"),
    (lambda f: rewrite(f, model=None), "model settings"),
    (lambda f: rewrite(f, model={"base": TINY_BASE}), "KeyError"),
    (lambda f: _settings(f, unet_rank="8"), "whole number"),
    (lambda f: _settings(f, no_field=1), "no_field"),
    (lambda f: _settings(f, unet_rank=4), "394 trained tensors of this model"),
    (lambda f: _settings(f, base="../not/a/base"), "got '../not/a/base'"),
    (lambda f: _settings(f, base=str(f)), "base: expected vae/ in diffusers layout"),
    (lambda f: rewrite_weights(f, (f / WEIGHTS).read_bytes()[:-9]), "readable safetensors"),
    (lambda f: _tensors(f, prompt_embedding=None), "prompt_embedding"),
    (lambda f: _tensors(f, prompt_embedding=torch.zeros(1, 77, 16)), "prompt_embedding")])
def test_a_damaged_export_is_refused_by_name(folder, damage, words):
    damage(folder)
    with pytest.raises((ValueError, RuntimeError), match=REFUSAL) as caught:
        load(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["results/no/export", "../outside/it", "owner/..", "/no/where",
                                  Path("owner/name"), "owner/name@main", ""])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused_without_the_network(
        name, monkeypatch, tmp_path):
    monkeypatch.setattr("helpers.storage.snapshots.snapshot_download",
                        lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=REFUSAL):
        load(name)


def _raise(error):
    def fail(*_, **__):
        raise error
    return fail


class Hub:
    """Stands in for HfApi: records what it is asked, and what the uploaded folder holds."""

    def __init__(self, public: bool = False) -> None:
        self.calls, self.files, self.private = [], {}, not public

    def create_repo(self, repo_id: str, **options: object) -> str:
        self.calls.append(("create_repo", repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def repo_info(self, repo_id: str) -> Hub:
        return self

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.calls.append(("upload_folder", repo_id))
        self.files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}


@pytest.mark.parametrize("base", [TINY_BASE, SD_TURBO])
def test_push_uploads_two_files_and_a_readme_into_a_private_repository(folder, base, monkeypatch):
    _settings(folder, base=base)
    (folder / "README.md").write_text("mine")
    api = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert push(str(folder), "owner/enhancer") == "https://huggingface.co/owner/enhancer"
    assert api.calls == [("create_repo", "owner/enhancer", {"private": True, "exist_ok": True}),
                         ("upload_folder", "owner/enhancer")]
    assert api.files.keys() == {WEIGHTS, CARD, "README.md"}
    assert all(api.files[n] == (folder / n).read_bytes() for n in (WEIGHTS, CARD))
    header = api.files["README.md"].decode().split("---\n")[1]
    assert "license: other\n" in header and "not-for-all-audiences" not in header
    assert (f"base_model: {SD_TURBO}\n" in header) == (base == SD_TURBO)
    assert (folder / "README.md").read_text() == "mine"


def test_push_to_a_public_repository_must_be_asked_for(folder, monkeypatch):
    _settings(folder, base=TINY_BASE)
    api = Hub(public=True)
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    with pytest.raises(ValueError, match="private: expected a private repository"):
        push(folder, "owner/enhancer")
    assert not api.files
    push(folder, "owner/enhancer", private=False)
    assert api.files


def test_push_refuses_before_it_touches_the_hub(folder, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: pytest.fail("touched"))
    with pytest.raises(ValueError, match="base: expected a hub name"):
        push(folder, "owner/enhancer")
    _settings(folder, base=TINY_BASE)
    with pytest.raises(ValueError, match="repo_id: expected owner/name"):
        push(folder, "enhancer")
    rewrite(folder, training={})
    with pytest.raises(ValueError, match="expected training and licence"):
        push(folder, "owner/enhancer")
    (folder / WEIGHTS).write_bytes(b"other")
    with pytest.raises(ValueError, match="sha256"):
        push(folder, "owner/enhancer")


@pytest.mark.parametrize("kind", HUB_ERRORS)
def test_push_says_how_to_log_in(folder, kind, monkeypatch):
    _settings(folder, base=TINY_BASE)
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "create_repo", _raise(kind("no net")))
    with pytest.raises(ValueError, match="hf auth login"):
        push(folder, "owner/enhancer")


def reference_checkpoint() -> dict:
    """What pix2pix-turbo's `save_model` writes: LoRA on encoder and skips included."""
    unet = {n.removeprefix("unet."): t for n, t in TRAINED.items() if n.startswith("unet.")}
    vae = {n.removeprefix("vae."): t for n, t in TRAINED.items() if n.startswith("vae.")}
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2, 3, 4):
        stem = f"decoder.skip_conv_{number}"
        weight = vae[f"{stem}.base_layer.weight"]
        out, into = weight.shape[:2]
        down = torch.randn(4, into, 1, 1, generator=generator)
        up = torch.randn(out, 4, 1, 1, generator=generator)
        vae[f"{stem}.lora_A.vae_skip.weight"], vae[f"{stem}.lora_B.vae_skip.weight"] = down, up
        product = torch.einsum("orhw,rihw->oihw", up, down)  # alpha 8 over rank 4: twice of it
        vae[f"{stem}.base_layer.weight"] = weight - 2 * product
    vae["encoder.conv_in.lora_A.vae_skip.weight"] = torch.randn(4, 3, 3, 3, generator=generator)
    vae["encoder.conv_in.lora_B.vae_skip.weight"] = torch.zeros(16, 4, 1, 1)
    return {"unet_lora_target_modules": ["to_k", "conv"], "vae_lora_target_modules": ["conv_in"],
            "rank_unet": 8, "rank_vae": 4, "state_dict_unet": unet, "state_dict_vae": vae}


def load_reference(content: object, folder: Path, timestep: int = 999):
    torch.save(content, folder / "model_501.pkl")
    config = ModelConfig(base=str(GOLDEN / "base"), timestep=timestep, unet_rank=2, vae_rank=2)
    return from_pix2pix_turbo(folder / "model_501.pkl", config,
                              prompt_embedding=EXPECTED["prompt_embedding"])


@pytest.mark.parametrize("timestep", [999, 199])
def test_a_checkpoint_of_pix2pix_turbo_reproduces_its_outputs(timestep, tmp_path):
    model, unused = load_reference(reference_checkpoint(), tmp_path, timestep)
    assert unused == [f"vae.encoder.conv_in.lora_{ab}.vae_skip.weight" for ab in "AB"]
    for skip in (1, 0):
        with torch.no_grad():
            restored = model(IMAGES, torch.full((2,), float(skip))) * 2 - 1
        difference = (restored - EXPECTED[f"output_t{timestep}_skip{skip}"]).abs().max()
        assert difference < 1e-4


def test_skips_without_lora_are_taken_as_they_are_and_the_model_can_be_exported(tmp_path):
    content = reference_checkpoint()
    content["state_dict_vae"] = {n.removeprefix("vae.").replace("base_layer.", ""): t.half()
                                 for n, t in TRAINED.items() if n.startswith("vae.")}
    model, unused = load_reference(content, tmp_path, 199)
    assert unused == []
    assert torch.equal(model.skips[3].weight,
                       TRAINED["vae.decoder.skip_conv_4.base_layer.weight"].half().float())
    loaded = load(export(model, CONFIG, tmp_path / "enhancer"))
    assert torch.equal(loaded.enhance(IMAGES), model.enhance(IMAGES))


class Malicious:
    """Would make a folder if it were ever unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_and_never_executed(tmp_path):
    content = reference_checkpoint() | {"rank_vae": Malicious(tmp_path / "executed")}
    with pytest.raises(ValueError, match=REFUSAL) as caught:
        load_reference(content, tmp_path)
    assert "UnpicklingError" in str(caught.value) and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 cut", b"\x80\x02."])
def test_a_file_that_is_no_pickle_is_refused(content, tmp_path):
    (tmp_path / "model.pkl").write_bytes(content)
    for path in (tmp_path / "model.pkl", tmp_path / "missing.pkl", tmp_path):
        with pytest.raises(ValueError, match="expected a checkpoint of pix2pix-turbo"):
            from_pix2pix_turbo(path, CONFIG.model)


def _changed(part: str, name: str, tensor: object, drop: str = "") -> dict:
    content = reference_checkpoint()
    content[f"state_dict_{part}"][name] = tensor
    content[f"state_dict_{part}"].pop(drop, None)
    return content


LORA_B = "conv_out.lora_B.default.weight"
SKIP = "decoder.skip_conv_1."


@pytest.mark.parametrize(("content", "words"), [
    ([1], "list without rank_unet"),
    ({"rank_unet": 8}, "dict without rank_vae, state_dict_unet, state_dict_vae"),
    (reference_checkpoint() | {"rank_unet": 0}, "LoRA ranks"),
    (reference_checkpoint() | {"rank_unet": 10**9}, "LoRA ranks"),
    (reference_checkpoint() | {"rank_vae": "4"}, "LoRA ranks"),
    (reference_checkpoint() | {"rank_unet": 4}, "other shape"),
    (reference_checkpoint() | {"rank_vae": 2}, "of rank 2"),
    (reference_checkpoint() | {"state_dict_vae": {}}, "missing"),
    (_changed("unet", LORA_B, torch.full((4, 8, 1, 1), torch.nan)), "not finite"),
    (_changed("unet", "conv_in.conv_in_curr.weight", torch.ones(1), "conv_in.weight"),
     "unexpected ['unet.conv_in.conv_in_curr.weight'"),
    (_changed("vae", "encoder.conv_in.weight", torch.ones(1)), "unexpected"),
    (_changed("vae", "decoder.skip_conv_9.weight", torch.ones(1)), "unexpected"),
    (_changed("vae", SKIP + "weight", torch.ones(32, 32, 1, 1)), "got 'two'"),
    (_changed("vae", SKIP + "base_layer.weight", torch.ones(())), "of rank 4"),
    (_changed("vae", SKIP + "base_layer.weight", torch.ones(32, 32, 3, 3)), "of rank 4"),
    (_changed("vae", "x", torch.ones(1), SKIP + "lora_A.vae_skip.weight"), "of rank 4")])
def test_a_checkpoint_that_does_not_fit_is_refused(content, words, tmp_path):
    with pytest.raises(ValueError, match=REFUSAL) as caught:
        load_reference(content, tmp_path)
    assert re.search(re.escape(words), str(caught.value))
