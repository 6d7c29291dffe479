"""The enhancer: pix2pix-turbo reproduced, what each blend does, what is trained, any size."""

import json
import re
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file

from splat_enhancer.config import TINY_BASE, Config, preset
from splat_enhancer.model import added
from splat_enhancer.model import base as base_module
from splat_enhancer.model.base import embed_prompt, fetch, load_network, read_alpha_bar
from splat_enhancer.model.enhancer import SplatEnhancer, amount_changed

GOLDEN = Path(__file__).parent / "fixtures" / "golden"  # pix2pix-turbo's: see README there
EXPECTED = load_file(GOLDEN / "tensors.safetensors")
IMAGES = (EXPECTED["input"] + 1) / 2
BLENDS = get_args(get_type_hints(Config)["blend"])


def config(blend="none", **changes) -> Config:
    return preset("demo").replace(pretrained_model_name_or_path=str(GOLDEN / "base"), blend=blend,
                                  **{"timestep": 199, **changes})


def build(blend="none", *, dtype=torch.float32, seed=0, for_training=True, **changes):
    return SplatEnhancer.from_pretrained(
        config(blend, **changes), device="cpu", dtype=dtype, seed=seed, for_training=for_training,
        prompt_embedding=EXPECTED["prompt_embedding"])


def reference(timestep=199):
    """An enhancer with the golden weights of pix2pix-turbo."""
    model = build(timestep=timestep)
    skip = re.compile(r"vae\.decoder\.skip_conv_(\d)\.base_layer\.weight")
    model.load_trained({
        f"skips.{int(found[1]) - 1}.weight" if (found := skip.fullmatch(name))
        else name.replace("vae_skip", "default"): tensor
        for name, tensor in load_file(GOLDEN / "trainable.safetensors").items()})
    return model


def shake(model, size=0.01):
    """Change all trained tensors a little, each in its own way."""
    with torch.no_grad():
        for seed, parameter in enumerate(model.trainable().values()):
            rng = torch.Generator().manual_seed(seed)
            parameter += size * torch.randn(parameter.shape, generator=rng)
    return model


@pytest.fixture(scope="module")
def model():
    return reference()


@pytest.mark.parametrize("timestep", [999, 199])
def test_model_reproduces_pix2pix_turbo(timestep):
    model = reference(timestep)
    for skip in (1, 0):
        with torch.no_grad():
            restored = model(IMAGES, torch.full((2,), float(skip))) * 2 - 1
        difference = (restored - EXPECTED[f"output_t{timestep}_skip{skip}"]).abs().max()
        assert difference < 1e-4


def test_full_size_model_has_the_published_number_of_trained_parameters():
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                            down_block_types=("DownEncoderBlock2D",) * 4,
                            up_block_types=("UpDecoderBlock2D",) * 4)
        unet = UNet2DConditionModel(cross_attention_dim=1024, use_linear_projection=True,
                                    attention_head_dim=(5, 10, 20, 20))
        model = SplatEnhancer(preset("published"), vae=vae, unet=unet, alpha_bar=0.0046601,
                              prompt_embedding=torch.zeros(1, 77, 1024))
    assert sum(name.startswith("unet") and "lora_A" in name for name in model.trainable()) == 257
    assert {part: trained for part, _, trained in model.parameter_table()} == {
        "VAE encoder": 0, "VAE decoder": 512_668, "UNet": 8_120_416, "skips": 491_520,
        "total": 9_124_604}


@pytest.mark.parametrize(("train_base", "trained"), [
    ("lora", r"(unet|vae\.decoder)\..*lora_|unet\.conv_in\.|skips\.|mask\."),
    ("full", r"unet\.|vae\.decoder\.|vae\.post_quant_conv\.|skips\.|mask\.")])
def test_trained_is_what_train_base_says_and_never_the_encoder(train_base, trained):
    model = build("mask", train_base=train_base)
    assert list(model.trainable()) == sorted(model.trainable())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(re.match(trained, name)), name
    assert all(torch.all(skip.weight == model.config.skip_init) for skip in model.skips)


@pytest.mark.parametrize("train_base", ["lora", "full"])
@pytest.mark.parametrize("blend", BLENDS)
def test_gradient_reaches_every_trained_tensor_with_and_without_checkpointing(blend, train_base):
    model = shake(build(blend, train_base=train_base))
    larger = torch.nn.functional.interpolate(IMAGES[:1], scale_factor=2)  # at 64 px the deepest
    gradients = []  # attention sees one position, and its keys get no gradient by nature
    for on in (False, True) if blend == "none" else (True,):
        model.use_gradient_checkpointing(on)
        model.zero_grad()
        model(larger).square().mean().backward()
        gradients.append(torch.stack([p.grad.norm() for p in model.trainable().values()]))
    assert gradients[0].isfinite().all() and (gradients[0] > 0).all()
    torch.testing.assert_close(gradients[0], gradients[-1])
    assert model.vae.encoder.conv_in.weight.grad is None


