"""Run folders from elsewhere, other users of the machine, names and settings that others chose.

Every attack was tried on a version that fell for it. Truths: the contents of files outside the folder, memory and time,
what is printed, and a run that nobody touched.
"""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import toy
import untrusted
from explaining import assert_explains
from untrusted import members_of, put, with_raw

from svclib import __main__
from svclib.audio.mel import MelConfig
from svclib.cli.terminal import TrainingProgress
from svclib.features import extract
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.training import api as training
from svclib.training import checkpoint_writer, checkpoints, run_log
from svclib.utils import atomic_store, config, errors, filesystem
from svclib.utils.errors import ConfigError, ModelError, StorageError, TrainingError

OURS = tuple(v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, ValueError))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of ten steps."""
    run = tmp_path_factory.mktemp("made") / "run"
    training.train(toy.ToyDataset(), run, toy.preset(), steps=10)
    return run


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of it, and folders of this user's own beside it."""
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "own"))
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


# Links and pipes ------------------------------------------------------------------------------------------------------


@pytest.mark.case("red 01")
@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "previews", "tensorboard", "run.json"])
def test_nothing_is_written_through_a_link_of_a_run(run, tmp_path, name):
    """A log that is a link to a start-up file, and a file whose name is a command: the next shell would run it."""
    victim = tmp_path / "victim"
    if name.endswith(("json", "jsonl")):
        victim.write_text("own\n")
        (run / name).unlink()
    else:
        victim.mkdir()
        (victim / ".part-other~1~2").write_text("own\n")
        shutil.rmtree(run / name, ignore_errors=True)
    os.utime(victim, (1e9, 1e9))
    (run / name).symlink_to(victim)
    if name != "checkpoints":
        (run / "checkpoints" / "ck-00009999-$(touch PWNED).safetensors").touch()
    with pytest.raises(StorageError) as error:
        training.train(toy.ToyDataset(), run, toy.preset(), steps=12)
    assert_explains(error.value, path=run / name, remedy="link")
    assert victim.stat().st_mtime == 1e9
    assert (victim.read_text() == "own\n") if victim.is_file() else len(list(victim.iterdir())) == 1


@pytest.mark.case("red 01")
def test_lines_are_not_appended_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("own\n")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="link"):
        atomic_store.append_lines(tmp_path / "log", [{"a": 1}])
    assert (tmp_path / "victim").read_text() == "own\n"


@pytest.mark.case("red 26")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for use in (filesystem.read_bytes, filesystem.sha256_file, lambda p: atomic_store.append_lines(p, [{}])):
        with pytest.raises(StorageError):
            use(tmp_path / "pipe")


@pytest.mark.case("red 31")
def test_a_copy_by_hard_links_keeps_its_own_log(run, tmp_path):
    shutil.copytree(run, tmp_path / "snapshot", copy_function=os.link)
    before = (run / "metrics.jsonl").read_bytes()
    training.train(toy.ToyDataset(), tmp_path / "snapshot", toy.preset(), steps=12)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert training.curves(tmp_path / "snapshot")["step"].tolist() == list(range(1, 13))


# Other users of the machine -------------------------------------------------------------------------------------------


@pytest.mark.case("red 35")
def test_lines_and_checkpoints_that_another_user_left_are_not_ours(run):
    kept = checkpoint_writer.local_folder(run)
    shutil.copytree(run / "checkpoints", kept / "checkpoints")
    forged = {"step": 3, "loss": 0.0001, "parts": {}}
    (kept / "metrics.jsonl").write_text(json.dumps(forged) + "\n")
    kept.chmod(0o777)
    run_id = checkpoints.run_identity(run)["run_id"]
    assert checkpoint_writer.newest(run, run_id) is None and checkpoint_writer.sync_back(run, run_id) == []
    training.train(toy.ToyDataset(), run, toy.preset(), steps=12)
    assert training.curves(run)["loss"].min() > 0.001 and training.curves(run)["step"].max() == 12
    with pytest.raises(StorageError, match="another user"):
        filesystem.make_own_folder(kept)


@pytest.mark.case("red 35")
def test_a_folder_of_ones_own_is_for_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "own"))
    folder = filesystem.make_own_folder(filesystem.state_folder("kept"))
    assert folder.stat().st_mode & 0o777 == 0o700 and filesystem.is_own_folder(folder)
    (tmp_path / "link").symlink_to(folder)
    assert not filesystem.is_own_folder(tmp_path / "link")
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
        assert not filesystem.is_own_folder(folder)


