"""The environments of rivals: made from their setup files, once, and nothing else is replaced."""

import pytest

from outzoom.benchmarks import environments
from outzoom.runtime.errors import OutzoomError, UserError


@pytest.fixture
def setups(tmp_path, monkeypatch):
    """Setup files of two rivals: one needs nothing, the other can't be had."""
    folder = tmp_path / "setups"
    folder.mkdir()
    (folder / "nothing.txt").write_text("# needs nothing\n")
    (folder / "broken.txt").write_text("no requirement at all !\n")
    monkeypatch.setattr(environments, "SETUPS", folder)
    return folder


def test_an_environment_is_made_once_and_anew_when_its_file_changes(setups, tmp_path):
    assert environments.make("nothing", tmp_path / "rivals")
    assert (tmp_path / "rivals" / "nothing" / "pyvenv.cfg").is_file()
    assert not environments.make("nothing", tmp_path / "rivals")
    (setups / "nothing.txt").write_text("# still needs nothing\n")
    assert environments.make("nothing", tmp_path / "rivals")


def test_what_can_not_be_installed_is_told_in_pips_words_and_tried_again(setups, tmp_path):
    for _ in range(2):
        with pytest.raises(OutzoomError, match="Invalid requirement"):
            environments.make("broken", tmp_path / "rivals")


def test_a_folder_that_is_no_environment_is_not_replaced(setups, tmp_path):
    mine = tmp_path / "rivals" / "nothing" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep me")
    with pytest.raises(UserError):
        environments.make("nothing", tmp_path / "rivals")
    assert mine.read_text() == "keep me"


def test_a_name_that_no_rival_has_is_refused_with_those_that_there_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["environments", str(tmp_path), "ncnn"])
    assert environments.main() == 2
    assert "there is no rival 'ncnn'; known: " in capsys.readouterr().err
    assert {"nncf", "optimum", "stable-diffusion-cpp"} <= set(environments.setup_files())
