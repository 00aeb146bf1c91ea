"""Truths about what notebook 03 offers for diffusion instruments, without a browser: controls that appear only where
they mean something and reach the conversion, many songs in one go, and the table that compares variants."""

import csv
import dataclasses
import threading

import numpy as np
import panels
import pytest
import soundfile
from panels import said, upload
from toy_diffusion import FEATURES, RATE, SETTINGS, VOCODER, save_instrument

from svclib.analysis import html as page
from svclib.conversion import ab_compare, pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls, defaults, preset
from svclib.conversion.key_suggestion import suggest_shift
from svclib.features import extract
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.notebooks import convert as widgets_convert
from svclib.utils import workspace
from svclib.utils.errors import Cancelled, ConversionError

OWN_SETTINGS = {"sampler": "dpmpp", "steps": 4, "temperature": SETTINGS.temperature}  # of the toy


def make_song(path, f0_hz=220.0, seconds=1.3):
    t = np.arange(int(RATE * seconds)) / RATE
    soundfile.write(path, 0.3 * sum(np.sin(2 * np.pi * k * f0_hz * t) / k for k in range(1, 9)), RATE)
    return path


@pytest.fixture
def base(tmp_path):
    songs._songs.clear()
    made = workspace.base_folder(base=tmp_path / "home")
    save_instrument(made.instruments, "duo", SETTINGS, singers=("ann", "bea"))
    save_instrument(made.instruments, "loud", VOCODER)
    panels.make_instrument(made.instruments, "plain")
    make_song(made.examples / "a song.wav")
    return made


def pick(panel, base, name):
    panel.instrument.value = base.instruments / f"{name}.zip"
    return panel


def test_diffusion_controls_are_hidden_for_ddsp_and_vocoders_are_no_singers(base):
    panel = widgets_convert.ConvertPanel(base)
    assert [label for label, _ in panel.instrument.options] == ["duo.zip", "plain.zip"]
    pick(panel, base, "plain")
    assert panel.sampling.layout.display == "none" and panel.sampling.options() == SamplingOptions()
    assert panel.sliders.controls() == defaults("ddsp")
    pick(panel, base, "duo")
    assert panel.sampling.layout.display == "" and panel.sliders.controls() == defaults("diffusion")
    assert list(panel.sampling.singers) == ["ann", "bea"]
    own = {name: panel.sampling.widgets[name].label for name in ("sampler", "steps", "temperature")}
    assert own == {name: f"the instrument's own ({value})" for name, value in OWN_SETTINGS.items()}
    assert panel.sampling.vocoder.label == "the instrument's own"
    assert [label for label, _ in panel.sampling.vocoder.options] == ["the instrument's own", "loud"]
    panel.sliders.widgets["octave_shift"].value = 1  # as the automatic key does
    pick(panel, base, "plain")
    assert panel.sliders.controls() == dataclasses.replace(defaults("ddsp"), octave_shift=1)
    pick(panel, base, "duo")
    assert panel.sliders.controls() == dataclasses.replace(defaults("diffusion"), octave_shift=1)
    panel.sliders.widgets["octave_shift"].value = 0
    panel.sliders.preset.value = "Everyday"
    assert panel.sliders.controls() == defaults("diffusion")
    panel.sliders.preset.value = "Quiet pauses"
    assert panel.sliders.controls() == preset("Quiet pauses", "diffusion")
    pick(panel, base, "plain")
    assert panel.sliders.controls() == preset("Quiet pauses", "diffusion")  # moved by the person: it stays
    panel.reset_button.click()
    assert panel.controls() == Controls()
    assert upload(panel.upload, "loud too.zip", (base.instruments / "loud.zip").read_bytes()) == "ok"
    assert "loud too.zip is stored" in said(panel) and "chosen" not in said(panel)


