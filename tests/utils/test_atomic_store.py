"""What is committed stays committed, whatever fails when.

Truths: every operation of a commit failing once (full disk, I/O error, process killed) leaves the old or the new state,
both whole; SHA-256 against hashlib; names already taken are never overwritten; the mount path is never made by us.
"""

import errno
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import faults
import numpy as np
import pytest

from svclib.utils import atomic_store, filesystem, workspace
from svclib.utils.errors import StorageError

BIG = 3 * filesystem.CHUNK_BYTES + 17


def payload(seed: int, size: int = BIG) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def visible(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith(atomic_store.PART_PREFIX)}


@pytest.mark.case("F5")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("stays", [False, True])
def test_every_failing_operation_leaves_old_or_new_bytes(tmp_path, number, stays):
    path = tmp_path / "file.bin"
    old, new = payload(1), payload(2)
    atomic_store.commit_bytes(path, old)
    with faults.failing() as counter:
        atomic_store.commit_bytes(path, new)
    assert path.read_bytes() == new
    assert counter.count >= 8  # open, 4 writes, reopen, fsync, replace, folder
    for n in range(1, counter.count + 1):
        atomic_store.commit_bytes(path, old)
        with faults.failing(n, number, stays=stays), pytest.raises(StorageError) as caught:
            atomic_store.commit_bytes(path, new)
        assert caught.value.errno == number
        assert "file.bin" in str(caught.value) or str(tmp_path) in str(caught.value)
        assert path.read_bytes() in (old, new), n
        assert visible(tmp_path) == {"file.bin"}
        if number == errno.ENOSPC:
            assert "MB" in str(caught.value)
    atomic_store.commit_bytes(path, new)
    assert path.read_bytes() == new


@pytest.mark.parametrize("commit", ["file", "new", "marked"])
def test_contents_reach_the_disk_before_their_name_and_the_name_before_success(tmp_path, commit):
    """Power loss: of a file that has its name the contents are forced to the disk, then the folder's entry."""
    with faults.failing() as disk:
        if commit == "file":
            atomic_store.commit_bytes(tmp_path / "a.bin", b"new")
        elif commit == "new":
            atomic_store.commit_new(tmp_path / "a.bin", lambda part: atomic_store.write_bytes(part, [b"new"]))
        else:
            atomic_store.put_marked(tmp_path / "a.bin", lambda part: atomic_store.write_bytes(part, [b"new"]))
    written = [name for name in disk.log if name in ("write", "fsync", "replace", "link", "fsync_folder")]
    once = ["write", "fsync", "link" if commit == "new" else "replace", "fsync_folder"]
    assert written == (once if commit != "marked" else once * 2)


@pytest.mark.case("E2")
def test_killed_at_every_operation(tmp_path):
    """A process that dies before or after each operation of put_marked: earlier marked files still load."""
    child = (
        f"import sys; sys.path[:0] = {[str(Path(faults.__file__).parent), str(Path(__file__).parents[2])]!r}\n"
        "import faults; from svclib.utils import atomic_store as store, filesystem; from pathlib import Path\n"
        "n, after, folder = int(sys.argv[1]), sys.argv[2] == '1', Path(sys.argv[3])\n"
        "faults.install(n or None, 'exit', after=after)\n"
        "store.put_marked(folder / 'ck-2.bin', lambda p: store.write_bytes(p, [b'new' * 700000]), {'step': 2})\n"
        "print(filesystem.active.count)\n"
    )

    def run(n, after, folder):
        folder.mkdir()
        atomic_store.put_marked(folder / "ck-1.bin", lambda p: p.write_bytes(b"old"), {"step": 1})
        return subprocess.run(
            [sys.executable, "-c", child, str(n), str(int(after)), str(folder)],
            capture_output=True,
            text=True,
            timeout=60,
        )

    total = int(run(0, False, tmp_path / "count").stdout)
    committed = 0
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        assert run(n, n % 2 == 0, folder).returncode == faults.EXIT_STATUS
        found = {m.path.name: m for m in atomic_store.find_marked(folder, "ck-*.bin")}
        assert atomic_store.verify(found["ck-1.bin"]) is None and found["ck-1.bin"].path.read_bytes() == b"old"
        if "ck-2.bin" in found and found["ck-2.bin"].problem is None:
            committed += 1
            assert atomic_store.verify(found["ck-2.bin"]) is None, "a marker promises a whole payload"
        assert atomic_store.remove_parts(folder) <= 1
        assert not list(folder.glob(".part-*"))
        if "ck-2.bin" not in found or found["ck-2.bin"].problem:  # and the next run can commit it
            atomic_store.put_marked(folder / "ck-2.bin", lambda p: p.write_bytes(b"again"))
            assert [m.problem for m in atomic_store.find_marked(folder, "ck-*.bin")] == [None, None]
    assert 1 <= committed <= 4  # only a death after the marker's rename leaves it committed


