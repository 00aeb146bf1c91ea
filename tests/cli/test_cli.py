"""The command line: quick to start, plain about mistakes, and the same calls as the notebooks.

Truths: exit statuses and the words of DESIGN's command table; files on disk; numbers compared with the library's own.
"""

import json
import resource
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from explaining import assert_explains

from svclib import __main__
from svclib.audio import io as audio
from svclib.cli import arguments as declared
from svclib.cli import terminal
from svclib.conversion import evaluate
from svclib.data import singers
from svclib.utils.errors import ConversionError

COMMANDS = ("demo", "doctor", "prepare", "train", "distill", "sweep", "export", "info", "convert", "evaluate")
COMMANDS += ("live", "vocode", "generate", "denoise", "interpolate", "trace")


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
        audio.write(folder / f"{name}.wav", singers.render(name, score, 16000).audio, 16000)
    return folder


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from svclib import __main__; status = __main__.main(['--help']);"
        "heavy = {'torch', 'numpy', 'scipy', 'librosa', 'matplotlib', 'gin', 'tqdm'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert all(command in found.stdout for command in COMMANDS)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.0  # processor time; the aim is 0.5


def test_every_command_is_there_and_explains_itself(capsys):
    assert set(declared.COMMANDS) == set(COMMANDS)
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
        (["convert", "--instrument", "x", "--input", "a", "--out", "b", "--voice-db", "90"], ["90", "-60 to 60"]),
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

    def answer_with(run):
        monkeypatch.setitem(declared.COMMANDS, "info", declared.COMMANDS["info"]._replace(run=run))

    answer_with(interrupted)
    status, _, err = run(capsys, "info", "x")
    assert status == 130 and "Interrupted" in err and "Traceback" not in err
    answer_with(broken)
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


@pytest.mark.case("red 38")
def test_files_of_folders_are_compared_within_the_same_folder(tmp_path):
    """Equal names in two folders; folders on one side only; names in two normal forms; one that fits two."""

    def made(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.ones(10), 16000)
        return tmp_path / Path(names[0]).parts[0]

    def pairs(a, b):
        return {(x.relative_to(a).as_posix(), y.relative_to(b).as_posix()) for x, y in evaluate.pairs(a, b)}

    same, voices = made("same/a/song.wav", "same/b/song.wav"), made("voices/a/song - x.wav", "voices/b/song.wav")
    assert pairs(same, voices) == {("a/song.wav", "a/song - x.wav"), ("b/song.wav", "b/song.wav")}
    assert pairs(same, made("other/b/song.wav", "other/c/song.wav")) == {("b/song.wav", "b/song.wav")}
    flat = made("flat/song - x.wav")
    with pytest.raises(ConversionError) as caught:
        evaluate.pairs(same, flat)
    assert_explains(caught.value, path=flat / "song - x.wav", remedy="Name the references apart")
    assert pairs(made("one/a/song.wav"), flat) == {("a/song.wav", "song - x.wav")}
    composed, separate = (unicodedata.normalize(form, "été.wav") for form in ("NFC", "NFD"))
    assert len(evaluate.pairs(made(f"nfc/{composed}"), made(f"nfd/{separate}"))) == 1
    assert evaluate.pairs(flat / "song - x.wav", same / "a" / "song.wav")
    assert pairs(made("long/song.wav", "long/song one.wav"), made("x/song one - y.wav")) == {
        ("song one.wav", "song one - y.wav")
    }