def test_what_is_chosen_reaches_the_conversion(base, monkeypatch):
    panel = pick(widgets_convert.ConvertPanel(base), base, "duo")
    asked, convert = [], pipeline.convert

    def watch(voice, song, controls, **options):
        asked.append({"controls": controls, **options})
        return convert(voice, song, controls, **options)

    monkeypatch.setattr(pipeline, "convert", watch)
    d = panel.sampling
    chosen = {"sampler": "ddim", "steps": 5, "shallow": 150, "temperature": 0.7, "seed": 7, "precision": "fp32"}
    for name, value in chosen.items():
        d.widgets[name].value = value
    d.singers["bea"].value = 0.5
    d.vocoder.value = base.instruments / "loud.zip"
    panel.full_output.value = False
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "svclib-done" in said(panel)
    assert asked[0]["sampling"] == SamplingOptions(**chosen)
    assert asked[0]["controls"].singer == {"ann": 1.0, "bea": 0.5}
    assert asked[0]["vocoder"].name == "loud.zip"
    shown = panel.results.children[0].children[0].value
    assert all(x in shown for x in ("sampler ddim, steps 5, shallow 150, temperature 0.7", "singer ann 1 + bea 0.5"))
    panel.reset_button.click()
    assert d.options() == SamplingOptions() and d.singer() == "ann"
    shown = [menu.label for menu in (*(d.widgets[n] for n in ("sampler", "steps", "shallow")), d.vocoder)]
    assert [text.partition(" (")[0] for text in shown] == ["the instrument's own"] * 4


def test_all_songs_in_one_go_and_the_failing_one_is_named(base):
    make_song(base.examples / "b song.wav", 110.0)
    soundfile.write(base.examples / "c short.wav", np.zeros(20), RATE)
    make_song(base.examples / "d song.wav")
    panel = pick(widgets_convert.ConvertPanel(base), base, "plain")
    panel.all_button.click()
    panel.task.wait(120)
    made = sorted(p.name for p in base.output.glob("*.wav"))
    assert made == ["a song - plain.wav", "b song - plain.wav", "d song - plain.wav"]
    assert "3 of 4 songs were converted" in said(panel) and "c short.wav: " in said(panel) and "warning" in said(panel)
    shown = [result.children[0].value for result in panel.results.children]
    assert ["octave +1" in text for text in shown] == [False, True, False]  # each in its suggested key
    assert all(text.count("<audio") == 1 for text in shown)


def test_cancelling_many_songs_keeps_what_was_converted(base):
    opened = instrument.open(base.instruments / "plain.zip")
    paths = [base.examples / "a song.wav", make_song(base.examples / "b.wav")]
    converted, reports = [], []
    with pytest.raises(Cancelled):
        pipeline.convert_songs(
            opened,
            paths,
            lambda made: converted.append(pipeline.save(made, base.output)),
            cancelled=lambda: bool(converted),
            progress=lambda f, text: reports.append((f, text)),
        )
    assert len(converted) == 1 and converted[0].is_file() and len(list(base.output.glob("*.wav"))) == 1
    assert [f for f, _ in reports] == sorted(f for f, _ in reports) and reports[-1][0] <= 0.5
    assert "a song.wav: " in reports[0][1]


def test_the_table_shows_each_variant_with_time_and_metrics(base):
    panel = widgets_convert.ComparePanel(base)
    entries = {entry.path.stem: entry for _, entry in panel.instruments.options}
    assert list(entries) == ["duo", "plain"]
    panel.instruments.value = tuple(entries.values())
    panel.samplers.value, panel.steps.value = ("ddim", "dpmpp"), (5,)
    panel.vocoders.value = ("", base.instruments / "loud.zip")
    panel.seconds.value = 1.0
    panel.compare_button.click()
    panel.task.wait(120)
    assert "5 variants were compared" in said(panel)
    table = panel.table.value
    assert table.count("<audio") == 6 and table.count("<tr") == 7
    labels = ("The song itself", "duo, ddim, 5 steps", "duo, ddim, 5 steps, vocoder loud", "plain")
    assert all(f">{label}</td>" in table for label in labels)
    assert "cents" in table and list(base.output.iterdir()) == []
    panel.csv_button.click()
    with next(base.output.glob("*.csv")).open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head[2:4] == ["real-time factor", "F0 RMSE (cents)"] and [row[0] for row in rows] == list(
        row.label for row in panel.rows[1:]
    )
    assert [float(row[2]) for row in rows] == [row.figures["real_time_factor"] for row in panel.rows[1:]]