def test_parts_of_living_processes_are_kept(tmp_path):
    mine = tmp_path / f"{atomic_store.PART_PREFIX}{filesystem.process_scope()}~{os.getpid()}~x.wav"
    mine.write_bytes(b"x")
    other = tmp_path / f"{atomic_store.PART_PREFIX}elsewhere~1~x.wav"
    other.write_bytes(b"x")
    assert atomic_store.remove_parts(tmp_path) == 0
    os.utime(other, (0, 0))
    assert atomic_store.remove_parts(tmp_path) == 1 and mine.exists()


def test_interrupt_in_the_writer_keeps_the_old_file(tmp_path):
    path = atomic_store.commit_bytes(tmp_path / "a.bin", b"old")

    def interrupted(part):
        part.write_bytes(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_store.commit_file(path, interrupted)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_the_writer_sees_the_suffix_and_its_own_errors_pass(tmp_path):
    seen = []
    atomic_store.commit_file(tmp_path / "x.flac", lambda p: (seen.append(p), p.write_bytes(b"")))
    assert seen[0].suffix == ".flac" and seen[0].parent == tmp_path
    with pytest.raises(ZeroDivisionError):
        atomic_store.commit_file(tmp_path / "y.flac", lambda p: 1 / 0)
    with pytest.raises(StorageError, match="absent.bin"):
        atomic_store.copy_file(tmp_path / "absent.bin", tmp_path / "z.bin")
    assert os.listdir(tmp_path) == ["x.flac"]


@pytest.mark.parametrize("links", [True, False])
def test_commit_new_never_overwrites(tmp_path, links, monkeypatch):
    if not links:
        monkeypatch.setattr(filesystem.active, "link", faults.refuse(errno.ENOTSUP))
    names = [
        atomic_store.commit_new(tmp_path / "My song.wav", lambda p, i=i: p.write_bytes(b"%d" % i)).name
        for i in range(3)
    ]
    assert names == ["My song.wav", "My song 2.wav", "My song 3.wav"]
    assert [(tmp_path / n).read_bytes() for n in names] == [b"0", b"1", b"2"]
    long = "ä" * 120 + ".wav"  # 244 bytes
    pair = [atomic_store.commit_new(tmp_path / long, lambda p: p.write_bytes(b"x")) for _ in range(2)]
    assert pair[0].name == long and pair[1].name.endswith(" 2.wav") and len(pair[1].name.encode()) <= 255
    assert len(os.listdir(tmp_path)) == 5


def test_commit_new_in_a_race_and_with_every_operation_failing(tmp_path):
    """Somebody takes the name between the look and the placing; and each operation fails once."""

    def sneaky(part):
        part.write_bytes(b"mine")
        (tmp_path / "a.wav").write_bytes(b"theirs")

    assert atomic_store.commit_new(tmp_path / "a.wav", sneaky).read_bytes() == b"mine"
    assert (tmp_path / "a.wav").read_bytes() == b"theirs"
    n = 1
    while True:
        with faults.failing(n, errno.EIO) as faulty:
            try:
                atomic_store.commit_new(tmp_path / "a.wav", lambda p: p.write_bytes(b"whole"))
            except StorageError:
                pass
        if faulty.count < n:
            break
        n += 1
    assert n >= 4
    contents = {p.read_bytes() for p in tmp_path.glob("a*.wav")}
    assert contents <= {b"theirs", b"mine", b"whole"}, "no half and no empty file under a real name"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("taken", ["a.wav", "a.wav.json"])
def test_a_name_that_is_taken_after_the_look_stays_what_it_is(tmp_path, monkeypatch, taken, links):
    """Another process makes the sound or its settings when this one has just seen that both names are free."""
    if not links:
        monkeypatch.setattr(filesystem.active, "link", faults.refuse(errno.ENOTSUP))
    seen, exists = [], Path.exists

    def look(path):
        found = exists(path)
        if path.name == "a.wav.json" and not seen:
            seen.append((tmp_path / taken).write_bytes(b"theirs"))
        return found

    monkeypatch.setattr(Path, "exists", look)
    made = atomic_store.commit_new(tmp_path / "a.wav", lambda p: p.write_bytes(b"mine"), lambda p: b"settings")
    assert seen and made.name == "a 2.wav" and (tmp_path / taken).read_bytes() == b"theirs"
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {taken: b"theirs", "a 2.wav": b"mine", "a 2.wav.json": b"settings"}


def test_remove_truncates_first_but_never_a_file_with_a_second_name(tmp_path, monkeypatch):
    path = atomic_store.commit_bytes(tmp_path / "big.bin", b"x" * 1000)
    sizes = []
    plain = filesystem.active.remove
    monkeypatch.setattr(filesystem.active, "remove", lambda p: (sizes.append(p.stat().st_size), plain(p)))
    atomic_store.remove(path)
    assert sizes == [0] and not path.exists()
    atomic_store.remove(path)  # absent: nothing to do
    keep = atomic_store.commit_bytes(tmp_path / "keep.bin", b"keep")
    os.link(keep, tmp_path / "second.bin")
    atomic_store.remove(tmp_path / "second.bin")
    assert keep.read_bytes() == b"keep"
    os.symlink(keep, tmp_path / "link.bin")
    atomic_store.remove(tmp_path / "link.bin")
    assert keep.read_bytes() == b"keep"


def test_sha256_against_hashlib(tmp_path):
    for size in (0, 1, filesystem.CHUNK_BYTES, BIG):
        data = payload(3, size)
        assert (
            filesystem.sha256_file(atomic_store.commit_bytes(tmp_path / "f", data)) == hashlib.sha256(data).hexdigest()
        )


def test_marked_files_tell_what_is_wrong(tmp_path):
    for step in (9, 10, 100):
        atomic_store.put_marked(
            tmp_path / f"ck-{step}.safetensors", lambda p, s=step: p.write_bytes(b"%d" % s * 50), {"step": step}
        )
    found = atomic_store.find_marked(tmp_path, "ck-*.safetensors")
    assert [m.info["step"] for m in found] == [9, 10, 100] and not any(m.problem for m in found)
    assert all(atomic_store.verify(m) is None for m in found)
    with pytest.raises(StorageError, match="already committed"):
        atomic_store.put_marked(tmp_path / "ck-10.safetensors", lambda p: p.write_bytes(b"x"))
    assert (tmp_path / "ck-10.safetensors").read_bytes() == b"10" * 50

    (tmp_path / "ck-11 (1).safetensors").write_bytes(b"foreign")
    (tmp_path / "ck-9.safetensors").write_bytes(b"")
    flipped = bytearray((tmp_path / "ck-100.safetensors").read_bytes())
    flipped[20] ^= 4
    (tmp_path / "ck-100.safetensors").write_bytes(flipped)
    atomic_store.put_marked(tmp_path / "ck-101.safetensors", lambda p: p.write_bytes(b"x"))
    (tmp_path / "ck-101.safetensors").unlink()
    atomic_store.put_marked(tmp_path / "ck-102.safetensors", lambda p: p.write_bytes(b"x"))
    (tmp_path / "ck-102.ok.json").write_bytes(b"")
    found = {m.path.name: m for m in atomic_store.find_marked(tmp_path, "ck-*.safetensors")}
    assert "no marker" in found["ck-11 (1).safetensors"].problem
    assert "0 bytes instead of 50" in found["ck-9.safetensors"].problem
    assert found["ck-100.safetensors"].problem is None  # same size: only the full check can know
    assert "checksum" in atomic_store.verify(found["ck-100.safetensors"])
    assert "missing" in found["ck-101.safetensors"].problem
    assert "marker is damaged" in found["ck-102.safetensors"].problem
    atomic_store.remove_marked(found["ck-100.safetensors"])
    assert "ck-100" not in "".join(os.listdir(tmp_path))


def test_pieces_of_any_size_are_the_bytes_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_store, "CHUNK_BYTES", 10)
    rng = random.Random(0)
    for sizes in ([], [0], [10], [11], [9, 1, 1], [35, 3, 0, 10, 4, 7, 21], [rng.randrange(25) for _ in range(60)]):
        pieces = [rng.randbytes(n) for n in sizes]
        path = atomic_store.commit_bytes(tmp_path / "x.bin", *(memoryview(p) if len(p) % 2 else p for p in pieces))
        assert path.read_bytes() == b"".join(pieces), sizes


