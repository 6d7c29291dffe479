"""What was made knows what it was made of; a run asks, and says which cell to run."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from helpers.checkpoints import checkpoint, refuse_lone_moments
from helpers.config import preset
from helpers.degradation import damage, keep_damage
from helpers.distances import EnhancerLoss
from helpers.faces import prepare
from helpers.model import SplatEnhancer, export
from helpers.pairs import made_by, prepare_pairs, with_shares
from helpers.training import recall, refuse_unfit, train
from tests.runs import PROMPT, run, states_differ


def trained(config, build, faces, folder, steps=2, model=None, loss=None):
    """A model after some steps of a run; a given one goes on in whatever state it is."""
    fresh, own = build(seed=config.run.seed)
    model = model or fresh
    for record in train(config, model, faces, loss or own, folder=folder):
        if record.step >= steps:
            break
    return model


def test_a_model_that_was_trained_starts_a_new_run_from_its_beginning(
        config, build, faces, tmp_path, capsys):
    alone = trained(config, build, faces, tmp_path / "alone").trained_state()
    model = trained(config, build, faces, tmp_path / "a")
    other = config.with_({"run.name": "other"})
    trained(other, build, faces, tmp_path / "b", model=model)  # a new name
    assert "starts anew: what the model held of run 'test', step 2" in capsys.readouterr().out
    assert all(torch.equal(alone[n], t) for n, t in model.trained_state().items())
    assert not states_differ(tmp_path / "alone", tmp_path / "a")
    shutil.rmtree(tmp_path / "b")  # a folder that was deleted
    trained(other, build, faces, tmp_path / "b", model=model)
    assert all(torch.equal(alone[n], t) for n, t in model.trained_state().items())


def test_weights_loaded_by_hand_are_a_start_and_are_kept(config, build, faces, tmp_path):
    model = trained(config, build, faces, tmp_path / "a")
    own = {n: t + 0.01 for n, t in model.trained_state().items()}
    model.load_trained(own)
    assert model.learned is None
    loop = train(config, model, faces, build()[1], folder=tmp_path / "b")
    next(loop)
    loop.close()
    first = checkpoint.load(tmp_path / "b" / checkpoint.LATEST)
    assert first.step == 1
    assert model.forget().step == 1
    assert all(torch.equal(own[n], t) for n, t in model.trained_state().items())


@pytest.mark.parametrize(("what", "changes", "cell"), [
    ("model", {"model.timestep": 5}, "Build the enhancer"),
    ("model", {"model.prompt": "other"}, "Build the enhancer"),
    ("model", {"run.seed": 7}, "Build the enhancer"),
    ("faces", {"data.size_px": 128}, "Prepare the faces"),
    ("faces", {"data.test_images": 3}, "Prepare the faces"),
    ("loss", {"loss.l1": 1.0}, "Load the loss")])
def test_what_other_settings_made_is_refused_with_the_cell_to_run(
        config, build, faces, tmp_path, what, changes, cell):
    model, loss = build()
    with pytest.raises(ValueError, match=rf"^{what}: .*{next(iter(changes))}.*\*{cell}\*"):
        next(train(config.with_(changes), model, faces, loss, folder=tmp_path))
    assert not list(tmp_path.glob("*.safetensors"))


def test_sources_folder_and_damage_of_others_are_refused(config, faces, tmp_path):
    mixed = config.with_({"pairs.rendered": 0.5})
    sources = prepare_pairs(mixed, faces, tmp_path)
    refuse_unfit(mixed, faces=faces, sources=sources)
    assert made_by(config, faces) == {}
    with pytest.raises(ValueError, match=r"pairs of kind fitted None.*\*Mix the pairs\*"):
        refuse_unfit(config.with_({"pairs.fitted": 0.1}), faces=faces, sources=sources)
    folder = tmp_path / "runs" / "mine"
    with pytest.raises(ValueError, match=r"run.name 'mine'.*\*Choose the folders\*"):
        refuse_unfit(config, folder=folder)
    mine = config.with_({"run.name": "mine"})
    refuse_unfit(mine, folder=folder)
    keep_damage(damage("heavy"), [folder])
    with pytest.raises(ValueError, match=r"\*Take over the tuned damage\*"):
        refuse_unfit(mine, folder=folder)


def test_a_mix_that_is_put_back_is_put_back(config):
    before = config.pairs
    changed = with_shares(config, before, own="'/a'", drawn=0.0, rendered=1.0)
    assert (changed.pairs.drawn, changed.pairs.rendered, changed.pairs.own) == (0, 1, "'/a'")
    assert with_shares(changed, before, drawn=0.0, rendered=0.0) == config


def test_recall_brings_what_was_learned_into_any_model_or_says_what_to_run(
        config, build, faces, tmp_path):
    with pytest.raises(ValueError, match=r"got none; run the cell \*Train\* first"):
        recall(config, build()[0], folder=tmp_path)
    model = trained(config, build, faces, tmp_path)
    fresh = build()[0]
    saved = recall(config, fresh, folder=tmp_path, faces=faces)
    assert saved.step == 2 and saved.config == config
    assert all(torch.equal(t, model.trained_state()[n]) for n, t in fresh.trained_state().items())
    figures = SimpleNamespace(run="test", step=2, sha256=saved.digest)
    recall(config, fresh, folder=tmp_path, measured=figures)
    trained(config, build, faces, tmp_path, steps=4, model=model)
    with pytest.raises(ValueError, match=r"after step 4, got others .*\*Measure on held-out"):
        recall(config, fresh, folder=tmp_path, measured=figures)
    with pytest.raises(ValueError, match="settings it was started with"):
        recall(config.with_({"run.seed": 3}), fresh, folder=tmp_path)


def test_an_export_tells_the_settings_that_its_weights_had(config, build, faces, tmp_path):
    model = trained(config, build, faces, tmp_path / "run")
    for changes in ({"degrade.warp": 0.9}, {"data.size_px": 128}, {"data.source": "celeba-hq"}):
        with pytest.raises(ValueError, match=r"settings of run 'test' after step 2, which trained"):
            export(model, config.with_(changes), tmp_path / "out")
    with pytest.raises(ValueError, match="which trained"):
        export(model, config, tmp_path / "out", step=9)
    assert '"steps": 2' in (export(model, config, tmp_path / "out") / "card.json").read_text()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "card.json").write_text('{"name": "of another program"}')
    with pytest.raises(FileExistsError, match="one of something else"):
        export(model, config, tmp_path / "theirs")
    assert "another program" in (tmp_path / "theirs" / "card.json").read_text()


@pytest.mark.parametrize("lacking", ["exp_avg_sq/", "exp_avg/", "updates", "model/"])
def test_a_resealed_file_that_lacks_something_gives_way_to_the_whole_one_before(
        config, build, faces, tmp_path, lacking, capsys):
    trained(config, build, faces, tmp_path, steps=6)
    latest = tmp_path / checkpoint.LATEST
    tensors, texts = checkpoint.read_sealed(latest)
    gone = next(name for name in sorted(tensors) if name.startswith(lacking))
    del tensors[gone]
    checkpoint.write_sealed(latest, tensors, {k: v for k, v in texts.items() if k != "format"})
    more = config.with_({"optim.steps": 7})
    _, records = run(more, build, faces, tmp_path)
    assert [record.step for record in records] == [5, 6, 7]
    assert f"Passed over {latest}" in capsys.readouterr().out


def test_moments_and_finite_weights_are_asked_for_in_older_files_too():
    good = {"model/a": torch.ones(2), "exp_avg/a": torch.ones(2), "exp_avg_sq/a": torch.ones(2),
            "updates": torch.tensor(1.0)}
    def judge(tensors):
        checkpoint._refuse_incomplete(tensors, None)
        refuse_lone_moments(checkpoint.Checkpoint(1, preset("demo"), tensors))

    judge(good)
    for bad in ({**good, "exp_avg/a": torch.ones(3)}, {**good, "model/a": good["model/a"] / 0},
                {n: t for n, t in good.items() if n != "exp_avg_sq/a"},
                {n: t for n, t in good.items() if n != "updates"},
                {n: t for n, t in good.items() if n != "model/a"}):
        with pytest.raises(ValueError, match=r"expected beside it|not finite"):
            judge(bad)
    with pytest.raises(ValueError, match="other tensors than were written"):
        checkpoint._refuse_incomplete({"model/a": torch.ones(2)}, sorted(good))


def test_nothing_that_is_not_finite_or_not_in_0_to_1_passes_a_door(config, build, faces, tmp_path):
    model, _ = build()
    images = torch.rand(1, 3, 64, 64)
    spoilt = images.clone()
    spoilt[0, 1, 5, 5] = torch.nan
    loss = EnhancerLoss(config.loss, device="cpu")
    for bad in (spoilt, images * 255, images * 2 - 1):
        for door in (model.enhance, model.enhance_and_show, lambda x: loss(images, x)):
            with pytest.raises(ValueError, match=r"expected finite values in \[0, 1\]"):
                door(bad)
    state = model.trained_state()
    broken = state | {"skips.0.weight": torch.full_like(state["skips.0.weight"], torch.nan)}
    with pytest.raises(ValueError, match=r"1 not finite \['skips.0.weight'\]"):
        model.load_trained(broken)
    with pytest.raises(ValueError, match="not finite"):
        export(model, config, tmp_path, trained=broken)
    torch.nn.init.constant_(model.skips[0].weight, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        export(model, config, tmp_path)
    with pytest.raises(ValueError, match="restored images: expected finite values"):
        model.enhance(images)
    with pytest.raises(ValueError, match="prompt_embedding: expected finite"):
        SplatEnhancer.from_pretrained(config.model, device="cpu",
                                      prompt_embedding=PROMPT * torch.nan)
    half = build(torch.float16)[0]
    with pytest.raises(ValueError, match="not finite"):  # not in its own dtype
        half.load_trained(state | {"skips.0.weight": torch.full_like(state["skips.0.weight"], 1e6)})


def test_the_same_folder_moved_or_spelled_otherwise_resumes_and_other_photographs_do_not(
        config, build, tmp_path, monkeypatch):
    from tests.faces.test_data import background, photo
    (tmp_path / "mine").mkdir()
    for n in range(4):
        photo(n).save(tmp_path / "mine" / f"{n}.png")

    def goes_on(source, steps):
        own = config.with_({"data.source": source, "data.train_images": 2, "data.test_images": 1,
                            "optim.steps": steps})
        faces = prepare(own.data, tmp_path / "data", parse=background, progress=None)
        return [r.step for r in run(own, build, faces, tmp_path / "run")[1]]
    assert goes_on(str(tmp_path / "mine"), 1) == [1]
    monkeypatch.chdir(tmp_path)
    assert goes_on("./mine/", 2) == [2]
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert goes_on(f'"{tmp_path}/moved"', 3) == [3]
    first, last = (tmp_path / "moved" / f"{n}.png" for n in (0, 3))
    contents = [path.read_bytes() for path in (first, last)]
    for n in range(4):  # the same names, other photographs
        photo(n + 9).save(tmp_path / "moved" / f"{n}.png")
    with pytest.raises(ValueError, match="expected to train on the 2 photographs"):
        goes_on("moved", 4)
    assert contents