@pytest.mark.case("user 03.9")
def test_the_table_goes_with_the_panel_above(base):
    convert = widgets_convert.ConvertPanel(base)
    panel = widgets_convert.ComparePanel(base, convert)
    entries = {entry.path.stem: entry for _, entry in panel.instruments.options}
    for name, display in (("plain", "none"), ("duo", "")):
        panel.instruments.value = (entries[name],)
        assert panel.sampling.layout.display == panel.vocoders.layout.display == display
    new = make_song(base.examples / "new.wav")
    convert.refresh_button.click()  # one look is enough for both
    convert.song.value = new
    assert panel.song.value == new
    again = widgets_convert.ConvertPanel(base)
    again.sliders.widgets["loudness_shift_db"].value = -6.0
    assert panel.convert is again and panel.convert.settings_for(entries["duo"]).controls.loudness_shift_db == -6.0


def test_the_table_converts_with_what_is_set_in_the_panel_above(base):
    convert = pick(widgets_convert.ConvertPanel(base), base, "duo")
    convert.sliders.widgets["octave_shift"].value, convert.sliders.widgets["semitone_shift"].value = 1, -2
    convert.sliders.widgets["loudness_shift_db"].value, convert.sliders.widgets["use_loudness_statistics"].value = (
        -6.0,
        False,
    )
    own = convert.sampling
    for name, value in {"sampler": "ddim", "steps": 5, "shallow": 400, "seed": 7}.items():
        own.widgets[name].value = value
    own.singers["ann"].value, own.singers["bea"].value = 0.25, 0.75
    panel = widgets_convert.ComparePanel(base, convert)
    assert panel.as_set.value and panel.as_set.layout.display == "" and panel.song.value == convert.song.value
    panel.instruments.value = tuple(entry for _, entry in panel.instruments.options)
    panel.starts.value, panel.seconds.value, panel.start_s.value = ("", ab_compare.PURE_NOISE, 100), 0.5, 0.3
    panel.compare_button.click()
    panel.task.wait(120)
    rows = {row.label: row for row in panel.rows}
    assert [row.problem for row in panel.rows] == [""] * 5
    assert list(rows)[1:] == ["duo", "duo, from pure noise", "duo, shallow start at 100", "plain"]
    controls, sampling = convert.controls(), {"sampler": "ddim", "steps": 5}
    assert controls.singer == {"ann": 0.25, "bea": 0.75}
    assert (controls.octave_shift, controls.semitone_shift) == (1, -2)
    loaded = {name: instrument.open(base.instruments / f"{name}.zip") for name in ("duo", "plain")}
    for label, name, more in (
        ("duo", "duo", {**sampling, "shallow": 400}),
        ("duo, from pure noise", "duo", sampling),
        ("duo, shallow start at 100", "duo", {**sampling, "shallow": 100}),
        ("plain", "plain", {}),
    ):
        song = songs.load_song(base.examples / "a song.wav", loaded[name].features)
        options = SamplingOptions(**more, seed=7) if name == "duo" else SamplingOptions()
        own = controls if name == "duo" else dataclasses.replace(controls, singer=None)
        wanted = pipeline.convert(loaded[name], songs.excerpt(song, 0.3, 0.5), own, options)
        np.testing.assert_array_equal(rows[label].audio, wanted.audio, label)
    assert "octave +1" in panel.table.value and "seed 7" in panel.table.value
    panel.as_set.value, panel.starts.value, panel.instruments.index = False, ("",), (0,)
    panel.compare_button.click()
    panel.task.wait(120)
    song = songs.load_song(base.examples / "a song.wav", loaded["duo"].features)
    plain = pipeline.convert(loaded["duo"], songs.excerpt(song, 0.3, 0.5))
    np.testing.assert_array_equal(panel.rows[1].audio, plain.audio)
    assert "octave +1" not in panel.table.value


