"""Truths about notebook 01's cells: recordings are taken from where a person has them, nothing is made or rendered that
nobody asked for, and mistakes are sentences."""

import io
import zipfile

import pytest
from explaining import assert_explains
from panels import make_song, said, upload

from svclib.data import singers
from svclib.notebooks import base as widgets
from svclib.notebooks import prepare, train, visualize
from svclib.utils import workspace
from svclib.utils.errors import ConfigError, DatasetError, StorageError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, the one that notebooks take where no other is given."""
    monkeypatch.setattr(workspace, "on_colab", lambda: False)
    monkeypatch.setenv("SVCLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(singers, "make_recordings", lambda *a, **k: pytest.fail("a synthetic singer was rendered"))
    return workspace.base_folder()


@pytest.fixture
def mine(tmp_path):
    """Her folder: two recordings, and a picture."""
    for name in ("Take 1.wav", "Take 2.wav"):
        make_song(tmp_path / "Music" / "My voice" / name)
    (tmp_path / "Music" / "My voice" / "cover.jpg").write_bytes(b"x")
    return tmp_path / "Music" / "My voice"


@pytest.fixture
def notes(monkeypatch):
    """The sentences that a cell shows."""
    shown = []
    monkeypatch.setattr(widgets, "show_note", lambda sentence, kind="info": shown.append(sentence))
    return shown


def names(found):
    return [(r.singer, r.path.name) for r in found if r.problem is None]


def everything(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.case("user 01.1")
@pytest.mark.parametrize("given", ["SOURCE", "quoted", "VOICE", "BASE"])
def test_a_folder_anywhere_is_used_where_it_is(home, mine, notes, given):
    before = everything(mine)
    base = prepare.open_folder(str(mine) if given == "BASE" else "")
    source = {"SOURCE": str(mine), "quoted": f'"{mine}" '}.get(given, "")
    name, found = prepare.recordings(base, str(mine) if given == "VOICE" else "", source)
    assert base.root == home.root and name == "My voice" and everything(mine) == before
    assert names(found) == [("My voice", "Take 1.wav"), ("My voice", "Take 2.wav")]
    assert str(mine) in " ".join(notes)
    # and it is the voice of the following notebooks, by the same choice or by its name
    again = prepare.open_folder(str(mine) if given == "BASE" else "")
    assert names(prepare.recordings(again)[1]) == names(found)
    assert names(prepare.recordings(again, "My voice")[1]) == names(found)


@pytest.mark.case("user 01.1")
def test_recordings_that_lie_in_the_home_itself_are_a_voice(home, notes):
    make_song(home.root / "one.wav")
    make_song(home.examples / "a song.wav")
    make_song(home.audio / "aria" / "synthetic.wav")
    name, found = prepare.recordings(home)
    assert name == "my voice" and names(found) == [("my voice", "one.wav")]


def test_a_voice_named_like_another_elsewhere_is_not_mixed_with_it(home, mine, notes):
    make_song(home.audio / "My voice" / "other.wav")
    with pytest.raises(DatasetError) as found:
        prepare.recordings(home, "", str(mine))
    assert_explains(found.value, path=mine, remedy="VOICE")
    assert names(prepare.recordings(home, "Anna", str(mine))[1])[0] == ("Anna", "Take 1.wav")


@pytest.mark.case("user 01.4")
def test_who_named_a_voice_is_refused_before_anything_is_rendered(home, notes):
    with pytest.raises(DatasetError) as found:
        prepare.recordings(home, "Anna")
    assert_explains(found.value, path=home.audio / "Anna", remedy="SOURCE")
    assert everything(home.audio) == []


@pytest.mark.case("user A2")
@pytest.mark.parametrize(
    ("name", "value", "use"),
    [
        *(("SINGER_MINUTES", value, lambda home, x: prepare.recordings(home, minutes=x)) for value in (-3, 0, 1e9)),
        *(("MINUTES", value, lambda home, x: train.TrainingView(None, x)) for value in (-1, float("nan"))),
        ("START_S", -1, visualize.LessonPanel),
        ("SECONDS", 1e12, lambda home, x: visualize.LessonPanel(home, 0.0, x)),
        *(("N", x, lambda home, x: widgets.require_number("N", x, 0, 9, "0 to 9")) for x in ("two", None, True)),
    ],
)
def test_impossible_numbers_in_a_first_cell_are_refused_by_name(home, name, value, use):
    with pytest.raises(ConfigError) as found:
        use(home, value)
    assert_explains(found.value, remedy=name)


@pytest.mark.parametrize("name", ["nothing here", "empty", "text.txt"])
def test_a_source_without_recordings_is_named(home, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("la la")
    with pytest.raises((DatasetError, StorageError)) as found:
        prepare.recordings(home, "Anna", str(tmp_path / name))
    assert_explains(found.value, path=tmp_path / name)
    assert everything(home.audio) == []


def zipped(files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, path in files.items():
            archive.write(path, name)
    return buffer.getvalue()


@pytest.mark.case("user 01.1")
@pytest.mark.parametrize("folder", ["", "My voice/", "../../My voice/"])
def test_uploaded_recordings_and_zips_are_the_voice_that_comes_next(home, mine, notes, folder):
    make_song(home.audio / "zoe" / "older.wav")
    panel = prepare.UploadPanel(home, "")
    data = (mine / "Take 1.wav").read_bytes()
    if folder:
        upload(panel.upload, "voice.zip", zipped({f"{folder}{p.name}": p for p in sorted(mine.iterdir())}))
    else:
        upload(panel.upload, "Take 1.wav", data)
        upload(panel.upload, "Take 1.wav", (mine / "Take 2.wav").read_bytes())
    if ".." in folder:
        assert "outside" in said(panel) and "svclib-error" in said(panel) and not panel.folder.exists()
        return
    assert "2 recordings" in said(panel) and "next cell" in said(panel)
    name, found = prepare.recordings(home)
    assert name == "my voice" and [singer for singer, _ in names(found)] == ["my voice"] * 2


@pytest.mark.case("user 03.2")
def test_an_upload_without_sound_is_not_stored(home, tmp_path):
    panel = prepare.UploadPanel(home, "Anna")
    (tmp_path / "notes.txt").write_text("la la")
    for name, data in (("notes.wav", b"la la"), ("texts.zip", zipped({"notes.txt": tmp_path / "notes.txt"}))):
        upload(panel.upload, name, data)
        assert name in said(panel) and "svclib-error" in said(panel)
    assert not panel.folder.exists() or everything(panel.folder) == []