def test_every_bit_flip_is_noticed(tmp_path):
    marked = atomic_store.put_marked(tmp_path / "a.bin", lambda p: p.write_bytes(payload(5, 4000)))
    whole = marked.path.read_bytes()
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 200):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << (bit % 8)
        marked.path.write_bytes(broken)
        assert atomic_store.verify(marked)
    marked.path.write_bytes(whole)
    assert atomic_store.verify(marked) is None


def test_a_payload_that_reads_back_differently_gets_no_marker(tmp_path, monkeypatch):
    plain = filesystem.active.replace

    def lossy(a, b):
        plain(a, b)
        if b.suffix == ".bin":
            b.write_bytes(b"")

    monkeypatch.setattr(filesystem.active, "replace", lossy)
    with pytest.raises(StorageError, match="reads back differently"):
        atomic_store.put_marked(tmp_path / "a.bin", lambda p: p.write_bytes(b"abc"))
    assert "no marker" in atomic_store.find_marked(tmp_path, "*.bin")[0].problem


def test_json(tmp_path):
    value = {"b": [1, 2.5, None], "a": "schön 🎵"}
    path = atomic_store.write_json(tmp_path / "deep" / "v.json", value)
    assert filesystem.read_json(path) == value
    first = path.read_bytes()
    atomic_store.write_json(path, dict(reversed(value.items())))
    assert path.read_bytes() == first
    with pytest.raises(ValueError):
        atomic_store.write_json(path, {"x": float("nan")})
    assert path.read_bytes() == first
    for text in ("", "{", '{"a": NaN}', "[" * 100000, "\xff"):
        (tmp_path / "bad.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(StorageError, match="bad.json"):
            filesystem.read_json(tmp_path / "bad.json")
    with pytest.raises(StorageError, match="There is no file"):
        filesystem.read_json(tmp_path / "none.json")


def test_log_lines_survive_a_torn_end(tmp_path):
    path = tmp_path / "log.jsonl"
    atomic_store.append_lines(path, [{"step": 1}])
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo')
    atomic_store.append_lines(path, [{"step": 3}])
    atomic_store.append_lines(path, [{"step": 4}])
    assert [r["step"] for r in filesystem.read_lines(path)] == [1, 3, 4]
    assert filesystem.read_lines(tmp_path / "none") == []


def test_copy_tree_copies_what_changed(tmp_path):
    atomic_store.commit_bytes(tmp_path / "a" / "x" / "1", b"one")
    atomic_store.commit_bytes(tmp_path / "a" / "2", b"two")
    assert len(atomic_store.copy_tree(tmp_path / "a", tmp_path / "b")) == 2
    atomic_store.commit_bytes(tmp_path / "a" / "2", b"two more")
    assert [p.name for p in atomic_store.copy_tree(tmp_path / "a", tmp_path / "b")] == ["2"]
    assert (tmp_path / "b" / "2").read_bytes() == b"two more"
    assert atomic_store.copy_tree(tmp_path / "a", tmp_path / "b") == []
    atomic_store.commit_bytes(tmp_path / "a" / "2", b"two mere")  # as many bytes, but newer
    os.utime(tmp_path / "b" / "2", (1e9, 1e9))
    assert [p.name for p in atomic_store.copy_tree(tmp_path / "a", tmp_path / "b")] == ["2"]


def test_copies_read_and_write_through_the_active_disk(tmp_path):
    """A copy of a file meets the same faults as any other writing, so that tests of a failing disk cover it."""
    atomic_store.commit_bytes(tmp_path / "a", payload(3, 1000))
    for name in ("read", "write"):
        with faults.failing(1, errno.ENOSPC, only=name), pytest.raises(StorageError) as caught:
            atomic_store.copy_file(tmp_path / "a", tmp_path / "b")
        assert caught.value.errno == errno.ENOSPC and not (tmp_path / "b").exists()


def test_a_writer_may_return_the_checksum_so_that_the_file_is_read_once(tmp_path):
    with faults.failing(only="read") as counter:
        marked = atomic_store.put_marked(tmp_path / "a.bin", lambda p: atomic_store.write_bytes(p, [b"abc", b"def"]))
    assert marked.info["sha256"] == hashlib.sha256(b"abcdef").hexdigest() and atomic_store.verify(marked) is None
    assert counter.count == 2  # the block, and its end


def test_free_space_check_names_the_megabytes(tmp_path):
    filesystem.free_space_check(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match=r"1000000000 MB are needed, \d+ MB are free"):
        filesystem.free_space_check(tmp_path, 10**15)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b\\c", "a b c"),
        ("../../etc", "etc"),
        ("Łódź (live) 🎵 $(x)", "Łódź (live) 🎵 $(x)"),
        (" .. ", "untitled"),
        ("x\ny\0", "x y"),
    ],
)
def test_safe_name(text, name):
    assert filesystem.safe_name(text) == name


