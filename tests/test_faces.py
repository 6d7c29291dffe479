"""Faces: prepared once, whatever interrupts it; drawn by seed; regions by label name."""

import json
import multiprocessing
import random
import shutil
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from splat_enhancer.config import preset
from splat_enhancer.data import faces as faces_module
from splat_enhancer.data import regions as regions_module
from splat_enhancer.data import store
from splat_enhancer.data.faces import derive_number, draw_batch, load_batches, prepare_faces
from splat_enhancer.data.regions import CELEBA_MASK_LABELS, EYES, HAIR, FaceParser, region_lookup
from splat_enhancer.data.store import INDEX, ImageStore
from splat_enhancer.images import to_bytes

PARTS = ("clean", "regions")


def picture(number, side=64):
    """Smooth colours, of another kind for each number."""
    small = np.random.default_rng(number).integers(40, 220, (5, 5, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def mask(number, side=64):
    ids = np.zeros((side, side), np.uint8)
    ids[side // 4:, side // 2:] = 1 + number % 13
    return Image.fromarray(ids)


def write_heads(folder, train=5, test=2):
    """A folder as the embedded heads are."""
    folder.mkdir()
    entries = []
    for number in range(train + test):
        entry = {"clean": f"{number}.png", "regions": f"{number}.regions.png",
                 "identity": 100 + number, "split": "train" if number < train else "test"}
        picture(number).save(folder / entry["clean"])
        mask(number % 4).save(folder / entry["regions"])
        entries.append(entry)
    (folder / INDEX).write_text(json.dumps({"images": entries}))
    return folder


def write_photographs(folder, count=8):
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        picture(number, 72).save(folder / "images" / f"{number}.png")
        mask(number, 72).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.fixture
def heads(tmp_path, monkeypatch):
    monkeypatch.setattr(faces_module, "HEADS", write_heads(tmp_path / "heads"))
    return settings("heads")


def settings(source, train=5, test=2, **changes):
    return preset("demo").replace(source=str(source), resolution=64, max_train_samples=train,
                                  max_test_samples=test, **changes)


def test_embedded_heads_are_read_in_order_and_scaled(heads, tmp_path):
    faces = prepare_faces(heads, tmp_path)
    assert (len(faces.train), len(faces.test)) == (5, 2) and faces.test[0]["identity"] == 105
    clean, regions = faces.load("train", [3, 0])
    assert clean.shape == (2, 3, 64, 64) and regions.shape == (2, 64, 64)
    assert torch.equal(to_bytes(clean[1]).permute(1, 2, 0), torch.tensor(np.array(picture(0))))
    assert regions.dtype == torch.uint8 and regions[0].unique().tolist() == [0, 4]
    large, regions = prepare_faces(heads.replace(resolution=128), tmp_path).load("test", [0])
    assert large.shape == (1, 3, 128, 128) and regions.shape == (1, 128, 128)
    assert large.min() >= 0 and large.max() <= 1 and regions.unique().tolist() == [0, 2]
    assert "5 faces to train on, 2 held out" in str(faces)
    with pytest.raises(ValueError, match=r"expected 9 to train on .*lower max_train_samples"):
        prepare_faces(heads.replace(max_train_samples=9), tmp_path)


def test_batch_is_a_function_of_seed_and_step_and_an_epoch_meets_every_face_once(heads, tmp_path):
    faces = prepare_faces(heads, tmp_path)
    batches = [draw_batch(faces, seed=1, step=step, batch=2) for step in range(5)]
    known = [faces.load("train", [index])[0][0] for index in range(5)]
    seen = Counter(next(i for i, face in enumerate(known)
                        if torch.equal(face, one) or torch.equal(face.flip(-1), one))
                   for clean, _, _ in batches for one in clean)
    assert seen == dict.fromkeys(range(5), 2)  # two epochs
    for step, (clean, regions, seeds) in enumerate(batches):
        again = draw_batch(faces, seed=1, step=step, batch=2, rows=slice(1, 2))
        assert torch.equal(again[0][0], clean[1]) and torch.equal(again[1][0], regions[1])
        assert torch.equal(again[2], seeds) and seeds.dtype == torch.int64
    assert not torch.equal(draw_batch(faces, seed=2, step=0, batch=2)[2], batches[0][2])
    assert batches[0][2].tolist() == [derive_number(1, "sample", 0), derive_number(1, "sample", 1)]
    assert derive_number(1, "sample", 0) == 4753215403124198576  # as before version 0.2.0


def test_batches_are_the_same_whoever_reads_them(heads, tmp_path):
    faces = prepare_faces(heads, tmp_path)
    here = list(load_batches(faces, range(3, 6), seed=1, batch=2))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ahead = list(load_batches(faces, range(3, 6), seed=1, batch=2, workers=1))
    assert torch.equal(torch.get_rng_state(), before)
    for one, other in zip(here, ahead, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(here[0][0], draw_batch(faces, seed=1, step=3, batch=2)[0])


def test_photographs_are_prepared_once_and_split_by_their_pixels(tmp_path, capsys):
    source = write_photographs(tmp_path / "photos")
    faces = prepare_faces(settings(source), tmp_path / "data")
    again = prepare_faces(settings(source), tmp_path / "data")
    assert faces.trained_on == again.trained_on and faces.train == again.train
    assert not {e["pixels"] for e in faces.train} & {e["pixels"] for e in faces.test}
    assert faces.load("train", [0])[1].max() <= HAIR
    assert len([p for p in (tmp_path / "data").iterdir() if not p.name.startswith(".")]) == 1
    assert "Preparing faces" in capsys.readouterr().err
    held_out = {entry["pixels"] for entry in prepare_faces(
        settings(source, 6, 2), tmp_path / "all").test}
    for path in (source / "images").iterdir():  # other names, the same sides
        path.rename(path.with_name(f"renamed {path.stem}.png"))
        (source / "masks" / f"{path.stem}.png").rename(
            source / "masks" / f"renamed {path.stem}.png")
    renamed = prepare_faces(settings(source, 6, 2), tmp_path / "all")
    assert {entry["pixels"] for entry in renamed.test} == held_out


def test_what_is_left_out_is_named_and_a_copy_is_never_on_the_other_side(tmp_path, capsys):
    source = write_photographs(tmp_path / "photos", 8)
    shutil.copy(source / "images" / "3.png", source / "images" / "copy of 3.png")
    shutil.copy(source / "masks" / "3.png", source / "masks" / "copy of 3.png")
    (source / "images" / "torn.png").write_bytes((source / "images" / "0.png").read_bytes()[:99])
    picture(50, 40).save(source / "images" / "small.png")
    picture(51).save(source / "images" / "maskless.png")
    with pytest.raises(ValueError, match=r"got 12 in all; lower max_train_samples"):
        prepare_faces(settings(source, 11, 2), tmp_path / "data")
    with pytest.raises(ValueError, match=r"expected 7 to train on and 2 to test with .*got"):
        prepare_faces(settings(source, 7, 2), tmp_path / "data")
    printed = capsys.readouterr().out
    assert "4 left out: " in printed and "; …" in printed
    faces = prepare_faces(settings(source, 6, 2), tmp_path / "data")
    names = {entry["identity"] for entry in (*faces.train, *faces.test)}
    assert len(names) == 8 and len(names & {"3.png", "copy of 3.png"}) == 1


@pytest.mark.parametrize(("source", "message"), [
    ("nowhere", "got 'nowhere'; check the spelling"), ("empty", "got 0 in all")])
def test_source_that_is_none_is_refused(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        prepare_faces(settings(source), tmp_path / "data")


def test_small_photographs_are_enlarged_and_said(tmp_path, capsys):
    source = write_photographs(tmp_path / "photos", 7)
    prepare_faces(settings(source).replace(resolution=128), tmp_path / "data")
    assert "7 photographs smaller than 128 px were enlarged" in capsys.readouterr().out


@pytest.mark.parametrize(("orientation", "mask_side"), [(1, (72, 96)), (6, (72, 96)), (6, (96, 72)),
                                                        (8, (72, 96))])
def test_mask_is_turned_with_its_photograph(tmp_path, orientation, mask_side):
    """The photograph is stored 96 wide and 72 high; a mask may be of raw or of upright pixels."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    tag = Image.Exif()
    tag[0x112] = orientation
    for number in range(2):
        picture(number, 96).resize((96, 72)).save(tmp_path / f"images/{number}.jpg", exif=tag)
        ids = np.zeros(mask_side, np.uint8)
        ids[:30] = CELEBA_MASK_LABELS.index("hair")  # at the top of what is stored
        Image.fromarray(ids).save(tmp_path / f"masks/{number}.png")
    regions = prepare_faces(settings(tmp_path, 1, 1), tmp_path / "data").load("train", [0])[1][0]
    raw = mask_side == (72, 96)
    edge = {1: regions[0], 6: regions[:, -1] if raw else regions[0], 8: regions[:, 0]}[orientation]
    assert (edge[12:52] == HAIR).all()


def test_mask_that_could_stand_either_way_is_refused(tmp_path, capsys):
    source = write_photographs(tmp_path / "photos", 8)
    tag = Image.Exif()
    tag[0x112] = 3
    picture(0, 72).save(source / "images" / "0.png", exif=tag)
    prepare_faces(settings(source), tmp_path / "data")
    printed = capsys.readouterr().out
    assert "0.png: mask 0.png: expected the proportions of its photograph, 72 x 72 of EX" in printed


def _prepare_slowly(source, folder, log):
    """In a process of its own: note each written file, so that it can be killed in between."""
    write = store.atomic_write

    def noted(path, content):
        with log.open("ab") as file:
            file.write(b".")
        return write(path, content)

    store.atomic_write = noted
    prepare_faces(settings(source), folder)


def test_killed_at_any_file_it_goes_on_per_image(tmp_path):
    source = write_photographs(tmp_path / "photos", 7)
    whole = prepare_faces(settings(source), tmp_path / "whole")
    rng, log, kills = random.Random(0), tmp_path / "log", 0
    context = multiprocessing.get_context("fork")
    while True:
        size = log.stat().st_size if log.exists() else 0
        limit = size + rng.randrange(1, 5)
        process = context.Process(target=_prepare_slowly, args=(source, tmp_path / "cut", log))
        process.start()
        while process.is_alive() and (not log.exists() or log.stat().st_size < limit):
            pass
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
    assert kills >= 3 and log.stat().st_size <= 15 + 2 * kills
    cut = prepare_faces(settings(source), tmp_path / "cut")
    assert cut.train == whole.train and cut.test == whole.test
    for entry in cut.train:
        assert (cut.store.folder / entry["file"]).read_bytes() == \
            (whole.store.folder / entry["file"]).read_bytes()


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "00002.png").unlink(),
    lambda folder: (folder / INDEX).write_text("{"),
    lambda folder: (folder / INDEX).write_text('{"images": [{}]}')])
def test_folder_that_is_not_complete_is_prepared_again(tmp_path, capsys, damage):
    source = write_photographs(tmp_path / "photos")
    faces = prepare_faces(settings(source), tmp_path / "data")
    damage(faces.store.folder)
    assert prepare_faces(settings(source), tmp_path / "data").train == faces.train
    assert "it is prepared again" in capsys.readouterr().out


def test_damaged_picture_is_named_when_it_is_read(tmp_path):
    faces = prepare_faces(settings(write_photographs(tmp_path / "photos")), tmp_path / "data")
    path = faces.store.folder / faces.train[0]["file"]
    content = bytearray(path.read_bytes())
    content[-200:-100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path.name}: expected a picture .*delete .*run again"):
        faces.load("train", [0])


def test_next_machine_takes_the_folder_from_drive_unless_the_copy_is_damaged(tmp_path, capsys):
    source, drive = write_photographs(tmp_path / "photos"), tmp_path / "drive" / "data"
    drive.parent.mkdir()
    config = settings(source)
    faces = prepare_faces(config, tmp_path / "one", drive=drive)
    assert "is kept in" in capsys.readouterr().out
    archive, = drive.iterdir()
    other = prepare_faces(config, tmp_path / "two", drive=drive)
    printed = capsys.readouterr()
    assert other.train == faces.train and "is taken from" in printed.out and not printed.err
    good = archive.read_bytes()
    archive.write_bytes(good[:-5])
    assert prepare_faces(config, tmp_path / "three", drive=drive).train == faces.train
    assert "damaged one); what has no copy is prepared again" in capsys.readouterr().out
    assert [path.name for path in drive.iterdir()] == [archive.name]
    assert archive.stat().st_size == len(good)


def test_drive_that_is_gone_stops_nothing_and_is_not_replaced(tmp_path, capsys):
    config = settings(write_photographs(tmp_path / "photos"))
    prepare_faces(config, tmp_path / "data", drive=tmp_path / "gone" / "splat_enhancer" / "data")
    assert "nothing is copied" in capsys.readouterr().out and not (tmp_path / "gone").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """CelebA-HQ in small, through the real `datasets`: 64 rows in four files, women first."""
    import datasets

    def rows(files):
        for file in files:
            for number in range(16 * file, 16 * file + 16):
                content = BytesIO()
                picture(number).save(content, "PNG")
                yield {"image": {"bytes": content.getvalue() if number != 20 else b"torn",
                                 "path": None}, "label": int(number >= 40)}

    features = datasets.Features({"image": datasets.Image(),
                                  "label": datasets.ClassLabel(names=["female", "male"])})
    stream = datasets.IterableDataset.from_generator(
        rows, gen_kwargs={"files": [0, 1, 2, 3]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)

    class Parser:
        calls = 0

        def __init__(self, **_):
            pass

        def __call__(self, picture):
            Parser.calls += 1
            return picture.convert("L").point(lambda value: value * 5 // 255)

    monkeypatch.setattr(regions_module, "FaceParser", Parser)
    return Parser


def test_stream_that_is_sorted_gives_both_labels_and_goes_on_where_it_broke(
        hub, monkeypatch, tmp_path, capsys):
    config = settings("celeba-hq", 12, 2)
    whole = prepare_faces(config, tmp_path / "whole")
    assert {e["label"] for e in whole.train} == {"female", "male"}
    assert not {e["row"] for e in whole.train} & {e["row"] for e in whole.test}
    assert whole.load("test", [1])[1].shape == (1, 64, 64)

    hub.calls, stream = 0, regions_module.stream_celeba_hq

    def breaking(skip):
        for count, row in enumerate(stream(skip)):
            if count == 7:
                raise RuntimeError("celeba-hq: expected row 7 from the hub, got no connection")
            yield row

    monkeypatch.setattr(regions_module, "stream_celeba_hq", breaking)
    with pytest.raises(RuntimeError, match="no connection"):
        prepare_faces(config, tmp_path / "cut")
    monkeypatch.setattr(regions_module, "stream_celeba_hq", stream)
    cut = prepare_faces(config, tmp_path / "cut")
    assert cut.train == whole.train and cut.test == whole.test and hub.calls == 14


def test_hub_out_of_reach_is_one_sentence(monkeypatch, tmp_path):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(RuntimeError, match=r"celeba-hq: expected row 0 from the hub, got no route"):
        prepare_faces(settings("celeba-hq"), tmp_path)


def test_regions_follow_from_label_names_whatever_their_ids():
    names = {str(len(CELEBA_MASK_LABELS) - 1 - i): f"{name.upper()}.png"
             for i, name in enumerate(CELEBA_MASK_LABELS)}
    lookup = region_lookup(names)
    assert lookup[len(CELEBA_MASK_LABELS) - 1 - CELEBA_MASK_LABELS.index("eye_g")] == EYES


def test_face_parser_gives_regions_of_the_pictures_size(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    from transformers import SegformerImageProcessor as Processor

    small = SegformerConfig(
        num_labels=19, id2label=dict(enumerate(CELEBA_MASK_LABELS)), depths=[1] * 4,
        hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8)
    SegformerForSemanticSegmentation(small).save_pretrained(tmp_path)
    Processor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    regions = FaceParser(str(tmp_path))(picture(0, 96).crop((0, 0, 96, 80)))
    assert regions.size == (96, 80) and regions.mode == "L" and np.asarray(regions).max() <= HAIR
    with pytest.raises(RuntimeError, match="check the connection and run again, or put region"):
        FaceParser(str(tmp_path / "none"))


def test_celeba_masks_of_real_faces_are_read(shared, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for path in sorted((shared / "faces" / "images").iterdir())[:2]:
        mask_path = shared / "faces" / "masks" / f"{path.stem}.png"
        for part, target in (("images", path), ("masks", mask_path)):
            (tmp_path / part / target.name).symlink_to(target)
    faces = prepare_faces(settings(tmp_path, 1, 1), tmp_path / "data")
    assert {1, 2, 3, 4, 5} <= set(faces.load("train", [0])[1].unique().tolist())
    assert ImageStore(faces.store.folder, PARTS).skipped == {}