def test_singers_of_one_instrument_are_not_asked_of_another(base):
    save_instrument(base.instruments, "solo", SETTINGS, singers=("ann", "bea"), seed=1)
    convert = pick(widgets_convert.ConvertPanel(base), base, "duo")
    convert.sampling.singers["ann"].value, convert.sampling.singers["bea"].value = 0.5, 0.5
    names = ("duo", "solo", "plain")
    duo, solo, plain = (convert.settings_for(convert.entries[base.instruments / f"{name}.zip"]) for name in names)
    assert duo.controls.singer == {"ann": 0.5, "bea": 0.5}
    assert solo.controls.singer is None and plain.controls.singer is None and plain.sampling == SamplingOptions()
    assert duo.sampling == solo.sampling


def test_a_clip_is_cut_and_timed(base):
    listing = next(x for x in instrument.list_folder(base.instruments) if x.path.stem == "duo")
    controls = Controls(use_loudness_statistics=False, attenuation_db=0.0, semitone_shift=3.0)
    song, row = ab_compare.compare(
        ab_compare.variants([listing], ("ddim",), (3,)),
        base.examples / "a song.wav",
        0.2,
        1.0,
        {listing.path: ab_compare.Settings(controls)},
    )
    assert len(song.audio) == len(row.audio) == round(RATE / FEATURES.hop_samples) * FEATURES.hop_samples
    assert row.label == "duo, ddim, 3 steps" and row.problem == ""
    assert row.figures["seconds"] > 0
    assert row.figures["real_time_factor"] == pytest.approx(row.figures["seconds"] * RATE / len(row.audio))
    assert song.cells() == ["\N{EN DASH}"] * 6


def test_a_clip_is_cut_once_for_all_variants_of_a_grid_and_in_the_key_of_its_voice(base, monkeypatch):
    cut, excerpt = [], ab_compare.excerpt
    monkeypatch.setattr(ab_compare, "excerpt", lambda *a: cut.append(a) or excerpt(*a))
    make_song(base.examples / "low.wav", 55.0)  # A1, below both voices
    listings = [x for x in instrument.list_folder(base.instruments) if x.converts]
    asked = ab_compare.variants(listings, ("ddim",), (3, 4))
    settings = {x.path: ab_compare.Settings(suggested_key=True) for x in listings}
    asked_of, convert = [], pipeline.convert
    monkeypatch.setattr(
        pipeline, "convert", lambda voice, *a, **k: asked_of.append((voice, *a)) or convert(voice, *a, **k)
    )
    rows = list(ab_compare.compare(asked, base.examples / "low.wav", 0.2, 0.5, settings))
    assert [row.problem for row in rows] == [""] * 4 and len(cut) == 2  # of two mel settings, not of three variants
    for voice, clip, controls, *_ in asked_of:
        song = songs.load_song(base.examples / "low.wav", voice.features)
        assert controls == suggest_shift(song.features, voice.statistics, voice.kind).applied()
        assert controls.pitch_shift_semitones >= 12 and clip.n_samples < song.n_samples


@pytest.mark.parametrize("code", ["words", "cnn"])
def test_whisper_is_refused_before_it_works_and_can_be_stopped(base, monkeypatch, code):
    opened, measured = instrument.open(base.instruments / "duo.zip"), []
    song, options = songs.load_song(base.examples / "a song.wav", FEATURES), SamplingOptions(content="whisper")
    settings = dataclasses.replace(opened.model.settings)
    object.__setattr__(settings, "content", code)
    monkeypatch.setattr(opened.model, "settings", settings)

    def extract(*given, progress):
        measured.append(given)
        progress(0.5, "measuring the content")
        return np.zeros((song.features.n_frames, 64), np.float16)

    monkeypatch.setattr(pipeline.content_features, "extract", extract)
    reports = []
    watch = {"progress": lambda *report: reports.append(report), "cancelled": lambda: bool(measured)}
    with pytest.raises(Cancelled if code == "words" else ConversionError):
        pipeline.convert(opened, song, None, options, **watch)
    assert len(measured) == (code == "words") and bool(reports) == (code == "words")