@pytest.mark.case("red 42")
def test_what_is_kept_here_is_found_by_any_name_of_the_run(run, tmp_path):
    (tmp_path / "other").symlink_to(run)
    assert checkpoint_writer.local_folder(tmp_path / "other") == checkpoint_writer.local_folder(run)


def test_of_several_processes_the_first_moves_what_is_kept_here(run, monkeypatch):
    """They start together: two that moved one file would refuse each other's copy."""
    kept = filesystem.make_own_folder(checkpoint_writer.local_folder(run))
    shutil.move(run / "checkpoints", kept / "checkpoints")
    run_id = checkpoints.run_identity(run)["run_id"]
    monkeypatch.setenv("RANK", "1")
    assert checkpoint_writer.sync_back(run, run_id) == []
    monkeypatch.setenv("RANK", "0")
    assert len(checkpoint_writer.sync_back(run, run_id)) == len(list((run / "checkpoints").glob("*.safetensors"))) > 1


# Records --------------------------------------------------------------------------------------------------------------


def changed(value, rng):
    """A copy of a JSON value with one value in it replaced or left out."""
    made = copy.deepcopy(value)
    *path, last = rng.choice([p for p in untrusted.places(value) if p])
    owner = made
    for key in path:
        owner = owner[key]
    if rng.random() < 0.2:
        del owner[last]
    else:
        owner[last] = rng.choice(untrusted.HOSTILE_VALUES)
    return made


def use(run, trained: bool):
    """What people do with a run; an error of svclib is an answer."""
    actions = [
        lambda: checkpoints.listing(run / "checkpoints"),
        lambda: training.curves(run),
        lambda: training.previews(run),
        lambda: checkpoints.load_model(run, "last"),
        lambda: training.export(run, run.parent / "out", overwrite=True),
        lambda: __main__.commands._about_run(run),
    ]
    if trained:
        actions.append(lambda: training.train(toy.ToyDataset(), run, toy.preset(), steps=1))  # it has more already
    for action in actions:
        try:
            action()
        except OURS as error:
            untrusted.require_sentence(str(error), "")


def repacked(run, rng):
    """Change the newest checkpoint's record, with checksum and marker that fit."""
    last = [c for c in checkpoints.listing(run / "checkpoints") if c.kind == "last"][-1]
    found = checkpoints.unpack(last.path)
    atomic_store.remove_marked(last.marked)
    data = checkpoints.pack(checkpoints.Checkpoint(changed(found.record, rng), found.tensors))
    marker = {k: v for k, v in last.marked.info.items() if k not in ("bytes", "sha256")}
    atomic_store.put_marked(last.path, lambda part: atomic_store.write_bytes(part, data), marker)


@pytest.mark.case("red 28")
@pytest.mark.parametrize("count", [25, pytest.param(1500, marks=pytest.mark.slow)])
def test_every_changed_value_of_a_run_ends_in_a_sentence(run, tmp_path, count, capsys):
    texts = [p for p in run.rglob("*.json*") if "tensorboard" not in p.parts]
    for i in range(count):
        rng, copied = random.Random(i), tmp_path / "copied"
        shutil.copytree(run, copied)
        if i % 2:
            repacked(copied, rng)
        else:
            path = copied / rng.choice(texts).relative_to(run)
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            at = rng.randrange(len(lines))
            lines[at] = json.dumps(changed(json.loads(lines[at]), rng))
            path.write_text("\n".join(lines) + "\n")
        try:
            use(copied, trained=i % 5 < 2)
        except Exception as error:
            raise AssertionError(f"change {i}: {type(error).__name__}: {error}") from error
        shutil.rmtree(copied)


@pytest.mark.case("red 28")
@pytest.mark.parametrize(
    "where, value",
    [
        ("step", -1),
        ("generation", -1),
        ("lineage", [[1]]),
        ("kind", 3),
        ("preset kind", "none"),
        ("metrics best", [1]),
        ("metrics best", [1, "x"]),
        ("dataset singers", ["x\ny"]),
        ("dataset recordings", {"a": 3}),
    ],
)
def test_each_value_that_training_could_not_have_written_is_refused(run, where, value):
    last = [c for c in checkpoints.listing(run / "checkpoints") if c.kind == "last"][-1]
    record = checkpoints.unpack(last.path).record
    checkpoints.check_record(record)
    *path, name = where.split()
    place = record[path[0]] if path else record
    place[name] = value
    with pytest.raises(ConfigError):
        checkpoints.check_record(record)