def test_skip_mask_acts_only_on_its_sample_and_nothing_is_clamped(model):
    with torch.no_grad():
        both, first = model(IMAGES), model(IMAGES, torch.tensor([1.0, 0.0]))
    assert both.min() < 0 and both.max() > 1
    torch.testing.assert_close(first[0], both[0])
    assert (first[1] - both[1]).abs().max() > 1e-3


def test_mask_blends_input_and_decoded_picture():
    model = build("mask")
    with torch.no_grad():
        repair, plain = model(IMAGES, parts=True), build()(IMAGES)
    assert (repair.logit - added.START).abs().max() < 1e-6  # untrained
    torch.testing.assert_close(repair.mask, added.decide(repair.logit))
    torch.testing.assert_close(repair.decoded, plain)  # all else is as without a mask
    torch.testing.assert_close(repair.restored, IMAGES + repair.mask * (plain - IMAGES))
    assert repair.choice(IMAGES)[1] is repair.decoded and repair.choice(IMAGES)[2] is repair.logit


@pytest.mark.parametrize(("logit", "part"), [(-100.0, "input"), (100.0, "decoded")])
def test_closed_mask_keeps_the_input_and_an_open_one_takes_the_decoder(logit, part):
    model = build("mask")
    torch.nn.init.constant_(model.mask.last.bias, logit)
    with torch.no_grad():
        repair = model(IMAGES, parts=True)
    torch.testing.assert_close(repair.restored, IMAGES if part == "input" else repair.decoded)


def test_mask_sees_the_whole_picture_and_changes_no_decoder():
    net = added.RepairMask()
    torch.nn.init.normal_(net.last.weight, generator=torch.Generator().manual_seed(0))
    degraded, decoded = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    decoded.requires_grad_()
    before = net(degraded, decoded)
    with torch.no_grad():
        decoded[..., :32, :32] += 0.2
    assert ((net(degraded, decoded) - before)[..., 96:, 96:] != 0).any()
    before.sum().backward()
    assert decoded.grad is None


@pytest.mark.parametrize("train_base", ["lora", "full"])
def test_residual_is_the_identity_where_the_unet_changes_nothing(train_base):
    model = build("residual", train_base=train_base, skip_init=0.0)
    model.alpha_bar = 1.0  # no noise: the clean latent is the encoder's own
    with torch.no_grad():
        repair = model(IMAGES, parts=True)
    torch.testing.assert_close(repair.restored, IMAGES, atol=1e-5, rtol=0)
    assert repair.logit is None and repair.choice(IMAGES) is None and not repair.mask.any()


def test_residual_takes_back_the_round_trip_of_the_untrained_base():
    model, plain = (shake(build(blend)) for blend in ("residual", "none"))
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(GOLDEN / "base", subfolder="vae")
    with torch.no_grad():
        latent = vae.encode(2 * IMAGES - 1).latent_dist.mode()
        round_trip = vae.decode(latent).sample / 2 + 0.5
        torch.testing.assert_close(model(IMAGES), IMAGES + plain(IMAGES) - round_trip,
                                   atol=1e-5, rtol=0)


@pytest.mark.parametrize("train_base", ["lora", "full"])
def test_correction_is_exactly_the_identity_before_training(train_base):
    model = build("correction", train_base=train_base)
    assert torch.equal(model(IMAGES), IMAGES)
    assert {n for n in model.trainable() if n.startswith("vae.decoder.conv_out")} == {
        "vae.decoder.conv_out.weight", "vae.decoder.conv_out.bias"}  # no LoRA on it
    model(IMAGES).square().mean().backward()
    assert model.vae.decoder.conv_out.weight.grad.abs().max() > 0


def test_amount_counts_pixels_that_changed_visibly_in_any_channel():
    before = torch.full((1, 3, 1, 4), 0.5)
    change = torch.tensor([0.0, 1.0, 2.0, 9.0]) / 255
    after = before.clone()
    after[:, 1] += change
    amount = amount_changed(after, before).flatten()
    torch.testing.assert_close(amount, torch.tensor([0, 0, 0.5, 1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (20, 100)])
def test_enhance_keeps_any_size_and_is_clamped_and_deterministic(model, size):
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    restored, amount = model.enhance_with_mask(images)
    assert restored.shape == images.shape and restored.dtype == torch.float32
    assert restored.min() >= 0 and restored.max() <= 1 and not restored.requires_grad
    assert torch.equal(restored, model.enhance(images)) and model.training
    assert torch.equal(amount, amount_changed(restored, images))


def test_strength_blends_from_input_to_output(model):
    assert torch.equal(model.enhance(IMAGES, 0.0), IMAGES)
    middle = (IMAGES + model.enhance(IMAGES)) / 2
    torch.testing.assert_close(model.enhance(IMAGES, 0.5), middle)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength: expected 0 to 1"):
            model.enhance(IMAGES, strength)


def test_weights_that_give_no_finite_picture_are_named():
    model = build()
    torch.nn.init.constant_(model.skips[0].weight, torch.nan)
    with pytest.raises(ValueError, match="expected finite values"):
        model.enhance(IMAGES)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES[:, :1], IMAGES[:0], (IMAGES * 255).byte()])
