"""Where svclib writes and whom it calls: into the folders it was given, and nobody.

Truths: Python's own audit events during a whole journey (``watched.py``); what lies in a fresh home folder afterwards;
and the system itself: where it lets a process cut itself off, the journey runs in a network that leads nowhere, and
nothing but the chosen, the home and the temporary folder can be written at all.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# $1 stays writable but for $1/here, where the journey starts; the rest of the disk is read-only, the network empty
ALONE = """
mount --bind "$1" "$1"; mount --bind "$1/here" "$1/here"
mount -o remount,bind,ro "$1/here"; mount -o remount,bind,ro /
cd "$1/here"; shift; exec "$@"
"""
CACHES = (".cache/matplotlib", ".config/matplotlib", ".cache/numba")  # what these libraries keep for themselves


def _journey(kind: str, base: Path, python: str = sys.executable) -> tuple[Path, dict]:
    for name in ("home", "tmp", "here", "chosen"):
        (base / name).mkdir()
    # none of the switches that a library takes for "nobody is there": it must be silent on a person's machine
    strip = ("XDG_", "SVCLIB_", "MPL", "NUMBA_", "ORT_", "HF_", "TF_", "TORCH", "TRITON_")
    strip += ("CI", "GITHUB_", "BUILD", "PYTEST_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(strip)}
    environment |= {"HOME": str(base / "home"), "TMPDIR": str(base / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= dict.fromkeys(("USER", "LOGNAME"), "jane-of-the-test")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS.parent), environment.get("PYTHONPATH")]))
    alone = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-ec", ALONE, "sh", str(base)]
    try:
        locked = subprocess.run([*alone, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        locked = False
    command = [python, TESTS / "helpers" / "watched.py", kind, base / "chosen", base / "report.json"]
    command = [*alone, *command] if locked else command
    answer = subprocess.run(command, cwd=base / "here", env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return base, json.loads((base / "report.json").read_text()) | {"locked": locked}


@pytest.fixture(scope="module", params=["quick", pytest.param("whole", marks=pytest.mark.slow)])
def watched(request, tmp_path_factory):
    return _journey(request.param, tmp_path_factory.mktemp("watched"))


@pytest.mark.case("J3")
def test_nothing_is_written_outside_the_chosen_folders(watched):
    """Besides them: temporary files, gone at the end, and the caches that numba and matplotlib keep for themselves."""
    base, report = watched
    chosen = [p for p in report["written"] if p.startswith(str(base / "chosen") + os.sep)]
    assert len(chosen) > 20, "the watch sees nothing"
    home = [base / "home" / cache for cache in CACHES]
    allowed = {str(folder) for cache in home for folder in (cache, *cache.parents)}  # made on the way to them
    inside = (str(base / "chosen"), str(base / "tmp"), *(f"{cache}{os.sep}" for cache in home), os.devnull)
    others = [p for p in report["written"] if p not in allowed and not p.startswith(inside)]
    # numba keeps what it compiled beside the library where it may
    assert [p for p in others if "__pycache__" not in p and Path(p).suffix not in (".nbi", ".nbc")] == []
    left = [
        p
        for p in (base / "home").rglob("*")
        if p.is_file() and not p.is_relative_to(base / "home" / ".cache" / "numba")
    ]
    assert [p for p in left if not any(p.is_relative_to(cache) for cache in home)] == []
    assert list((base / "here").iterdir()) == []
    # torch makes an empty folder for compilations that it is not asked for
    assert [p for p in (base / "tmp").rglob("*") if not p.name.startswith("torchinductor_")] == []


@pytest.mark.case("I4", "J3")
def test_nobody_is_called(watched):
    """No name is looked up, no address connected to or listened at, by any command that was given no link."""
    _, report = watched
    assert report["called"] == []
    if report["locked"]:
        assert report["packets"] in (0, None)  # of any library, also of what is not Python


@pytest.mark.case("red 22")
def test_nothing_that_may_be_shared_names_a_place_a_person_or_a_machine(watched):
    """Recordings, dataset, run with its log and TensorBoard files, instrument, result, report and lesson."""
    base, _ = watched
    names = [str(base), "jane-of-the-test", "janes-machine-7"]
    files = [p for p in (base / "chosen").rglob("*") if p.is_file()]
    assert len(files) > 20 and {".html", ".zip", ".wav", ".jsonl", ".json", ".safetensors"} <= {p.suffix for p in files}
    for path in files:
        inside = str(path.relative_to(base)).encode() + path.read_bytes()
        assert not [name for name in names if name.encode() in inside], path


@pytest.mark.case("I3")
@pytest.mark.slow
@pytest.mark.may_be_skipped
def test_other_pythons_make_the_same_journey(tmp_path):
    """Every Python with svclib's packages that ``SVCLIB_TEST_PYTHONS`` names (paths, as in PATH) or the PATH holds."""
    found = [p for p in os.environ.get("SVCLIB_TEST_PYTHONS", "").split(os.pathsep) if p]
    found += [p for p in map(shutil.which, ("python3.12", "python3.13", "python3.14")) if p and _has_packages(p)]
    if not found:
        pytest.skip("no other Python with svclib's packages: name some in SVCLIB_TEST_PYTHONS")
    for i, python in enumerate(found):
        (tmp_path / f"{i}").mkdir()
        base, report = _journey("quick", tmp_path / f"{i}", python)
        assert report["called"] == [] and len(report["written"]) > 20, python
        assert (base / "chosen" / "lesson.html").stat().st_size > 10_000, python


def _has_packages(python: str) -> bool:
    code = "import accelerate, gin, librosa, onnxruntime, safetensors, swift_f0, torch"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def test_the_watch_sees_what_it_is_for(tmp_path):
    """A write through a folder's handle, a look-up and a removal are all noticed; nothing gets through."""
    code = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
import watched
before = watched.packets()
sys.addaudithook(watched._watch)
handle = os.open(sys.argv[2], os.O_RDONLY)
os.mkdir("made", dir_fd=handle)
os.rmdir("made", dir_fd=handle)
open(os.path.join(sys.argv[2], "kept"), "w").close()
try:
    socket.create_connection(("example.invalid", 80))
except OSError as error:
    print(error)
print(sorted(watched.written) == sorted(os.path.join(sys.argv[2], n) for n in ("kept", "made")), len(watched.called))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code, TESTS / "helpers", tmp_path], capture_output=True, text=True, check=True
    )
    said, last = answer.stdout.splitlines()
    assert said.startswith("cut off: socket.getaddrinfo") and last == "True 1"
