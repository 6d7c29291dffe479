"""Messages name the cause, and the file or folder that was meant."""

from types import SimpleNamespace

import pytest

from helpers import checkpoints
from helpers.checkpoints import choosing, publisher
from helpers.checkpoints.publisher import Publisher
from helpers.config import preset
from helpers.storage import copies, fetch, silence
from tests.runs import wait_for


def refused_with(status):
    error = OSError(f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status, headers={})
    return error


def test_a_refused_token_is_named_and_not_the_repository(monkeypatch):
    monkeypatch.setattr(silence, "get_token", lambda: "hf_of_last_year")
    assert "your token is refused" in str(silence.out_of_reach("x/y", refused_with(401)))
    assert "token is refused" not in str(silence.out_of_reach("x/y", refused_with(404)))
    monkeypatch.setattr(silence, "get_token", lambda: None)
    assert "check its name" in str(silence.out_of_reach("x/y", refused_with(401)))


@pytest.mark.parametrize("name", ["results/demo/enhancer", "./enhancer", "/content/x", "~/mine",
                                  "..\\mine"])
def test_a_folder_that_is_not_there_is_named_as_a_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run has left an export
    with pytest.raises(ValueError, match=r"check the path \(there is no folder "):
        fetch(name, ["card.json"], instead="")


def test_a_quoted_folder_is_found(tmp_path):
    (tmp_path / "base").mkdir()
    assert fetch(f'"{tmp_path}/base"', ["x"]) == tmp_path / "base"


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyError("odd"), EOFError("odd"),
                                   MemoryError("odd")])
def test_a_thread_that_publishes_outlives_any_error(tmp_path, monkeypatch, error, capsys):
    state = checkpoints.Checkpoint(1, preset("demo"), {})
    file = checkpoints.save(state, tmp_path / "here")
    (tmp_path / "drive").mkdir()
    publish, left = publisher.publish, [1]

    def breaking(content, target):
        left[0] -= 1
        if not left[0]:
            raise error
        return publish(content, target)
    monkeypatch.setattr(publisher, "publish", breaking)
    own = Publisher(tmp_path / "drive" / "run")
    own.submit(file)
    wait_for(lambda: left[0] <= 0 and own._busy_since is None)
    own.submit(file)
    own.close()
    assert checkpoints.load(tmp_path / "drive" / "run" / checkpoints.LATEST).step == 1
    assert "odd" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError("odd"), EOFError("odd"), ValueError("odd")])
def test_a_copy_that_fails_in_any_way_stops_nothing(tmp_path, monkeypatch, error, capsys):
    made = tmp_path / "made"
    made.mkdir()
    (made / "a").write_text("a")
    monkeypatch.setattr(copies, "within", lambda *_: (_ for _ in ()).throw(error))
    copies.keep(made, tmp_path)
    copies.put(made, tmp_path)
    assert not copies.take_back(tmp_path / "other", tmp_path)
    assert capsys.readouterr().out.count("odd") == 3


@pytest.mark.parametrize("error", [RuntimeError("odd"), EOFError("odd"), KeyError("odd")])
def test_a_file_that_fails_in_any_way_gives_way_to_another(tmp_path, monkeypatch, error):
    for step in (1, 2):
        checkpoints.save(checkpoints.Checkpoint(step, preset("demo"), {}), tmp_path)
    load = checkpoints.load

    def breaking(path):
        if path.name == checkpoints.LATEST:
            raise error
        return load(path)
    monkeypatch.setattr(choosing, "load", breaking)
    found, lines = checkpoints.newest([tmp_path])
    assert found.step == 1 and len(lines) == 1