def test_progress_speaks_in_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 6.0))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: float(next(clock)))
    with terminal.ProgressPrinter("preparing") as progress:
        for i in range(1, 5):
            progress(i / 10, f"file {i}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["preparing: 20 %, about 48 s left. file 2", "preparing: 40 %, about 36 s left. file 4"]


# The journey, command by command, with the smallest model

TINY = ("--config", "ddsp_small", "--config", "tiny")


@pytest.fixture(scope="module")
def journey(tmp_path_factory, short_songs):
    base = tmp_path_factory.mktemp("journey")
    singers.make_recordings("aria", base / "aria", 0.2, piece_s=4.0)
    dataset, run_folder, made = base / "dataset", base / "run", base / "made.zip"
    for arguments in (
        ["prepare", "--audio", base / "aria", "--out", dataset, *TINY, "--validation", "*_002.wav"],
        ["train", "--dataset", dataset, "--run", run_folder, *TINY, "--steps", 6],
        ["export", "--run", run_folder, "--out", made, "--licence", "CC0 1.0"],
    ):
        assert __main__.main([str(a) for a in arguments]) == 0, arguments
    return base


def test_prepare_holds_out_what_was_asked(journey, capsys, tmp_path):
    status, out, _ = run(capsys, "info", journey / "dataset", "--json", "-")
    found = json.loads(out)
    assert status == 0 and found["what"] == "dataset" and found["singers"] == ["aria"]
    held = [r["name"] for r in found["recordings"] if r["split"] == "validation"]
    assert held == ["aria_00_002.wav"]
    again = ["prepare", "--audio", journey / "aria", "--out", journey / "dataset", *TINY]
    status, _, err = run(capsys, *again, "--validation", "*_002.wav")
    assert status == 0 and "Nothing changed." in err
    labelled = ["prepare", "--audio", journey / "aria", "--singer", "voice", "--labels", "{singer}_{seed}_{label}"]
    status, out, _ = run(capsys, *labelled, "--out", tmp_path / "labelled", *TINY, "--set", "hop_samples=160")
    assert status == 0 and "singer: voice" in out and "labels: 000, 001, 002" in out and "every 10 ms" in out


def test_prepare_takes_a_zip_and_unpacks_it_once(journey, capsys, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "voice"), "zip", journey / "aria")
    arguments = ["prepare", "--audio", archive, "--out", tmp_path / "dataset", *TINY]
    status, out, err = run(capsys, *arguments)
    assert status == 0 and "3 recordings" in out and "singer: voice" in out
    unpacked = {p: p.stat().st_mtime_ns for p in (tmp_path / "dataset_sources").rglob("*.wav")}
    status, _, err = run(capsys, *arguments)
    assert status == 0 and "Nothing changed." in err and len(unpacked) == 3
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "dataset_sources").rglob("*.wav")} == unpacked


def test_train_goes_on_from_where_it_was(journey, capsys):
    arguments = ["train", "--dataset", journey / "dataset", "--run", journey / "run", *TINY]
    status, out, _ = run(capsys, *arguments, "--steps", 9)
    assert status == 0 and "step 9 of 9" in out
    status, out, _ = run(capsys, "info", journey / "run", "--json", "-")
    found = json.loads(out)
    assert status == 0 and found["what"] == "run" and max(c["step"] for c in found["checkpoints"]) == 9
    status, out, _ = run(capsys, *arguments, "--steps", 7, "--from", 6)
    assert status == 0 and "step 7 of 7" in out
    status, _, err = run(capsys, *arguments, "--set", "n_harmonics=3")
    assert status == 2 and "n_harmonics" in err


@pytest.mark.case("red 45")
def test_a_changed_dataset_needs_the_option_that_the_sentence_names(journey, capsys, tmp_path):
    dataset, run_folder = tmp_path / "dataset", shutil.copytree(journey / "run", tmp_path / "run")
    run(capsys, "prepare", "--audio", journey / "aria", "--out", dataset, *TINY, "--validation", "*_001.wav")
    arguments = ["train", "--dataset", dataset, "--run", run_folder, *TINY, "--steps", 10]
    status, _, err = run(capsys, *arguments)
    assert status == 2 and "--allow-changed-dataset" in err
    status, out, err = run(capsys, *arguments, "--allow-changed-dataset")
    assert status == 0 and "step 10 of 10" in out and "dataset changed" in err


def test_export_never_overwrites_and_info_tells_what_it_is(journey, capsys):
    before = (journey / "made.zip").read_bytes()
    status, out, err = run(capsys, "export", "--run", journey / "run", "--out", journey / "made.zip")
    assert status == 0 and "made 2.zip" in out and "never overwritten" in err
    assert (journey / "made.zip").read_bytes() == before
    status, out, _ = run(capsys, "info", journey / "made.zip")
    assert status == 0 and "a ddsp instrument" in out and "CC0 1.0" in out and "synthetic voice" in out
    status, out, _ = run(capsys, "info", journey / "made.zip", "--json", "-")
    assert json.loads(out)["model"]["n_harmonics"] == 20