@pytest.mark.case("B5")
def test_safe_name_is_short_enough():
    assert len(filesystem.safe_name("🎵" * 200).encode()) <= 120


@pytest.mark.case("red 24")
@pytest.mark.parametrize(
    "text", ["👩‍🎤", "می\u200cخواهم", "Grün", "　ー", "🏴\U000e0067\U000e0062\U000e007f", "a" * 255, "क्\u200dष"]
)
def test_names_of_every_script_are_names(text):
    assert filesystem.is_name(text) and filesystem.as_name(text) == text


@pytest.mark.case("red 37")
@pytest.mark.parametrize(
    "text", ["", "a\nb", "\x1b]0;x\x07", "\x9b31m", "a\u2028b", "a\u202egpj.wav", "gr\udcfcn", "\ud800", "a" * 256, 5]
)
def test_what_is_no_name_becomes_one(text):
    assert not filesystem.is_name(text)
    if isinstance(text, str) and text:
        assert filesystem.is_name(filesystem.as_name(text))


@pytest.mark.case("red 37")
def test_file_names_in_other_encodings_are_read():
    """As they arrive from a disk: bytes that are not UTF-8 are lone surrogates."""
    pages = {"latin-1": "grün.wav", "cp850": "grün.wav", "cp932": "発表会.wav", "cp866": "Мой голос.wav"}
    for page, name in pages.items():
        assert filesystem.as_name(name.encode(page).decode("utf-8", "surrogateescape")) == name
        assert filesystem.safe_name(name.encode(page).decode("utf-8", "surrogateescape")) == name
    assert filesystem.as_name("e\u0301") == "é"