@pytest.mark.case("red 36")
def test_a_name_with_a_digit_that_is_no_number_disables_nothing(run):
    for name in ("ck-²-x.safetensors", "ck-1²2-x.safetensors", ".part-x~²~1"):
        (run / "checkpoints" / name).touch()
    assert training.train(toy.ToyDataset(), run, toy.preset(), steps=12).step == 12
    assert training.export(run, run.parent / "out").is_file()


@pytest.mark.case("red 03")
def test_a_network_that_the_weights_do_not_fill_is_not_built(run):
    last = [c for c in checkpoints.listing(run / "checkpoints") if c.kind == "last"][-1]
    found = checkpoints.unpack(last.path)
    found.record["preset"]["model"] |= {"rnn_channels": 4096, "mlp_channels": 4096}
    atomic_store.remove_marked(last.marked)
    checkpoints.save(run / "checkpoints", found)
    with untrusted.measured() as cost, pytest.raises(TrainingError) as error:
        checkpoints.load_model(run, "last")
    assert "shape" in str(error.value) and cost.megabytes < 100, (cost, error.value)


@pytest.mark.case("red 28")
def test_weights_of_another_shape_stop_a_training_in_a_sentence(run):
    last = [c for c in checkpoints.listing(run / "checkpoints") if c.kind == "last"][-1]
    found = checkpoints.unpack(last.path)
    name = next(n for n in found.tensors if n.startswith("model."))
    found.tensors[name] = torch.zeros(3, 3)
    found.record["step"] = 11
    checkpoints.save(run / "checkpoints", found)
    with pytest.raises(TrainingError) as error:
        training.train(toy.ToyDataset(), run, toy.preset(), steps=12)
    assert_explains(error.value, path=run, remedy="step")


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.case("red 37")
def test_names_that_are_not_utf8_are_saved(tmp_path):
    """Bytes of old disks, as Python reads them from a folder."""

    class Odd(toy.ToyDataset):
        recordings = [{"name": "gr\udcfcn.wav", "sha256": "aa" * 32}, {"name": "日本 👩‍🎤.wav", "sha256": "bb" * 32}]

    result = training.train(Odd(), tmp_path / "run", toy.preset(), steps=5)
    assert result.reason == "finished" and toy.tensors(tmp_path / "run")
    assert training.train(Odd(), tmp_path / "run", toy.preset(), steps=6).step == 6
    assert training.export(tmp_path / "run", tmp_path).is_file()


@pytest.mark.case("red 37")
def test_anything_raised_while_saving_is_told_and_tried_again(tmp_path, monkeypatch):
    save, tries = checkpoints.save, []

    def failing(folder, checkpoint, kind="last", writer=""):
        tries.append(checkpoint.record["step"])
        if len(tries) < 3:
            raise UnicodeError(f"surrogates not allowed in '{folder}/x' or {folder}/y")
        return save(folder, checkpoint, kind, writer)

    monkeypatch.setattr(checkpoints, "save", failing)
    monkeypatch.setattr(checkpoint_writer, "RETRY_S", 0.0)
    result = training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=20)
    assert result.step == 20 and any("surrogates" in m and "tries again" in m for m in result.messages)
    assert tries[0] == 5 and toy.tensors(tmp_path)
    assert str(tmp_path) in "".join(result.messages)  # here
    assert str(tmp_path) not in (tmp_path / "metrics.jsonl").read_text()  # but not where it may be shared


@pytest.mark.case("red 24")
def test_names_with_joiners_and_of_full_length_train_and_export(tmp_path):
    """The singers of an instrument are keys of its statistics."""
    made = untrusted.instruments(tmp_path)
    (tmp_path / "a.zip").write_bytes(made["diffusion"])
    opened = instrument.open(tmp_path / "a.zip")
    names = ["👩‍🎤", "می‌خواهم", "é" * 255]
    one = next(iter(opened.statistics["singers"].values()))
    statistics = {**opened.statistics, "singers": dict.fromkeys(names, one)}
    model = instrument.build_model(opened.model.settings, opened.features, statistics)
    info = {"created": "2026-11-30", "singers": names}
    path = instrument.save(tmp_path / "b.zip", model, opened.features, statistics, name="👩‍🎤", **info)
    assert instrument.open(path).model.singers == tuple(sorted(names)) and instrument.open(path).name == "👩‍🎤"