def test_live_writes_the_whole_recording_and_its_latency(journey, short_songs, capsys, tmp_path):
    song = short_songs / f"{next(iter(singers.SINGERS))}.wav"
    arguments = ["--instrument", journey / "made.zip", "--input", song, "--out", tmp_path / "o.wav", "--block", 50]
    status, out, _ = run(capsys, "live", *arguments)
    assert status == 0 and "latency" in out
    found = json.loads((tmp_path / "o.wav.json").read_text())["live"]
    assert found["block_s"] == 0.05
    assert found["n_blocks"] == -(-audio.probe(song).n_samples // 800)
    assert audio.probe(tmp_path / "o.wav").n_samples == audio.probe(song).n_samples


def test_the_result_is_mixed_with_the_accompaniment_of_its_song(journey, short_songs, capsys, tmp_path):
    song = short_songs / f"{next(iter(singers.SINGERS))}.wav"
    accompaniment = 0.1 * np.random.default_rng(0).standard_normal((audio.probe(song).n_samples, 2))
    audio.write(tmp_path / "rest.wav", accompaniment, 16000)
    arguments = ["--instrument", journey / "made.zip", "--input", song, "--out", tmp_path / "out"]
    status, out, err = run(capsys, "convert", *arguments, "--accompaniment", tmp_path / "rest.wav", "--voice-db", 30)
    mixed, alone = (next((tmp_path / "out").glob(f"{song.stem}*made{end}.wav")) for end in (" (mix)", ""))
    assert status == 0 and mixed.name in out
    warnings = json.loads(mixed.with_name(f"{mixed.name}.json").read_text())["mix"]["warnings"]
    assert warnings and all(f"{mixed.name}: {warning}" in out + err for warning in warnings)
    rest, made = soundfile.read(tmp_path / "rest.wav")[0], soundfile.read(alone)[0]
    for channel, part in zip(soundfile.read(mixed)[0].T, rest.T, strict=True):
        parts = np.stack([part, made], axis=1)  # the accompaniment and the conversion, each with a gain
        gains, left_over, *_ = np.linalg.lstsq(parts, channel, rcond=None)
        assert gains[0] <= 1.0001 and gains[1] > 0
        assert left_over[0] < 1e-6 * np.dot(channel, channel)


def test_convert_writes_what_was_asked_and_never_overwrites(journey, short_songs, capsys, tmp_path):
    song, target = short_songs / "bruno.wav", tmp_path / "sung.flac"
    arguments = ["convert", "--instrument", journey / "made.zip", "--input", song, "--out", target, "--seed", 3]
    status, out, err = run(capsys, *arguments, "--key", "auto", "--loudness-shift", -6)
    assert status == 0 and str(target) in out and "octave +1" in out and "loudness (dB) -6" in out and "octave" in err
    assert soundfile.info(target).frames == soundfile.info(song).frames
    settings = json.loads((tmp_path / "sung.flac.json").read_text())
    assert settings["controls"]["loudness_shift_db"] == -6 and settings["seed"] == 3
    status, out, err = run(capsys, *arguments)
    assert status == 0 and "sung 2.flac" in out and "never overwritten" in err
    arguments[6] = tmp_path / "loud.FLAC"
    status, out, err = run(capsys, *arguments)
    assert status == 0 and (tmp_path / "loud.FLAC").is_file() and "overwritten" not in err and "portable" not in err
    status, out, _ = run(
        capsys,
        "convert",
        "--instrument",
        journey / "made.zip",
        "--input",
        short_songs,
        "--out",
        tmp_path / "all",
        "--key",
        "-2.5",
        "--no-loudness-statistics",
        "--mask-threshold",
        0.5,
        "--attenuation",
        30,
        "--autotune",
        1,
        "--autotune-key",
        "C major",
    )
    assert status == 0
    assert sorted(p.name for p in (tmp_path / "all").glob("*.wav")) == ["aria - made.wav", "bruno - made.wav"]
    controls = json.loads((tmp_path / "all" / "aria - made.wav.json").read_text())["controls"]
    assert controls == {
        "use_loudness_statistics": False,
        "mask_threshold": 0.5,
        "attenuation_db": 30.0,
        "autotune": 1.0,
        "autotune_key": "C major",
        "octave_shift": 0,
        "semitone_shift": -2.5,
        "loudness_shift_db": 0.0,
        "dynamics": 1.0,
        "repair_octaves": False,
        "breath": 1.0,
        "formant_shift": 0.0,
    }
    status, out, _ = run(capsys, *arguments[:-2], "--loudness-follow", 0.5)  # an older spelling
    assert status == 0 and "dynamics 0.5" in out
    status, _, err = run(capsys, *arguments, "--octave", 5)
    assert status == 2 and "--octave" in err and "-3 to 3" in err
    broken = tmp_path / "broken.zip"
    broken.write_bytes((journey / "made.zip").read_bytes()[:5000])
    status, _, err = run(capsys, "convert", "--instrument", broken, "--input", song, "--out", target)
    assert status == 2 and "broken.zip" in err


def test_sweep_makes_a_run_per_cell_and_skips_finished_ones(journey, capsys, tmp_path):
    arguments = ["sweep", "--dataset", journey / "dataset", "--runs", tmp_path, *TINY, "--steps", 2]
    arguments += ["--grid", "n_harmonics=5,10", "--grid", "n_noise_bands=9"]
    status, out, _ = run(capsys, *arguments)
    assert status == 0 and out.count("2/2") == 2
    logs = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
    assert len(logs) == 2
    status, again, _ = run(capsys, *arguments)
    assert status == 0 and again == out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")} == logs
    status, _, err = run(capsys, *arguments[:-2], "--grid", "n_noise_bands")
    assert status == 2 and "NAME=V1,V2" in err