@pytest.mark.case("red 40")
def test_names_that_some_systems_take_for_one():
    for one, other in (("é", "e\u0301"), ("straße", "STRASSE"), ("Ａ", "ａ"), ("İ", "i\u0307"), ("ﬁ", "FI")):
        assert filesystem.name_key(one) == filesystem.name_key(other)
    assert filesystem.name_key("a") != filesystem.name_key("á")


@pytest.mark.case("P2")
def test_base_folder_local(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "on_colab", lambda: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SVCLIB_HOME", raising=False)
    assert workspace.base_folder().root == tmp_path / "svclib_home"
    monkeypatch.setenv("SVCLIB_HOME", str(tmp_path / "elsewhere"))
    base = workspace.base_folder()
    assert base.root == tmp_path / "elsewhere" and base.instruments.is_dir() and not base.on_drive
    assert os.listdir(base.root / "audio") == [] and not list(base.root.glob(".part*"))
    assert workspace.base_folder(base=tmp_path / "mine").output == tmp_path / "mine" / "output"


@pytest.mark.case("P2", "F1", "user drive")
def test_base_folder_on_colab(tmp_path, monkeypatch):
    """Mounted: not mounted again. Not mounted: asked once; who declines gets a local folder and a sentence, and a path
    on Drive that was asked for is refused and not made."""
    mount = tmp_path / "drive"
    monkeypatch.setattr(filesystem, "DRIVE_MOUNT", mount)
    monkeypatch.setattr(workspace, "DRIVE", mount / "MyDrive")
    monkeypatch.setattr(workspace, "COLAB_DISK", tmp_path / "content")
    monkeypatch.setattr(workspace, "on_colab", lambda: True)
    calls = []
    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=lambda where: calls.append(where))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    with pytest.raises(StorageError, match="not mounted"):
        workspace.base_folder(base=mount / "MyDrive" / "mine")
    assert not mount.exists() and calls == [str(mount)]

    def declined(where):
        raise ValueError("mount failed")

    module.drive.mount = declined
    base = workspace.base_folder()
    assert base.root == tmp_path / "content" / "svclib" and base.audio.is_dir() and not base.on_drive
    assert "mount failed" in base.notice and str(base.root) in base.notice and "vanish" in base.notice
    assert not mount.exists()
    module.drive.mount = lambda where: (mount / "MyDrive").mkdir(parents=True)
    assert workspace.base_folder(base=mount / "MyDrive" / "mine").on_drive  # asked for, so it is mounted
    module.drive.mount = declined  # must not be called again
    assert workspace.base_folder().root == mount / "MyDrive" / "svclib" and workspace.base_folder().on_drive


