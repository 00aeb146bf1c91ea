"""The command line: quick to start, plain about mistakes, and the same calls as the notebooks.

Truths: exit statuses and the words of DESIGN's command table; files on disk; numbers compared with the library's own.
"""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from svclib import __main__, audio, commands, singers

COMMANDS = ("demo", "doctor", "prepare", "train", "sweep", "export", "info", "convert", "evaluate")


def run(capsys, *arguments):
    """Status, standard output and standard error of one command."""
    status = __main__.main([str(a) for a in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def short_songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    for name in singers.SINGERS:
        score = singers.Score((singers.Note(60, 0.8, "la"), singers.Note(64, 0.8, "sa")))
        audio.write(folder / f"{name}.wav", singers.sing(name, score, 16000).audio, 16000)
    return folder


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from svclib import __main__; status = __main__.main(['--help']);"
        "heavy = {'torch', 'numpy', 'scipy', 'librosa', 'matplotlib', 'gin', 'tqdm'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    durations = []
    for _ in range(2):
        started = time.monotonic()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        durations.append(time.monotonic() - started)
        assert found.returncode == 0, found.stderr
    assert all(command in found.stdout for command in COMMANDS)
    assert min(durations) < 1.0  # the aim is 0.5; the machine may be busy


def test_every_command_is_there_and_explains_itself(capsys):
    assert set(commands.HANDLERS) == set(COMMANDS)
    for command in COMMANDS:
        status, out, _ = run(capsys, command, "--help")
        assert status == 0 and "usage" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sing"], ["sing"]),
        (["train", "--dataset", "d", "--run", "r", "--config", "c", "--steps", "-1"], ["--steps", "0 or more"]),
        (
            ["train", "--dataset", "d", "--run", "r", "--config", "ddsp_smal"],
            ["ddsp_smal", "Did you mean 'ddsp_small'"],
        ),
        (["convert", "--instrument", "none.zip", "--input", "a.wav", "--out", "b.wav"], ["none.zip"]),
        (["convert", "--instrument", "x.zip", "--input", "a.wav", "--out", "b.m4a"], ["b.m4a", "wav"]),
        (["convert", "--instrument", "x.zip", "--input", "a", "--input", "b", "--out", "c.wav"], ["c.wav", "folder"]),
        (["convert", "--instrument", "x", "--input", "a", "--out", "b", "--key", "high"], ["high", "auto"]),
        (["export", "--run", "nowhere", "--out", "x.zip"], ["nowhere"]),
        (["export", "--run", "nowhere", "--out", "x.tar"], ["x.tar", ".zip"]),
        (["export", "--run", "r", "--out", "x.zip", "--checkpoint", "newest"], ["newest", "best"]),
        (["info", "nothing"], ["nothing", "instrument"]),
        (["demo", "--audio", "somewhere"], ["--song"]),
        (["evaluate", "--reference", "no.wav", "--converted", "no.wav"], ["no.wav"]),
        (["doctor", "--audio", "no folder"], ["no folder"]),
        (["prepare", "--audio", "no folder", "--out", "d", "--config", "ddsp_small"], ["no folder"]),
    ],
    ids=lambda value: " ".join(value[:1]) if value[0] in COMMANDS else "",
)
def test_a_mistake_is_one_or_two_sentences_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *arguments)
    assert status == 2, err
    assert "Traceback" not in err and not out
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    for word in words:
        assert word in err
    assert not [p for p in tmp_path.iterdir() if p.suffix]  # nothing was made


def test_debug_shows_the_traceback(capsys, tmp_path):
    status, _, err = run(capsys, "info", tmp_path / "nothing", "--debug")
    assert status == 2 and "Traceback" in err
    status, _, err = run(capsys, "--debug", "info", tmp_path / "nothing")
    assert status == 2 and "Traceback" in err


def test_interrupt_and_fault_have_their_own_status(capsys, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    def broken(arguments):
        raise IndexError("list index out of range")

    monkeypatch.setitem(commands.HANDLERS, "info", interrupted)
    status, _, err = run(capsys, "info", "x")
    assert status == 130 and "Interrupted" in err and "Traceback" not in err
    monkeypatch.setitem(commands.HANDLERS, "info", broken)
    status, _, err = run(capsys, "info", "x")
    assert status == 1 and "fault of the program" in err and "--debug" in err


def test_doctor_reports_on_a_folder(short_songs, capsys, tmp_path):
    status, out, _ = run(capsys, "doctor", "--audio", short_songs, "--json", tmp_path / "report.json")
    assert status == 0 and "aria.wav" in out and "bruno.wav" in out
    assert len(json.loads((tmp_path / "report.json").read_text())["files"]) == 2
    status, out, _ = run(capsys, "doctor", "--audio", short_songs, "--json", "-")
    assert status == 0 and len(json.loads(out)["files"]) == 2


def test_evaluate_finds_no_difference_and_a_known_difference(short_songs, capsys, tmp_path):
    status, out, _ = run(capsys, "evaluate", "--reference", short_songs, "--converted", short_songs, "--json", "-")
    assert status == 0
    same = json.loads(out)["mean"]
    assert same["raw_pitch_accuracy"] == 1 and same["f0_error_cents"] == 0 and same["loudness_l1_db"] == 0
    samples, rate = soundfile.read(short_songs / "aria.wav")
    soundfile.write(tmp_path / "aria - other.wav", samples / 2, rate)
    arguments = ["evaluate", "--reference", short_songs, "--converted", tmp_path, "--json", tmp_path / "r.json"]
    status, out, _ = run(capsys, *arguments)
    found = json.loads((tmp_path / "r.json").read_text())
    assert status == 0 and len(found["pairs"]) == 1
    assert found["mean"]["loudness_l1_db"] == pytest.approx(20 * np.log10(2), abs=0.02)
    assert found["mean"]["raw_pitch_accuracy"] > 0.99


def test_progress_speaks_in_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 6.0))
    monkeypatch.setattr(commands.time, "monotonic", lambda: float(next(clock)))
    with commands.Progress("preparing") as progress:
        for i in range(1, 5):
            progress(i / 10, f"file {i}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["preparing: 20 %, about 48 s left. file 2", "preparing: 40 %, about 36 s left. file 4"]
