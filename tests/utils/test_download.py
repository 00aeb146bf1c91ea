"""Truths about fetching recordings: hostile zips write nothing outside, downloads are checked, a repeat does nothing.

Downloads come from a small web server on this machine; Google Drive is played by a stand-in for gdown.
"""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import os
import stat
import threading
import time
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from explaining import assert_explains

from svclib.audio import io as audio
from svclib.notebooks import base as widgets
from svclib.notebooks import prepare
from svclib.utils import atomic_store, budget, unzip, workspace
from svclib.utils import download as sources
from svclib.utils.errors import StorageError


def wav_bytes(seed=0):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).normal(0, 0.1, 8000), 16000, format="WAV")
    return buffer.getvalue()


def make_zip(path, entries, **kwargs):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **kwargs) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def everything_under(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def web(tmp_path):
    """A web server on this machine: its folder, its address, and how often it was asked."""
    folder, asked = tmp_path / "www", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


# Folders and zips -----------------------------------------------------------------------------------------------------


def test_a_folder_and_a_file_are_used_where_they_are(tmp_path):
    song = tmp_path / "song.wav"
    song.write_bytes(wav_bytes())
    assert sources.fetch(tmp_path, tmp_path / "into") == tmp_path
    assert sources.fetch(song, tmp_path / "into") == song
    assert not (tmp_path / "into").exists()
    with pytest.raises(StorageError, match="no file or folder"):
        sources.fetch(tmp_path / "absent", tmp_path / "into")


def test_a_zip_is_unpacked_once(tmp_path):
    names = {"Ana/a b.wav": wav_bytes(), "Ana/ü 🎤.wav": wav_bytes(1), "__MACOSX/._a.wav": b"x", ".DS_Store": b"x"}
    archive, told = make_zip(tmp_path / "my voice.zip", names), []
    folder = sources.fetch(archive, tmp_path / "into", lambda fraction, text: told.append(fraction))
    assert folder == tmp_path / "into" / "my voice" and told[-1] == 1.0
    assert [p.name for p in audio.find(folder)[0]] == ["a b.wav", "ü 🎤.wav"] and not audio.find(folder)[1]
    assert (folder / "Ana" / "a b.wav").read_bytes() == wav_bytes()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert sources.fetch(archive, tmp_path / "into") == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.case("J4")
def test_another_zip_of_the_same_name_is_unpacked_beside(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one = make_zip(tmp_path / "a" / "voice.zip", {"x.wav": wav_bytes(), "y.wav": wav_bytes(1)})
    other = make_zip(tmp_path / "b" / "voice.zip", {"x.wav": wav_bytes(2)})
    first = sources.fetch(one, tmp_path / "into")
    (first / "x.wav").write_bytes(b"trimmed by hand")
    second = sources.fetch(other, tmp_path / "into")
    assert first.name == "voice" and second.name == f"voice {hashlib.sha256(other.read_bytes()).hexdigest()[:8]}"
    assert (first / "x.wav").read_bytes() == b"trimmed by hand" and (first / "y.wav").read_bytes() == wav_bytes(1)
    assert (second / "x.wav").read_bytes() == wav_bytes(2) and [p.name for p in audio.find(second)[0]] == ["x.wav"]
    assert sources.fetch(one, tmp_path / "into") == first and sources.fetch(other, tmp_path / "into") == second
    (tmp_path / "own" / "voice").mkdir(parents=True)  # a folder of the person's own
    (tmp_path / "own" / "voice" / "x.wav").write_bytes(b"mine")
    assert sources.fetch(one, tmp_path / "own").name != "voice"
    assert (tmp_path / "own" / "voice" / "x.wav").read_bytes() == b"mine"
    with pytest.raises(StorageError, match=r"voice.zip is not unpacked into .*voice, which holds other files"):
        unzip.unpack(one, tmp_path / "own" / "voice")


def test_equal_names_in_a_zip_get_numbers(tmp_path):
    """Names that differ in case or in forbidden letters only, and any number of equal ones; all stay writable."""
    archive = tmp_path / "v.zip"
    with zipfile.ZipFile(archive, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's of duplicate names
        for i, name in enumerate(["a.wav", "A.wav", "a.wav", "a?.wav", "a 2.wav", "a.wav"]):
            file.writestr(name, b"%d" % i)
    folder = sources.fetch(archive, tmp_path / "into")
    names = {p.name: p.read_bytes() for p in folder.iterdir() if p.name[0] != "."}
    assert sorted(names.values()) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert len({name.lower() for name in names}) == 6 and names["a.wav"] == b"0"
    with zipfile.ZipFile(archive) as file:
        file.filelist = [zipfile.ZipInfo("x" * 200 + ".wav")] * 20_000
        found = unzip._safe_entries(file, "v.zip")  # in cubic time this took days
    assert len({str(path) for _, path in found}) == 20_000 and max(len(str(path)) for _, path in found) < 140


@pytest.fixture
def notes(monkeypatch):
    """The sentences that a cell of a notebook shows."""
    shown = []
    monkeypatch.setattr(widgets, "show_note", shown.append)
    return shown


@pytest.mark.case("D6")
def test_choices_of_the_notebook_that_contradict_each_other(tmp_path, notes):
    """A voice that has recordings, and a source to fetch others from; several voices, and one source."""
    base = workspace.base_folder(base=tmp_path / "home")
    one = make_zip(tmp_path / "one.zip", {"a.wav": wav_bytes()})
    other = make_zip(tmp_path / "other.zip", {"a.wav": wav_bytes(1)})
    name, found = prepare.recordings(base, "ana", str(one))
    assert name == "ana" and len(found) == 1 and "Fetched" in notes[-1]
    assert len(prepare.recordings(base, "ana", str(one))[1]) == 1  # run again: nothing more
    before = everything_under(base.root)
    with pytest.raises(ValueError, match="'.*ana' has recordings already.*Leave SOURCE empty.*another name into VOICE"):
        prepare.recordings(base, "ana", str(other))
    with pytest.raises(ValueError, match="SOURCE is one voice, but VOICE is 'ana, eva'"):
        prepare.recordings(base, "ana, eva", str(other))
    assert everything_under(base.root) == before
    one.unlink()  # an uploaded file that this session no longer has
    assert len(prepare.recordings(base, "ana", str(one))[1]) == 1


def test_a_voice_of_ones_own_comes_before_the_synthetic_singers_and_others_are_named(tmp_path, notes):
    """Who played with the demo first and then brought recordings means these."""
    base = workspace.base_folder(base=tmp_path / "home")
    for name in ("aria", "bruno", "zoe"):
        (base.audio / name).mkdir()
        (base.audio / name / "a.wav").write_bytes(wav_bytes())
    assert prepare.recordings(base)[0] == "zoe"
    assert notes[-1] == "Voice: zoe, 1 file. Write another name into VOICE for aria or bruno."
    assert prepare.recordings(base, "bruno")[0] == "bruno" and notes[-1] == "Voice: bruno, 1 file."


def test_the_newest_song_is_the_one_to_begin_with(tmp_path):
    base = workspace.base_folder(base=tmp_path / "home")
    for age_s, name in ((0, "new.wav"), (50, "a.wav"), (100, "b.wav")):
        (base.examples / name).write_bytes(wav_bytes())
        os.utime(base.examples / name, (1e9 - age_s, 1e9 - age_s))
    assert [path.name for path in prepare.songs(base)] == ["new.wav", "a.wav", "b.wav"]
    assert widgets.newest_first([base.examples / "gone.wav", base.examples / "b.wav"])[0].name == "b.wav"


@pytest.mark.parametrize("n, finished", [(1, False), (1, True), (2, False), (2, True), (4, True)])
def test_an_interrupted_unpacking_goes_on(tmp_path, monkeypatch, n, finished):
    """Ended before or after the n-th file stands in the folder."""
    archive = make_zip(tmp_path / "v.zip", {f"{i}.wav": wav_bytes(i) for i in range(5)})
    commit, calls = atomic_store.commit_file, []

    def failing(path, write):
        calls.append(path)
        made = commit(path, write) if finished else None
        if len(calls) == n:
            raise KeyboardInterrupt
        return made or commit(path, write)

    monkeypatch.setattr(atomic_store, "commit_file", failing)
    with pytest.raises(KeyboardInterrupt):
        sources.fetch(archive, tmp_path / "into")
    monkeypatch.setattr(atomic_store, "commit_file", commit)
    folder = sources.fetch(archive, tmp_path / "into")
    assert folder == tmp_path / "into" / "v" and len(audio.find(folder)[0]) == 5


OUTSIDE = [
    "../evil.wav",
    "a/../../evil.wav",
    "/tmp/evil.wav",
    "..\\evil.wav",
    "C:\\evil.wav",
    "C:evil.wav",
    "\\\\host\\evil",
]


@pytest.mark.case("C2")
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_entry_that_points_outside_refuses_the_whole_zip(tmp_path, name):
    archive = make_zip(tmp_path / "v.zip", {"good.wav": wav_bytes(), name: b"evil"})
    with pytest.raises(StorageError, match="v.zip is refused"):
        sources.fetch(archive, tmp_path / "into")
    assert everything_under(tmp_path) == ["v.zip"]


def test_links_and_devices_are_refused(tmp_path):
    entry = zipfile.ZipInfo("link.wav")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as file:
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(StorageError, match="link or a device"):
        sources.fetch(tmp_path / "v.zip", tmp_path / "into")
    assert everything_under(tmp_path) == ["v.zip"]


def test_a_size_that_lies_is_refused(tmp_path):
    archive = make_zip(tmp_path / "v.zip", {"bomb.wav": bytes(3_000_000)})
    data = archive.read_bytes()
    small = (1000).to_bytes(4, "little")
    archive.write_bytes(data.replace((3_000_000).to_bytes(4, "little"), small))
    with pytest.raises(StorageError):
        sources.fetch(archive, tmp_path / "into")
    assert everything_under(tmp_path) == ["v.zip"]


def test_damaged_empty_and_no_zip(tmp_path):
    archive = make_zip(tmp_path / "v.zip", {"a.wav": wav_bytes()})
    data = bytearray(archive.read_bytes())
    data[60] ^= 0xFF
    archive.write_bytes(data)
    with pytest.raises(StorageError, match="cannot be unpacked"):
        sources.fetch(archive, tmp_path / "into")
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError, match="not a readable zip"):
        sources.fetch(archive, tmp_path / "into")
    with pytest.raises(StorageError, match="holds no files"):
        sources.fetch(make_zip(tmp_path / "e.zip", {}), tmp_path / "into")
    assert everything_under(tmp_path) == ["e.zip", "v.zip"]


def legacy_zip(path, names, page, sound=True):
    """A zip as older programs make it: names in a code page, not marked as UTF-8."""
    raw, entries = [name.encode(page) for name in names], {}
    for i, name in enumerate(raw):
        stand_in = f"{i:02d}".ljust(len(name), "_")
        entries[stand_in] = wav_bytes(i) if sound else b"%d" % i
    data = make_zip(path, entries).read_bytes()
    for stand_in, name in zip(entries, raw, strict=True):
        data = data.replace(stand_in.encode(), name)
    path.write_bytes(data)
    return path


@pytest.mark.case("field F7")
@pytest.mark.parametrize(
    ("page", "names"),
    [
        (
            "cp932",
            ["発表.wav", "代表曲.wav", "能.wav", "私の声/ソ.wav", "歌 1.wav"],
        ),  # the second byte of 表 is a backslash
        ("gbk", ["我的声音/歌曲.wav", "录音.wav", "月亮代表我的心.wav"]),
        ("cp866", ["Мой голос/песня.wav", "запись 2.wav"]),
        ("cp850", ["grün.wav", "Übung 1.wav", "Ærøskøbing.wav"]),
        ("utf-8", ["発表.wav", "grün.wav"]),
    ],
)
def test_names_of_other_programs_zips_are_read_and_nothing_is_lost(tmp_path, page, names):
    folder = sources.fetch(legacy_zip(tmp_path / "a.zip", names, page), tmp_path / "into")
    assert sorted(p for p in everything_under(folder) if p != ".source.json") == sorted(names)
    assert len(audio.find(folder)[0]) == len(names)


@pytest.mark.case("field F7", "red 40")
def test_names_that_macos_takes_for_one_are_kept_apart(tmp_path):
    names = ["e\u0301.wav", "é.wav", "straße.wav", "STRASSE.wav", "A.wav", "a.wav"]
    entries = {name: wav_bytes(i) for i, name in enumerate(names)}
    folder = sources.fetch(make_zip(tmp_path / "a.zip", entries), tmp_path / "into")
    found = [p.name for p in folder.iterdir() if p.suffix == ".wav"]
    keys = {unicodedata.normalize("NFC", name).casefold() for name in found}
    assert len(found) == len(keys) == len(names)
    assert sorted((folder / name).read_bytes() for name in found) == sorted(entries.values())


def with_method(path, method):
    """A zip whose only entry says that it is packed by another method."""
    data = bytearray(make_zip(path, {"a.wav": wav_bytes()}).read_bytes())
    for mark, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = data.index(mark) + place
        data[at : at + 2] = method.to_bytes(2, "little")
    path.write_bytes(data)
    return path


@pytest.mark.case("field F5", "red 06")
@pytest.mark.parametrize(("method", "name"), [(9, "deflate64"), (98, "ppmd"), (12, "bzip2"), (93, "93")])
def test_another_method_of_packing_is_named(tmp_path, method, name):
    with pytest.raises(StorageError) as error:
        sources.fetch(with_method(tmp_path / "a.zip", method), tmp_path / "into")
    assert name in str(error.value)
    assert_explains(error.value, path=tmp_path / "a.zip", remedy="ordinary compression")
    assert not (tmp_path / "into").exists()


@pytest.mark.case("red 06")
def test_many_small_bombs_are_one_bomb(tmp_path):
    """Each entry is below the size from which its own ratio is looked at."""
    path = make_zip(tmp_path / "a.zip", {f"{i}.wav": bytes(15 << 20) for i in range(3)})
    assert path.stat().st_size < 100_000
    with pytest.raises(StorageError):
        sources.fetch(path, tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.case("field F11")
def test_a_part_of_a_split_zip_and_a_padded_one_are_told_what_they_are(tmp_path):
    whole = make_zip(tmp_path / "a.zip", {"a.wav": wav_bytes()}).read_bytes()
    at = whole.rindex(b"PK\5\6")
    (tmp_path / "a.zip").write_bytes(whole[: at + 4] + b"\2\0\2\0" + whole[at + 8 :])
    (tmp_path / "b.zip").write_bytes(whole + bytes(70_000))
    for name, remedy in (("a.zip", "join"), ("b.zip", "again")):
        with pytest.raises(StorageError) as error:
            sources.fetch(tmp_path / name, tmp_path / "into")
        assert_explains(error.value, path=tmp_path / name, remedy=remedy)
        assert error.value.errno is None  # not the disk


@pytest.mark.case("field F13")
def test_a_zip_in_a_zip_is_named(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"a.wav": wav_bytes()})
    folder = sources.fetch(make_zip(tmp_path / "a.zip", {"inner.zip": inner.read_bytes()}), tmp_path / "into")
    usable, [(path, reason)] = audio.find(folder)
    assert not usable and path.name == "inner.zip"
    assert_explains(StorageError(reason), path=path, remedy="unpack")


@pytest.mark.case("B6")
def test_names_that_collide_are_kept_apart(tmp_path):
    entries = {"A.wav": wav_bytes(0), "a.wav": wav_bytes(1), "a?.wav": wav_bytes(2), "x" * 300 + ".wav": wav_bytes(3)}
    folder = sources.fetch(make_zip(tmp_path / "v.zip", entries), tmp_path / "into")
    found = audio.find(folder)[0]
    assert {p.read_bytes() for p in found} == set(entries.values())
    assert len({p.name.lower() for p in found}) == 4


# The web --------------------------------------------------------------------------------------------------------------


def test_a_zip_and_a_file_from_the_web_once(tmp_path, web):
    folder, address, asked = web
    make_zip(folder / "my voice.zip", {"a.wav": wav_bytes(), "b.wav": wav_bytes(1)})
    (folder / "one.wav").write_bytes(wav_bytes(2))
    told = []
    got = sources.fetch(f"{address}/my%20voice.zip", tmp_path / "into", lambda fraction, text: told.append(fraction))
    assert [p.name for p in audio.find(got)[0]] == ["a.wav", "b.wav"] and told and max(told) <= 1.0
    one = sources.fetch(f"{address}/one.wav", tmp_path / "into")
    assert [p.name for p in audio.find(one)[0]] == ["one.wav"] and one != got
    n = len(asked)
    assert sources.fetch(f"{address}/my%20voice.zip", tmp_path / "into") == got and len(asked) == n
    assert sources.fetched(f"{address}/one.wav", tmp_path / "into")
    assert not sources.fetched(f"{address}/two.wav", tmp_path / "into")


@pytest.mark.case("I4")
def test_pages_failures_and_strange_addresses(tmp_path, web):
    folder, address, _ = web
    (folder / "page.zip").write_text("<!DOCTYPE html><html>Too many users have viewed this file</html>")
    for where, words in [
        (f"{address}/page.zip", "web page"),
        (f"{address}/absent.zip", "could not be fetched.*404"),
        ("http://127.0.0.1:9/x.zip", "could not be fetched"),
        ("file:///etc/passwd", "not a web address"),
        ("ftp://127.0.0.1/x.zip", "not a web address"),
        ("https://", "not a web address"),
        ("https://drive.google.com/drive/my-drive", "not a share link"),
    ]:
        with pytest.raises(StorageError, match=words) as error:
            sources.fetch(where, tmp_path / "into")
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "into").exists()


@pytest.fixture
def odd_web():
    """A web server that misbehaves by the path it is asked for; the encodings that it was offered."""
    offered = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            offered.append(self.headers["Accept-Encoding"])
            kind = self.path.partition("?")[0].strip("/").partition(".")[0]
            self.send_response(302 if kind in ("inside", "loop") else 200)
            if kind in ("inside", "loop"):
                port = self.server.server_port
                self.send_header("Location", f"http://localhost:{port}/one.wav" if kind == "inside" else "/loop.wav")
            if kind == "short":
                self.send_header("Content-Length", "1000000")
            if kind == "packed":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range({"endless": 10**6, "slow": 400, "packed": 1}.get(kind, 0)):
                    self.wfile.write(
                        gzip.compress(bytes(1 << 22))
                        if kind == "packed"
                        else bytes(1 << 16 if kind == "endless" else 1)
                    )
                    time.sleep(0.01 if kind == "slow" else 0)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", offered
    server.shutdown()


@pytest.mark.case("red 09")
@pytest.mark.parametrize(
    "kind, words", [("endless", "at most"), ("slow", "slower"), ("short", "ended|IncompleteRead"), ("loop", "times")]
)
def test_downloads_end(tmp_path, odd_web, monkeypatch, kind, words):
    monkeypatch.setitem(budget.LIMITS, "download", budget.Cost(disk_bytes=1 << 22))
    monkeypatch.setattr(sources, "PATIENCE_S", 0.2)
    began = time.monotonic()
    with pytest.raises(StorageError, match=words):
        sources.fetch(f"{odd_web[0]}/{kind}.wav", tmp_path / "into")
    assert not (tmp_path / "into").exists() and time.monotonic() - began < 60


@pytest.mark.case("red 09")
def test_a_download_fills_no_disk(tmp_path, odd_web, monkeypatch):
    monkeypatch.setattr(budget, "SPARE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="Not enough space"):
        sources.fetch(f"{odd_web[0]}/endless.wav", tmp_path / "into")


@pytest.mark.case("red 09")
def test_what_arrives_packed_is_not_unpacked(tmp_path, odd_web):
    address, offered = odd_web
    got = sources.fetch(f"{address}/packed.wav", tmp_path / "into")
    assert offered == ["identity"] and (got / "packed.wav").stat().st_size < 10_000


@pytest.mark.case("red 09")
def test_a_redirection_into_this_machine_is_not_followed(tmp_path, odd_web, monkeypatch):
    monkeypatch.setattr(sources, "_is_local", lambda address: "localhost" in address)
    with pytest.raises(StorageError, match="address of this machine"):
        sources.fetch(f"{odd_web[0]}/inside.wav", tmp_path / "into")
    assert len(odd_web[1]) == 1
    monkeypatch.undo()
    for address, local in {"http://127.1.2.3/": True, "http://192.168.1.1": True, "http://1.1.1.1/x": False}.items():
        assert sources._is_local(address) is local


@pytest.mark.case("red 09", "red 22")
def test_the_secret_part_of_an_address_is_kept_and_shown_nowhere(tmp_path, web):
    folder, address, _ = web
    (folder / "one.wav").write_bytes(wav_bytes())
    secret = address.replace("//", "//jane:pa55@") + "/{}?token=t0ken"
    got = sources.fetch(secret.format("one.wav"), tmp_path / "into")
    assert "/one.wav" in (got / unzip.RECORD_NAME).read_text()
    with pytest.raises(StorageError, match="absent.wav") as absent:
        sources.fetch(secret.format("absent.wav"), tmp_path / "into")
    with pytest.raises(StorageError) as closed:
        sources.fetch("http://jane:pa55@127.0.0.1:9/x.wav?token=t0ken", tmp_path / "into")
    for text in (str(absent.value), str(closed.value), str(got), (got / unzip.RECORD_NAME).read_text()):
        assert "pa55" not in text and "t0ken" not in text


def test_google_drive_links(tmp_path, monkeypatch):
    import gdown

    calls = []

    def download(id=None, output=None, quiet=False, use_cookies=True):
        calls.append(id)
        make_zip(Path(output) / "voice.zip", {"a.wav": wav_bytes()})
        return os.fspath(Path(output) / "voice.zip")

    def download_folder(url=None, output=None, quiet=False, use_cookies=True):
        calls.append(url)
        for i in range(2):
            (Path(output) / "sub").mkdir(exist_ok=True)
            (Path(output) / "sub" / f"{i}.wav").write_bytes(wav_bytes(i))

    monkeypatch.setattr(gdown, "download", download)
    monkeypatch.setattr(gdown, "download_folder", download_folder)
    identity = "1AbCdEfGhIjKlMnOp-_x"
    got = sources.fetch(f"https://drive.google.com/file/d/{identity}/view?usp=sharing", tmp_path / "into")
    assert calls == [identity] and [p.name for p in audio.find(got)[0]] == ["a.wav"]
    sources.fetch(f"https://drive.google.com/open?id={identity}", tmp_path / "into")
    assert calls == [identity] * 2
    got = sources.fetch(f"https://drive.google.com/drive/folders/{identity}?usp=sharing", tmp_path / "into")
    assert [p.name for p in audio.find(got)[0]] == ["0.wav", "1.wav"]

    def refuse(**kwargs):
        raise RuntimeError("Cannot retrieve the public link of the file.\nmany\nlines")

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(StorageError, match="Share it with everybody"):
        sources.fetch(f"https://drive.google.com/file/d/{identity}x/view", tmp_path / "into")


def test_the_real_gdown_takes_what_we_give_it():
    import inspect

    import gdown

    assert {"id", "output", "quiet", "use_cookies"} <= set(inspect.signature(gdown.download).parameters)
    assert {"url", "output", "quiet", "use_cookies"} <= set(inspect.signature(gdown.download_folder).parameters)