@pytest.mark.case("user 01.2")
def test_a_folder_with_other_things_gets_no_folders(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StorageError) as found:
        workspace.base_folder(base=tmp_path)
    assert found.value.code == "foreign" and str(tmp_path / "svclib") in str(found.value)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    base = workspace.base_folder(base=tmp_path / "svclib")
    (base.root / "notes.txt").write_text("mine")
    assert workspace.base_folder(base=base.root) == base  # it is svclib's already
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").write_text("x")
    assert workspace.base_folder(base=tmp_path / "empty").audio.is_dir()


def test_a_file_and_an_impossible_place_are_no_workspace(tmp_path):
    path = tmp_path / "voice.zip"
    path.write_bytes(b"x")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        workspace.base_folder(base=path)
    with pytest.raises(StorageError, match="No folder can be made"):
        workspace.base_folder(base=path / "below")


@pytest.mark.case("F9")
def test_a_folder_that_may_not_be_written_is_told_at_once(tmp_path):
    with faults.failing(1, errno.EROFS), pytest.raises(StorageError, match="No permission"):
        workspace.base_folder(base=tmp_path / "x")


@pytest.mark.case("F3")
def test_passing_errors_are_tried_again_on_drive_only(tmp_path, monkeypatch):
    with faults.failing(2, errno.EIO), pytest.raises(StorageError):
        atomic_store.commit_bytes(tmp_path / "a", b"1")
    monkeypatch.setattr(filesystem, "DRIVE_MOUNT", tmp_path)
    monkeypatch.setattr(filesystem, "DRIVE_PAUSES_S", (0.0, 0.0))
    with faults.failing(2, errno.ENOTCONN):
        atomic_store.commit_bytes(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    with (
        faults.failing(2, errno.ENOTCONN, stays=True),
        pytest.raises(StorageError, match="Drive connection"),
    ):
        atomic_store.commit_bytes(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"


OWNER = (
    "import sys, svclib.utils.filesystem as d; s = d.ScratchDir('svclib-t-'); print(s.path, flush=True); "
    "sys.stdin.read()"
)


@pytest.mark.case("J6")
def test_scratch_folders_of_killed_processes_are_removed_and_no_others(tmp_path, monkeypatch):
    """Two processes hold one each, the second is killed: only its folder goes, and nothing that only looks like one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = filesystem.ScratchDir("svclib-t-")
    (mine.path / "events").write_bytes(b"x")
    keep = [tmp_path / "svclib-t-somebody", tmp_path / "svclib-other", tmp_path / "svclib-t-link"]
    for folder in keep[:2]:
        (folder / "files").mkdir(parents=True)
    (tmp_path / "svclib-t-somebody" / "owner.part").write_bytes(b"")  # made, not yet locked
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "owner.lock").write_bytes(b"")
    keep[2].symlink_to(tmp_path / "real")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = {"args": [sys.executable, "-c", OWNER], "env": environment, "stdin": -1, "stdout": -1, "text": True}
    with subprocess.Popen(**command) as lives, subprocess.Popen(**command) as killed:
        theirs, left = Path(lives.stdout.readline().strip()), Path(killed.stdout.readline().strip())
        assert theirs.is_dir() and left.is_dir()
        killed.kill()
        killed.wait()
        assert left.is_dir()
        filesystem.ScratchDir("svclib-t-").close()
        assert not left.parent.exists()
        assert theirs.is_dir() and (mine.path / "events").is_file()
        lives.stdin.close()
        lives.wait()
        assert not theirs.parent.exists()  # it ended and tidied up by itself
    assert all(path.exists() for path in keep) and (tmp_path / "real" / "owner.lock").exists()
    mine.close()
    assert not mine.path.parent.exists()