# Text that is shown ---------------------------------------------------------------------------------------------------

ESCAPES = "\x1b]52;c;cHduZWQ=\x07\x1b[2J\x9b31m\u202egnp.exe"


@pytest.mark.case("red 05")
def test_no_text_of_an_instrument_is_obeyed_by_a_terminal(tmp_path, capsys):
    data = untrusted.instruments(tmp_path)["ddsp"]
    for key in ("licence", "consent", "created"):
        data = with_raw(data, put("info", key, f"free{ESCAPES}\nmade by svclib, checked"))
    (tmp_path / "a.zip").write_bytes(with_raw(data, put("info", "f0", "version", ESCAPES)))
    assert __main__.main(["info", str(tmp_path / "a.zip")]) == 0
    shown = capsys.readouterr().out
    assert "free" in shown and all(c == "\n" or c.isprintable() for c in shown)
    assert not any(line.startswith("made by svclib") for line in shown.splitlines())


@pytest.mark.case("red 05")
def test_no_name_of_a_file_is_obeyed_by_a_terminal(run, tmp_path, capsys):
    for at, name in ((tmp_path, f"{ESCAPES}.zip"), (run / "checkpoints", f"ck-00009999-{ESCAPES}.safetensors")):
        (at / name).write_text("x")
    assert __main__.main(["info", str(tmp_path / f"{ESCAPES}.zip")]) == 2
    training.train(toy.ToyDataset(), run, toy.preset(), steps=11, on_progress=lambda s: TrainingProgress()(s))
    __main__.main(["info", str(run)])
    shown = "".join(capsys.readouterr())
    assert "ck-00009999" in shown and all(c == "\n" or c.isprintable() for c in shown)


def test_ordinary_names_are_shown_as_they_are():
    for name in ("Anna Grün", "日本語", "👩‍🎤", "می‌خواهم", "שלום", "e\u0301", "two\nlines"):
        assert errors.printable(name, lines=True) == name
    assert errors.printable("a\nb\udcfc") == "a?b?"


@pytest.mark.case("red 22")
@pytest.mark.parametrize(
    "text, kept",
    [
        ("Not used: '/home/jane/my run/ck-1.safetensors': damaged.", "Not used: 'ck-1.safetensors': damaged."),
        ("'C:\\Users\\jane\\a b.wav' and /home/jane/x/y.wav, 3/4", "'a b.wav' and y.wav, 3/4"),
        ("see https://example.org/a/b or runs/voice", "see https://example.org/a/b or runs/voice"),
    ],
)
def test_of_a_place_only_the_last_name_is_kept(text, kept):
    assert filesystem.without_folders(text) == kept


# Helper processes -----------------------------------------------------------------------------------------------------