def test_numbers_of_a_row_against_a_sound_that_is_known(base):
    """A tone 20 cents above the pitch that was asked and 6 dB below the loudness, silent in the last quarter."""
    opened = instrument.open(base.instruments / "duo.zip")
    clip = songs.excerpt(songs.load_song(base.examples / "a song.wav", FEATURES), 0.1, 1.024)
    made = pipeline.convert(opened, clip, Controls(use_loudness_statistics=False, attenuation_db=0.0))
    asked = dataclasses.replace(made.tracks, f0_hz=np.full(64, 261.63, np.float32), voiced=np.ones(64, bool))
    t = np.arange(64 * 256) / RATE
    phase = 2 * np.pi * 261.63 * 2 ** (20 / 1200) * t
    tone = (0.2 * sum(np.sin(k * phase) / k for k in range(1, 9)) * (t < 0.768)).astype(np.float32)
    loudness = extract.extract(2 * tone, FEATURES).loudness_db
    row = ab_compare.measure(
        "x",
        dataclasses.replace(
            made, audio=tone, tracks=dataclasses.replace(asked, loudness_db=loudness), seconds=0.5, gain_db=0.0
        ),
    )
    assert row.figures["rmse"] == pytest.approx(20, abs=4)
    assert row.figures["voicing_f1"] == pytest.approx(2 * 48 / (48 + 64), abs=0.03)
    assert row.figures["loudness_l1_db"] == pytest.approx(6.02, abs=0.05)
    assert row.figures["real_time_factor"] == pytest.approx(0.5 / 1.024)
    assert row.cells()[0] == "0.50" and row.cells()[2].endswith(" cents")


def test_a_variant_that_fails_is_a_row_and_the_others_go_on(base):
    other = FeatureSettings(RATE, 256, mel=dataclasses.replace(FEATURES.mel, fmax_hz=7000.0))
    wrong = save_instrument(base.instruments, "wrong", VOCODER, other)
    listing = next(x for x in instrument.list_folder(base.instruments) if x.path.stem == "duo")
    asked = ab_compare.variants([listing], (None,), (3,), vocoders=(wrong, None))
    _, bad, good = ab_compare.compare(asked, base.examples / "a song.wav", seconds=1.0)
    assert "fmax_hz 7000.0 against 7600.0" in bad.problem and bad.audio is None
    assert good.problem == "" and good.audio is not None
    panel = widgets_convert.ComparePanel(base)
    for row in (bad, good):
        panel.append(row)
    assert "fmax_hz 7000.0" in panel.table.value and panel.table.value.count("<audio") == 1


def test_a_song_that_vanished_is_listed_with_a_sentence(tmp_path):
    error = FileNotFoundError(2, "No such file or directory", str(tmp_path / "a.wav"))
    text = pipeline.describe(1, {tmp_path / "a.wav": error})
    assert "0 of 1 songs" in text and "a.wav' could not be used" in text and "[Errno" not in text


def test_a_folder_that_is_gone_leaves_menus_and_buttons_of_one_mind(base):
    panel = widgets_convert.ComparePanel(base)
    for path in (*base.instruments.glob("*.zip"), *base.examples.iterdir()):
        path.unlink()
    base.examples.rmdir()
    panel.refresh_button.click()
    assert "svclib-error" in said(panel)
    assert panel.compare_button.disabled == (not panel.instruments.options or panel.song.value is None)


def test_comparing_can_be_cancelled_and_the_rows_stay(base, monkeypatch):
    panel = widgets_convert.ComparePanel(base)
    panel.instruments.value = tuple(entry for _, entry in panel.instruments.options)
    began, go, measured = threading.Event(), threading.Event(), ab_compare.measure

    def slow(*args):
        began.set()
        go.wait(30)
        return measured(*args)

    monkeypatch.setattr(ab_compare, "measure", slow)
    panel.seconds.value = 0.5
    panel.compare_button.click()
    assert began.wait(60) and panel.compare_button.disabled
    panel.cancel_button.click()
    go.set()
    panel.task.wait(60)
    assert len(panel.rows) == 2 and "cancelled" in said(panel) and not panel.compare_button.disabled


def test_a_table_escapes_everything_but_its_players():
    table = page.table(["a", "b"], [["<b>x</b>", page.small_player(np.zeros(800), 8000, "<i>")]])
    assert "&lt;b&gt;x" in table and "<b>" not in table and table.count("<audio") == 1 and "<i>" not in table
