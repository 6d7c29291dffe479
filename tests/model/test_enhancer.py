"""The claims of helpers/model/enhancer.py and helpers/model/adapters.py."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from helpers.config import ModelConfig
from helpers.model import mask
from helpers.model.enhancer import SplatEnhancer, to_clean_latent
from helpers.model.mask import RepairMask
from tests.reference_call import TIMESTEP, ReferenceCall

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"  # pix2pix-turbo's: see README there
EXPECTED = load_file(GOLDEN / "tensors.safetensors")
IMAGES = (EXPECTED["input"] + 1) / 2
SCHEDULE = json.loads((GOLDEN / "base/scheduler/scheduler_config.json").read_text())


def _build(timestep=199, golden=True, mask=False, **options):
    config = ModelConfig(base=str(GOLDEN / "base"), timestep=timestep, mask=mask)
    model = SplatEnhancer.from_pretrained(
        config, device="cpu", prompt_embedding=EXPECTED["prompt_embedding"], **options)
    if golden:
        model.load_trained({_own_name(name): tensor for name, tensor
                            in load_file(GOLDEN / "trainable.safetensors").items()})
    return model


def _own_name(reference_name):
    skip = re.fullmatch(r"vae\.decoder\.skip_conv_(\d)\.base_layer\.weight", reference_name)
    return f"skips.{int(skip[1]) - 1}.weight" if skip else reference_name.replace(
        "vae_skip", "default")


@pytest.fixture(scope="module")
def model():
    return _build()


@pytest.mark.parametrize("timestep", [999, 199])
def test_model_reproduces_pix2pix_turbo(timestep):
    model = _build(timestep)
    for skip in (1, 0):
        with torch.no_grad():
            restored = model(IMAGES, torch.full((2,), float(skip))) * 2 - 1
        difference = (restored - EXPECTED[f"output_t{timestep}_skip{skip}"]).abs().max()
        assert difference < 1e-4


def test_what_the_bench_calls_the_reference_reproduces_it_too():
    ours = _build(TIMESTEP)
    vae = AutoencoderKL.from_pretrained(GOLDEN / "base", subfolder="vae")
    theirs = ReferenceCall(ours, vae, lambda tokens: EXPECTED["prompt_embedding"].expand(2, -1, -1))
    expected = EXPECTED["output_t999_skip1"].clamp(-1, 1)
    difference = theirs(EXPECTED["input"], torch.zeros(2, 77)) - expected
    assert difference.abs().max() < 1e-4
    lora = [name for name, _ in theirs.named_parameters() if ".lora_A." in name]
    assert any("encoder" in name for name in lora) and any("skips" in name for name in lora)


def test_full_size_model_has_the_published_number_of_trained_parameters():
    sd_turbo = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True}
    with torch.device("meta"):
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                            down_block_types=("DownEncoderBlock2D",) * 4,
                            up_block_types=("UpDecoderBlock2D",) * 4)
        model = SplatEnhancer(ModelConfig(), vae=vae, unet=UNet2DConditionModel(**sd_turbo),
                              prompt_embedding=torch.zeros(1, 77, 1024), alpha_bar=0.0046601)
    assert sum(name.startswith("unet") and "lora_A" in name for name in model.trainable()) == 257
    trained = {part: trained for part, _, trained in model.parameter_table()}
    assert trained == {"VAE encoder": 0, "VAE decoder": 512_668, "UNet": 8_120_416,
                       "skips": 491_520, "total": 9_124_604}
    assert "9,124,604" in model.describe()


def test_only_lora_conv_in_and_skips_are_trained():
    model = _build(golden=False)
    assert list(model.trainable()) == sorted(model.trainable())
    for name, parameter in model.named_parameters():
        intended = re.match(r"(unet|vae\.decoder)\..*lora_|unet\.conv_in\.|skips\.", name)
        assert parameter.requires_grad == bool(intended), name
    assert all(torch.all(skip.weight == 1e-5) for skip in model.skips)


def test_gradient_reaches_every_trained_tensor_with_and_without_lean_memory(model):
    larger = torch.nn.functional.interpolate(IMAGES, scale_factor=2)  # at 64 px the deepest
    gradients = []  # attention sees one position, and its keys get no gradient by nature
    for lean in (False, True):
        model.use_lean_memory(lean)
        model.zero_grad()
        model(larger).square().mean().backward()
        gradients.append(torch.stack([p.grad.norm() for p in model.trainable().values()]))
    model.use_lean_memory(False)
    assert gradients[0].isfinite().all() and (gradients[0] > 0).all()
    torch.testing.assert_close(gradients[0], gradients[1])
    assert model.vae.encoder.conv_in.weight.grad is None


def test_forward_is_unclamped_and_skip_mask_acts_only_on_its_sample(model):
    with torch.no_grad():
        both, first = model(IMAGES), model(IMAGES, torch.tensor([1.0, 0.0]))
    assert both.min() < 0 and both.max() > 1
    torch.testing.assert_close(first[0], both[0])
    assert (first[1] - both[1]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (20, 100)])
def test_enhance_keeps_any_size_and_is_clamped_and_deterministic(model, size):
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    restored = model.enhance(images)
    assert restored.shape == images.shape and restored.dtype == torch.float32
    assert restored.min() >= 0 and restored.max() <= 1 and not restored.requires_grad
    assert torch.equal(restored, model.enhance(images)) and model.training


def test_strength_blends_from_input_to_output(model):
    assert torch.equal(model.enhance(IMAGES, 0.0), IMAGES)
    middle = (IMAGES + model.enhance(IMAGES)) / 2
    torch.testing.assert_close(model.enhance(IMAGES, 0.5), middle)


def test_torch_compile_is_one_graph_for_all_calls_of_a_size():
    model = _build().eval()
    expected = model.enhance(IMAGES)
    counters = torch._dynamo.utils.counters
    counters.clear()
    model.compile(backend="eager")  # traces as the default does, and needs no C++ compiler
    for _ in range(2):
        torch.testing.assert_close(model.enhance(IMAGES), expected)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    torch._dynamo.reset()


def test_merged_equals_unmerged_and_leaves_the_weights_bit_equal(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        unmerged = model(IMAGES)
        with model.merged():
            weight = model.vae.decoder.conv_in.get_base_layer().weight
            assert not torch.equal(weight, before["vae.decoder.conv_in.base_layer.weight"])
            assert (model(IMAGES) - unmerged).abs().max() < 1e-5
        assert torch.equal(model(IMAGES), unmerged)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize(("size", "merges"), [((1, 64, 64), 0), ((8, 512, 512), 0),
                                              ((1, 800, 512), 0), ((1, 1024, 1024), 1)])
def test_lora_is_merged_only_for_a_picture_in_many_tiles(model, monkeypatch, size, merges):
    calls, (count, *sides) = [], size
    monkeypatch.setattr(type(model), "merged", lambda _: nullcontext(calls.append(1)))
    monkeypatch.setattr(type(model), "forward", lambda _, images: images)
    model.enhance(torch.zeros(count, 3, *sides))
    assert len(calls) == merges


@pytest.mark.parametrize(("images", "options"), [
    (IMAGES[0], {}), (IMAGES[:, :1], {}), (IMAGES[..., :60], {}), (IMAGES[:0], {}),
    ((IMAGES * 255).byte(), {}), (IMAGES, {"skip_mask": torch.ones(3)}),
])
def test_bad_input_raises(model, images, options):
    with pytest.raises(ValueError, match=r"expected .*, got .*; "):
        model(images, **options)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_bad_strength_raises(model, strength):
    with pytest.raises(ValueError, match="from 0 to 1"):
        model.enhance(IMAGES, strength)


def test_trained_state_round_trip_in_half_precision(model):
    state = model.trained_state()
    other = _build(golden=False, seed=1, dtype=torch.float16)
    other.load_trained(state)
    assert {p.dtype for p in other.parameters()} == {torch.float16}
    assert {t.dtype for t in other.trained_state().values()} == {torch.float32}
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


def test_lora_init_is_seeded_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, same, other = (_build(golden=False, seed=s).trained_state() for s in (0, 0, 1))
    name = "unet.conv_out.lora_A.default.weight"
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])
    assert torch.equal(state, torch.get_rng_state())


def test_closed_form_equals_the_scheduler_step():
    noisy, noise = EXPECTED["latent"], EXPECTED["eps_t999"]
    scheduler = DDPMScheduler.from_config(SCHEDULE)
    scheduler.set_timesteps(1)
    expected = scheduler.step(noise, 999, noisy).pred_original_sample
    alpha_bar = float(scheduler.alphas_cumprod[999])
    assert alpha_bar**0.5 == pytest.approx(0.0682649, abs=1e-6)
    torch.testing.assert_close(to_clean_latent(noisy, noise, alpha_bar), expected)
    torch.testing.assert_close(expected, EXPECTED["x0_t999"])


def test_check_shapes_refuses_non_finite_results():
    model = _build()
    torch.nn.init.constant_(model.skips[0].weight, torch.nan)
    with pytest.raises(ValueError, match="finite: False"):
        model.check_shapes(64)


@pytest.fixture(scope="module")
def masked():
    return _build(golden=False, mask=True)


def test_the_mask_blends_input_and_decoded_picture(masked):
    with torch.no_grad():
        repair = masked(IMAGES, parts=True)
        plain = _build(golden=False)(IMAGES)
    assert repair.mask.shape == (2, 1, *IMAGES.shape[2:]) and repair.mask.dtype == torch.float32
    assert (repair.logit - mask.START).abs().max() < 1e-6  # untrained
    torch.testing.assert_close(repair.mask, mask.decide(repair.logit))
    torch.testing.assert_close(repair.decoded, plain)  # all else is as without a mask
    torch.testing.assert_close(
        repair.restored, IMAGES + repair.mask * (repair.decoded - IMAGES))


@pytest.mark.parametrize(("logit", "part"), [(-100.0, "input"), (100.0, "decoded")])
def test_a_closed_mask_keeps_the_input_and_an_open_one_takes_the_decoder(masked, logit, part):
    bias = masked.mask.last.bias
    with torch.no_grad():
        before = bias.clone()
        bias.fill_(logit)
        repair = masked(IMAGES, parts=True)
        bias.copy_(before)
    expected = IMAGES if part == "input" else repair.decoded
    torch.testing.assert_close(repair.restored, expected)


def test_the_mask_is_told_of_the_whole_picture_and_changes_no_decoder():
    net = RepairMask()
    torch.nn.init.normal_(net.last.weight, generator=torch.Generator().manual_seed(0))
    degraded, decoded = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    decoded.requires_grad_()
    before = net(degraded, decoded)
    with torch.no_grad():
        decoded[..., :32, :32] += 0.2
    assert ((net(degraded, decoded) - before)[..., 96:, 96:] != 0).any()
    before.sum().backward()
    assert decoded.grad is None


def test_the_mask_is_shown_for_any_size_and_restores_the_same(masked):
    images = IMAGES[..., :59, :61]
    restored, shown = masked.enhance_and_show(images, strength=0.5)
    assert shown.shape == (2, 1, 59, 61) and shown.min() >= 0 and shown.max() <= 1
    assert torch.equal(restored, masked.enhance(images, strength=0.5))


def test_without_a_mask_all_of_it_is_the_decoders(model):
    restored, shown = model.enhance_and_show(IMAGES)
    assert torch.equal(shown, torch.ones_like(shown))
    assert torch.equal(restored, model.enhance(IMAGES))


def test_every_part_of_the_mask_is_trained(masked):
    masked.zero_grad()
    torch.nn.init.normal_(masked.mask.last.weight, generator=torch.Generator().manual_seed(0))
    masked(IMAGES).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in masked.mask.parameters())
    assert {n for n in masked.trainable() if n.startswith("mask.")} == \
        {f"mask.{n}" for n, _ in masked.mask.named_parameters()}