@pytest.mark.case("red 39")
def test_no_module_of_the_working_folder_is_imported(tmp_path):
    """In a folder of recordings lie modules that svclib, its libraries and pools of processes import by name."""
    for name in ("joblib", "numpy", "soundfile", "soxr", "argparse", "json", "torch", "tqdm", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    audio = untrusted.recordings()
    (tmp_path / "rec.zip").write_bytes(audio)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    code = (
        "import os, subprocess, sys; from svclib.__main__ import main; main(['--version']);"
        "subprocess.run([sys.executable, '-c', 'import json'])"  # what any library may start
    )
    for arguments in (["-m", "svclib", "doctor", "--audio", "."], ["-P", "-c", code]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert not (tmp_path / "ran").exists(), (arguments, done.stderr)


# Settings and files whose product is large ----------------------------------------------------------------------------


@pytest.mark.case("red 23")
def test_macros_that_double_are_counted_before_they_are_expanded(tmp_path):
    lines = ["A0 = [1, 2]", *(f"A{i} = [%A{i - 1}, %A{i - 1}]" for i in range(1, 40))]
    lines += ["ddsp.DdspSettings.fft_sizes = %A39", "B = {'x': %A39}"]
    (tmp_path / "a.gin").write_text("include 'ddsp_small.gin'\n" + "\n".join(lines) + "\n")
    with untrusted.measured() as cost, pytest.raises(ConfigError, match="at most 100,000"):
        config.load([tmp_path / "a.gin"])
    assert cost.seconds < 0.25 and cost.megabytes < 100, cost


@pytest.mark.case("red 08", "red 33")
@pytest.mark.parametrize(
    "sizes",
    [
        {"sample_rate_hz": 384000, "hop_samples": 2, "loudness_n_fft": 65536},
        {"sample_rate_hz": 44100, "hop_samples": 2},
        {"sample_rate_hz": 384000, "hop_samples": 192, "loudness_n_fft": 65536},
    ],
)
def test_settings_in_range_whose_product_is_not_are_refused(sizes):
    with pytest.raises(ConfigError, match="a second"):
        FeatureSettings(**sizes)


@pytest.mark.case("red 08", "red 33")
def test_a_mel_without_end_is_refused():
    with pytest.raises(ConfigError, match="a second"):
        MelConfig(384000, 65536, 2048, 2, 1024, fmax_hz=190000.0)
    MelConfig(192000, 8192, 8192, 512, 256)  # large, and fine


@pytest.mark.case("red 08")
def test_a_long_fft_is_measured_in_pieces_that_make_no_difference(monkeypatch):
    x = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    settings, found = FeatureSettings(48000, 960, loudness_n_fft=65536), []
    for values in (extract.MAX_CHUNK_VALUES, 1 << 19):
        monkeypatch.setattr(extract, "MAX_CHUNK_VALUES", values)
        found.append(extract.extract(x, settings).loudness_db)
    np.testing.assert_array_equal(*found)


@pytest.mark.case("red 34")
def test_weights_of_zeros_are_not_unpacked(tmp_path):
    """Deflated to a sixtieth: zeros shrink, weights hardly."""
    settings = untrusted.instruments(tmp_path)["ddsp"]
    members = members_of(settings)
    members["weights.safetensors"] = members["weights.safetensors"] + bytes(66 << 20) + os.urandom(1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    with untrusted.measured() as cost, pytest.raises(ModelError, match="would unpack"):
        instrument.open(tmp_path / "a.zip")
    assert cost.seconds < 0.25 and cost.megabytes < 100


@pytest.mark.case("red sampler_steps")
def test_an_instrument_asks_for_at_most_a_thousand_steps(tmp_path):
    data = untrusted.instruments(tmp_path)["diffusion"]
    (tmp_path / "a.zip").write_bytes(with_raw(data, put("model", "sampler_steps", 100_000)))
    with pytest.raises(ModelError, match="sampler_steps"):
        instrument.open(tmp_path / "a.zip")


def test_a_checkpoint_is_written_from_the_weights_themselves():
    """No copy of them is made in between: the pieces of the file are their memory."""
    weights = {"model.a": torch.randn(1000, 30), "ema.b": torch.ones(7, dtype=torch.int64)}
    pieces = checkpoints.pack(checkpoints.Checkpoint({"format": checkpoints.FORMAT}, weights))
    where = {np.frombuffer(piece, np.uint8).__array_interface__["data"][0] for piece in pieces[2:]}
    assert where == {w.data_ptr() for w in weights.values()}


def test_a_save_needs_its_own_size_and_16_mib_on_the_disk(tmp_path, monkeypatch):
    record = {"format": checkpoints.FORMAT, "step": 1, "metrics": {"validation_loss": None}}
    checkpoint = checkpoints.Checkpoint(record, {"ema.a": torch.zeros(3 << 18)})
    asked = []
    monkeypatch.setattr(filesystem, "free_space_check", lambda folder, n_bytes: asked.append((folder, n_bytes)))
    monkeypatch.setattr(atomic_store, "put_marked", lambda *rest: (_ for _ in ()).throw(StorageError("enough")))
    with pytest.raises(StorageError, match="enough"):
        checkpoints.save(tmp_path, checkpoint)
    assert asked[0][0] == tmp_path and asked[0][1] == pytest.approx((3 << 20) + (16 << 20), abs=2000)


def test_a_log_line_that_no_session_wrote_is_left_out(tmp_path):
    good = {"step": 1, "loss": 0.5, "parts": {"a": 1.0}}
    odd = [{**good, "loss": "x"}, {**good, "parts": [1]}, {**good, "step": True}, {"event": 3, "step": 1}, [1]]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*odd, good, *odd]))
    reader = run_log.LogReader(tmp_path)
    assert reader.steps == [good] and reader.events == [] and reader.curves()["loss"].tolist() == [0.5]