def test_what_is_no_image_is_refused(model, images):
    with pytest.raises(ValueError, match=r"images: expected floats \(B, 3, H, W\)"):
        model.enhance(images)


def test_forward_names_sizes_that_cannot_be_halved(model):
    with pytest.raises(ValueError, match="multiples of 64, got"):
        model(IMAGES[..., :60])


def test_trained_state_round_trip_in_half_precision(model):
    state = model.trained_state()
    other = build(seed=1, dtype=torch.float16)
    other.load_trained(state)
    assert {p.dtype for p in other.parameters()} == {torch.float16}
    for name, tensor in other.trained_state().items():
        assert torch.equal(tensor, state[name].half().float())
    assert (other.enhance(IMAGES) - model.enhance(IMAGES)).abs().max() < 0.05


def test_load_trained_names_what_does_not_fit_and_changes_nothing(model):
    before = model.trained_state()
    broken = {name: tensor + 1 for name, tensor in before.items()}
    broken["skips.9.weight"] = broken.pop("skips.0.weight")
    broken["unet.conv_in.bias"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"missing \['skips.0.*unexpected \['skips.9.*other shape"):
        model.load_trained(broken)
    assert all(torch.equal(before[name], t) for name, t in model.trained_state().items())


def test_merged_lora_restores_as_lora_beside_the_weights(model):
    merged = build(for_training=False)
    merged.load_trained(model.trained_state())
    assert not merged.trainable() and not any("lora" in name for name, _ in merged.named_modules())
    with torch.no_grad():
        torch.testing.assert_close(merged(IMAGES), model(IMAGES), atol=2e-5, rtol=0)
    assert merged.trained_state().keys() == model.trained_state().keys()
    with pytest.raises(ValueError, match="expected the 0 trained tensors"):
        merged.load_trained(model.trained_state())  # would be added twice


def test_initial_lora_follows_its_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, same, other = (build("correction", seed=s).trained_state() for s in (0, 0, 1))
    name = "unet.conv_out.lora_A.default.weight"
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])
    assert torch.equal(state, torch.get_rng_state())


def test_noise_schedule_is_read_and_another_kind_of_base_is_refused(tmp_path):
    from diffusers import DDPMScheduler

    expected = DDPMScheduler.from_pretrained(GOLDEN / "base", subfolder="scheduler")
    for timestep in (1, 249, 999):
        found = read_alpha_bar(str(GOLDEN / "base"), timestep)
        assert found == float(expected.alphas_cumprod[timestep])
    shutil.copytree(GOLDEN / "base" / "scheduler", tmp_path / "scheduler")
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(ValueError, match=r"expected one that predicts epsilon.*v_prediction"):
        read_alpha_bar(str(tmp_path), 999)


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_prompt_is_embedded_once_and_then_read_from_any_cache(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.touch()  # a cache that fails, as Drive does after hours
    caches = [blocked / "folder", None, tmp_path / "cache"]
    first = embed_prompt(TINY_BASE, "an uncommon sentence", caches)
    assert first.ndim == 3 and len(first) == 1 and not first.requires_grad
    monkeypatch.setattr(base_module, "part_folder", lambda *_: pytest.fail("text encoder loaded"))
    assert torch.equal(embed_prompt(TINY_BASE, "an uncommon sentence", caches), first)
    monkeypatch.undo()
    kept, = (tmp_path / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])  # damaged: embedded again
    assert torch.equal(embed_prompt(TINY_BASE, "an uncommon sentence", caches), first)
    with pytest.raises(ValueError, match=r"prompt: expected \d+ tokens at most, got"):
        embed_prompt(TINY_BASE, "a " * 200)


def test_network_without_all_its_weights_is_refused(tmp_path):
    from diffusers import AutoencoderKL

    shutil.copytree(GOLDEN / "base" / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["decoder.conv_in.bias"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"expected all its weights, got none for .*conv_in"):
        load_network(AutoencoderKL, str(tmp_path), "vae")
    with pytest.raises(ValueError, match="expected text_encoder/ in diffusers layout"):
        load_network(AutoencoderKL, str(tmp_path), "text_encoder")


@pytest.mark.parametrize("name", ["results/no/export", "../it", "/no/where", "owner/n@main"])
def test_what_is_neither_a_folder_nor_a_hub_name_is_refused_without_the_network(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(ValueError, match="expected a folder, or a repository on the hub"):
        fetch(name, ["*"])


def test_hub_that_gives_nothing_is_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ConnectionError, match=r"owner/name: .*no route to host; check name and"):
        fetch("owner/name", ["*"])
