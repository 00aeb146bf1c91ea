"""Truths about the lesson: pages that can all be done, from the same noise, with the sound that was said; the
comparison runs are short; it is one file below 10 MB that asks for nothing; text stays text; what cannot be is a
sentence. DiffWave's page shows the states of its run."""

import base64
import dataclasses
import html
import io
import json
import re
import types

import browsing
import numpy as np
import pytest
import soundfile
import toy
from browsing import NAME, data_of, wait_until

from svclib.__main__ import main
from svclib.analysis import lesson, player, step_audio
from svclib.audio import io as audio
from svclib.audio import mel as mel_
from svclib.audio.mel import MelConfig
from svclib.conversion import recognition
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.data import singers
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.diffwave import model as diffwave
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.training import api as training
from svclib.utils.errors import Cancelled, ConversionError

CONTRACT = MelConfig(16000, 1024, 1024, 256, 40, 0.0, 7600.0)
FEATURES = FeatureSettings(sample_rate_hz=16000, hop_samples=256, mel=CONTRACT)
VOCODER = HarmonicSettings(n_harmonics=40, n_noise_bands=17, channels=16, n_layers=1, fft_sizes=(512, 128))
SETTINGS = DiffusionSettings(
    channels=16,
    n_layers=2,
    condition_dims=16,
    coarse_channels=16,
    coarse_layers=1,
    content_channels=16,
    content_layers=1,
    code_dims=8,
    sampler_steps=4,
    vocoder=VOCODER,
)
WAVE_FEATURES = FeatureSettings(sample_rate_hz=8000, hop_samples=64)


@pytest.fixture(scope="module")
def song_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("song") / "one & two.wav"
    return audio.write(path, singers.render("bruno", singers.demo_song(), 16000).audio, 16000)


@pytest.fixture(scope="module")
def voice():
    statistics = {**toy.STATISTICS, "log_mel": {"min": -11.6, "max": 2.0}, "singers": {"aria": {}, "bruno": {}}}
    model = SETTINGS.build(FEATURES, statistics).eval()
    return types.SimpleNamespace(kind="diffusion", name=NAME, model=model, features=FEATURES, statistics=statistics)


@pytest.fixture(scope="module")
def wave_model():
    settings = diffwave.DiffWaveSettings(condition="none", channels=8, n_layers=3)
    return settings.build(WAVE_FEATURES)


@pytest.fixture(scope="module")
def made(voice, song_path, wave_model):
    group = player.group(lesson.fast_and_full(wave_model, 4096, every_step=False))
    facts = {"wave_steps": 6, "wave_text": f"a small model {NAME}"}
    song = songs.load_song(song_path, FEATURES)
    return lesson.make(voice, song, lesson.LessonOptions(0.1, 1.5, 16), wave=(group, facts))


@pytest.fixture(scope="module")
def text(made):
    return lesson.document(lesson.data(made))


def pages_of(text):
    return json.loads(re.search(r'id="pages">(.*?)</script>', text, re.S)[1])


@pytest.mark.case("L2")
def test_the_main_run_holds_every_step_and_the_others_at_most_eight(made):
    run, without, fewer, guessed = made.groups
    assert len(run) == 1 and len(run[0].trace) == 16 and sorted(run[0].audio.audio) == list(range(16))
    for other in (*without, *fewer):
        assert other.compact and len(other.trace) <= 8 and sorted(other.audio.audio) == list(range(len(other.trace)))
    assert [r.label for r in without] == ["all three", "content off", "melody off", "timbre off", "timbre of bruno"]
    assert [len(r.trace) for r in fewer] == [8, 4, 8] and fewer[2].trace.n_calls == 10


@pytest.mark.case("L2")
def test_all_runs_begin_with_the_same_noise_and_differ_at_the_end(made):
    run, without, fewer, _ = made.groups
    for other in (*without, *fewer):
        np.testing.assert_array_equal(other.trace.x_t[0], run[0].trace.x_t[0])
    np.testing.assert_array_equal(without[0].trace.result, run[0].trace.result)
    for other in without[1:]:
        assert np.abs(other.trace.result.astype(float) - run[0].trace.result).max() > 1e-3


@pytest.mark.case("L4")
def test_sound_without_the_melody_does_not_depend_on_it(made, voice):
    """With a vocoder it would: it is told F0. So a run without melody, and the guessing page, sound without one."""
    _, without, _, guessed = made.groups
    assert "picture alone" in without[2].audio.kind and "picture alone" in guessed[0].audio.kind
    trace = guessed[0].trace
    other = {**trace.conditions, "f0_hz": trace.conditions["f0_hz"] * 2}
    other = dataclasses.replace(trace, conditions=other)
    again = step_audio.render_audio(voice.model, other, [3], mel_only=True)
    np.testing.assert_array_equal(again.audio[3], guessed[0].audio.audio[3])


def test_sound_in_the_page_is_the_excerpt(text, song_path):
    mime, data = pages_of(text)["sounds"]["source"]
    heard, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(data)))
    wanted = audio.read(song_path).samples[int(0.1 * 16000) // 256 * 256 :][: len(heard)]
    assert rate_hz == 16000 and mime == "audio/mpeg"
    assert np.corrcoef(heard[: len(wanted)], wanted)[0, 1] > 0.99


@pytest.mark.case("L3")
def test_one_file_below_10_mb_without_links(text):
    assert len(text.encode()) < 10e6
    assert set(re.findall(r"https?://[^\s\"'\\]+", text)) == {"http://www.w3.org/2000/svg"}
    assert text.count("<script") == text.count("</script>") == 4 and "<img" not in text
    assert f"a small model {NAME}" in "".join(pages_of(text)["pages"][7]["text"][1])


@pytest.mark.case("L3")
def test_a_full_lesson_stays_below_10_mb_by_the_rough_measure():
    small = MelConfig(22050, 1024, 1024, 256, 80, 0.0, 8000.0)
    assert "will have about" in lesson.check_size(lesson.estimate_bytes(5.0, 50, small))
    large = MelConfig()  # 128 mels at 44.1 kHz
    with pytest.raises(ConversionError, match="shorter excerpt"):
        lesson.check_size(lesson.estimate_bytes(20.0, 50, large))
    assert lesson.max_seconds(50, small) > 5 > lesson.max_seconds(50, large) > 3
    for contract in (small, large):
        fits_s = lesson.max_seconds(50, contract)
        lesson.check_size(lesson.estimate_bytes(fits_s, 50, contract))
        with pytest.raises(ConversionError, match=rf"up to {fits_s:g} s fit here\) or fewer"):
            lesson.check_size(lesson.estimate_bytes(fits_s + 0.11, 50, contract), fits_s)


def test_every_word_is_explained_and_every_task_has_an_event():
    facts = {"song": "s", "voice": "v", "steps": 9, "seed": 0, "target": "t", "without": ["a"], "fewer": ["b"]}
    facts |= {"caution": "", "wave_steps": 6, "wave_text": ""}
    book = lesson.pages(facts)
    found = book["pages"]
    assert len(found) == 8 and all(p["todo"] and all(t["when"] for t in p["todo"]) for p in found)
    marked = [mark for page in found for text in page["text"] for mark in text[1::2]]
    words = {mark[2:-2].lower() for mark in marked if mark.startswith("[[")}
    assert len(words) > 10 and words <= set(book["words"])


@pytest.mark.case("red 12")
def test_names_with_the_marks_of_templates_stay_names():
    """Of every language that has a part in the page; the browser's tests look at markup."""
    name = "@DATA@ {{ 7 * 7 }} {% raw %} [[timbre]] *a* {song} %s </script>"
    facts = {"song": name, "voice": name, "steps": 9, "seed": 0, "target": name, "without": [name], "fewer": [name]}
    facts |= {"caution": name, "wave_steps": 6, "wave_text": "", "method": "ddim"}
    book = lesson.pages(facts)
    first = next(text for page in book["pages"] for text in page["text"] if name in "".join(text))
    assert not any(name in mark or "a" == mark.strip("*") for mark in first[1::2])
    page_text = lesson.document({**lesson.example_data(), "title": name, "facts": facts})
    title = re.search("<title>(.*?)</title>", page_text)[1]
    assert html.unescape(title) == name and "</script>" not in title
    assert name in json.dumps(pages_of(page_text), ensure_ascii=False)


def test_a_student_adds_the_page_of_its_jumps(voice, song_path, wave_model):
    """Fresh weights put out nothing: then the flow is straight, and jumps from everywhere land in one place."""
    settings = dataclasses.replace(SETTINGS, prediction="consistency", sampler="consistency")
    student = types.SimpleNamespace(**{**vars(voice), "model": settings.build(FEATURES, voice.statistics).eval()})
    song, options = songs.load_song(song_path, FEATURES), lesson.LessonOptions(0.1, 1.0, 40, student=student)
    group = player.group(lesson.fast_and_full(wave_model, 4096, every_step=False))
    made = lesson.make(voice, song, options, wave=(group, {"wave_steps": 6, "wave_text": ""}))
    teacher, landed, *own = made.groups[4]
    assert [len(run.trace) for run in made.groups[4]] == [8, 8, 1, 2, 4]
    np.testing.assert_array_equal(landed.trace.x_t, teacher.trace.x_t)
    guesses = landed.trace.x0_hat.astype(float)
    moved, teachers = (np.abs(x - x[0]).mean() for x in (guesses, teacher.trace.x0_hat.astype(float)))
    assert moved < 0.01 < 0.1 < teachers
    np.testing.assert_allclose(own[0].trace.x0_hat[0], guesses[0], atol=0.02)  # by one step, from the same noise
    page = pages_of(lesson.document(lesson.data(made)))["pages"][8]
    assert len(page["acts"]) == len(page["todo"]) == 5 and page["group"] == 5
    for other in (voice, types.SimpleNamespace(kind="ddsp", name="x")):
        with pytest.raises(ConversionError):
            lesson.make(voice, song, dataclasses.replace(options, student=other))
    with pytest.raises(ConversionError):
        lesson.make(student, song)


def test_refusals(voice, song_path):
    song = songs.load_song(song_path, FEATURES)
    with pytest.raises(ConversionError, match="no sampling steps"):
        lesson.from_file(types.SimpleNamespace(kind="ddsp", name="x"), song_path)
    with pytest.raises(ConversionError, match="8 to 1000"):
        lesson.make(voice, song, lesson.LessonOptions(steps=4))
    with pytest.raises(ValueError, match="holds nothing"):
        lesson.make(voice, song, lesson.LessonOptions(100.0))
    with pytest.raises(Cancelled):
        lesson.make(voice, song, cancelled=lambda: True)
    with pytest.raises(ConversionError, match="MB"):
        lesson.from_file(voice, song_path, lesson.LessonOptions(seconds=60.0))


# DiffWave ---------------------------------------------------------------------------------------------------------


def test_a_waveform_is_shown_and_played_as_the_run_made_it(wave_model):
    run = lesson.fast_and_full(wave_model, 4096, seed=3, every_step=False)[0]
    steps = []
    made = diffwave_uses.generate(wave_model, 4096, options=SamplingOptions(seed=3), fast=True, callback=steps.append)
    np.testing.assert_allclose(run.trace.result.astype(float), made[0], atol=2e-3)
    assert len(run.trace) == len(steps) == 6
    contract = run.trace.contract
    wanted = mel_.log_mel(steps[2].x_t.half().float(), contract)[0].T.numpy() * 20 / np.log(10)
    np.testing.assert_allclose(run.trace.level_db(run.trace.x_t)[2], wanted, atol=0.05)
    shown = data_of(player.document([run]))
    assert (shown["kind"], shown["mels"], shown["frames"]) == ("wave", 64, 4096 // contract.hop_samples)
    states = run.trace.x_t[5].astype(float), run.trace.x0_hat[5].astype(float)
    heard = [
        np.abs(h.audio[5]).max() / np.abs(x).max() for h, x in zip((run.noisy_audio, run.audio), states, strict=True)
    ]
    shown = [10 ** (-h.attenuated_db.get(5, 0.0) / 20) for h in (run.noisy_audio, run.audio)]
    assert heard[0] / heard[1] == pytest.approx(shown[0] / shown[1], rel=0.02)  # one gain, but for what is said


def test_outline_holds_every_peak():
    x = np.zeros((1, 6000), np.float16)
    x[0, 3333], x[0, 17] = 2.0, -4.0
    found = player.outline(x, 4.0)
    assert found.shape == (1, 2, 600) and found[0, 1, 333] == 64 and found[0, 0, 1] == -127
    assert np.count_nonzero(found) == 2


def test_pitch_of_each_step_is_measured_on_its_sound(voice, song_path):
    """A tone of known pitch in place of every sound: its distance to what was asked is known."""
    song = songs.load_song(song_path, FEATURES)
    asked = lesson.ablation.cut_excerpt(song, voice.statistics, 0.1, 1.5)
    trace = lesson.ablation.run(
        voice.model, asked, (), lesson.ablation.RunOptions(SamplingOptions(steps=4), features=False)
    ).trace
    n = trace.n_frames * 256
    tone = np.sin(2 * np.pi * 220 * np.arange(n) / 16000).astype(np.float32)
    heard = step_audio.StepAudio({1: 0.3 * tone}, 16000)
    sung = step_audio.measure_f0(trace, heard)
    f0_hz, voiced = sung[1]
    assert list(sung) == [1] and np.median(f0_hz[voiced]) == pytest.approx(220, rel=0.003)
    curve = next(r for r in [data_of(player.document([player.Run(trace, "a", heard, sung)]))["runs"][0]["values"]])[
        "F0 RMSE"
    ]
    on = voiced & trace.conditions["voiced"]
    wanted = np.sqrt(np.mean((1200 * np.log2(f0_hz[on] / trace.conditions["f0_hz"][on])) ** 2))
    assert curve[0] is None and curve[1] == pytest.approx(wanted, rel=1e-3)


@pytest.fixture(scope="module")
def wave_file(tmp_path_factory, wave_model):
    path = tmp_path_factory.mktemp("models") / "sea.zip"
    return instrument.save(path, wave_model, WAVE_FEATURES, toy.STATISTICS, created="2026-11-21")


@pytest.mark.case("L5")
def test_trace_command_shows_diffwave(tmp_path, capsys, song_path, wave_file):
    arguments = ["trace", "--instrument", str(wave_file), "--input", str(song_path), "--seconds", "0.25"]
    assert main([*arguments, "--out", str(tmp_path / "wave.html")]) == 0
    assert "will have about" in (said := capsys.readouterr().out) and "a page of DiffWave's steps, 0.25 s" in said
    text = (tmp_path / "wave.html").read_text("utf-8")
    shown = data_of(text)
    assert (shown["kind"], [run["label"] for run in shown["runs"]]) == ("wave", ["6 steps", "50 steps"])
    assert shown["frames"] * shown["frame_s"] == pytest.approx(0.25, abs=shown["frame_s"])
    assert text == lesson.diffwave_document(instrument.open(wave_file), None, 0.0, 0.25)


def test_a_vocoder_of_waves_renders_the_excerpt_again(song_path):
    settings = diffwave.DiffWaveSettings(channels=8, n_layers=2, condition_dims=6, n_steps=4, fast_etas=())
    features = FeatureSettings(sample_rate_hz=8000, hop_samples=64, mel=MelConfig(8000, 256, 256, 64, 12, 0.0, 4000.0))
    vocoder = types.SimpleNamespace(kind="diffwave", name="v", model=settings.build(features), features=features)
    song = songs.load_song(song_path, features)
    text = lesson.diffwave_document(vocoder, song, 0.4, 0.25)
    assert "v: sings one &amp; two again, out of noise" in text
    asked = lesson.ablation.cut_excerpt(song, None, 0.4, 0.25, Controls())
    assert [len(run["t"]) for run in data_of(text)["runs"]] == [4]
    run = lesson.fast_and_full(vocoder.model, 0, excerpt=asked)[0]
    made = diffwave_uses.vocode(vocoder.model, asked.log_mel, fast=False)
    np.testing.assert_allclose(run.trace.result.astype(float), np.ravel(made), atol=2e-3)
    with pytest.raises(ConversionError, match="needs a mel"):
        lesson.demonstrate(vocoder)
    with pytest.raises(ConversionError, match="up to 5 s"):
        lesson.diffwave_document(vocoder, song, 0.0, 6.0)
    with pytest.raises(ConversionError, match="'v' is a vocoder.*needs a song"):
        lesson.diffwave_document(vocoder)


def test_an_instrument_of_waves_at_work(wave_file):
    shown = data_of(lesson.demonstrate(instrument.open(wave_file), 0.2))
    labels = [run["label"] for run in shown["runs"]]
    assert labels[0] == "generate, 6 steps" and labels[1].startswith("denoise, from step 6"), labels
    assert [label.split(",")[0] for label in labels[2:]] == ["interpolate 0 %", "interpolate 50 %"]
    assert shown["title"] == "sea at work" and shown["frames"] == 1600 // 64 * 64 // 64


# the bundled one --------------------------------------------------------------------------------------------------


def test_the_example_comes_with_the_package_and_is_small():
    assert lesson.EXAMPLE.stat().st_size < 4.5e6
    text = lesson.example()
    assert len(text) < 10e6 and len(pages_of(text)["pages"]) == 9
    assert data_of(lesson.example_diffwave())["kind"] == "wave"


def test_the_bundled_lesson_can_be_handed_out_as_it_is(tmp_path, capsys):
    out = ["--out", str(tmp_path / "lesson.html")]
    assert main(["trace", "--example", *out]) == 0 and "comes with svclib" in capsys.readouterr().out
    assert (tmp_path / "lesson.html").read_text("utf-8") == lesson.example()
    assert main(["trace", "--instrument", "voice.zip", *out]) == 2
    assert "--input is missing" in capsys.readouterr().err


@pytest.mark.case("L5")
def test_trace_command_makes_the_same_page(tmp_path, capsys, song_path, monkeypatch):
    preset = toy.preset(SETTINGS, FEATURES, steps=1, segment_s=0.5, validate_every_steps=1)
    from toy_diffusion import MelDataset

    training.train(MelDataset(), tmp_path / "run", preset)
    path = training.export(tmp_path / "run", tmp_path / "voice.zip", "last")
    arguments = ["trace", "--instrument", str(path), "--input", str(song_path), "--start", "0.1", "--seconds", "0.6"]
    arguments += ["--steps", "8", "--out", str(tmp_path / "lesson.html")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "will have about" in said and "lesson of eight pages" in said
    made, _ = lesson.from_file(instrument.open(path), song_path, lesson.LessonOptions(0.1, 0.6, 8))
    assert (tmp_path / "lesson.html").read_text("utf-8") == made
    assert main([*arguments[:-1], str(tmp_path / "lesson.txt")]) == 2 and ".html" in capsys.readouterr().err


# in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.case("L1")
@pytest.mark.browser
def test_every_page_can_be_done_in_a_browser(tmp_path, text):
    browsing.require_chromium()
    path = player.export(text, tmp_path / "lesson.html")
    with browsing.browser(1280, 1000) as tab:
        seen = browsing.open_player(tab, path)

        def finished(k):
            return tab.evaluate(f"window.lesson.finished[{k}]")

        def until_done(k):
            wait_until(tab, f"window.lesson.finished[{k}]", 20)

        def listen():
            tab.locator("#listen").click()
            wait_until(tab, "window.player.playing")

        assert tab.evaluate("window.lesson.finished.length") == 8 and not any(finished(k) for k in range(8))
        for k in range(2):  # what we hear
            tab.locator("#acts button").nth(k).click()
            wait_until(tab, f"document.querySelectorAll('#todo li.done').length > {k}", 20)
        until_done(0)
        tab.keyboard.press("n")
        assert tab.evaluate("window.lesson.page") == 1 and not finished(1)
        tab.locator("#step").focus()
        tab.keyboard.press("Home")
        assert not finished(1)
        for _ in range(4):
            tab.keyboard.press("ArrowRight")
        tab.keyboard.press("End")
        until_done(1)

        tab.locator("#forward").click()
        shown = tab.locator("#live").inner_text()
        data, step = data_of(text)["runs"][0], tab.evaluate("window.player.state.step")
        for number in (data["alpha"][step], data["sigma"][step], data["alpha"][step + 1], data["sigma"][step + 1]):
            assert f"{number:.3f}" in shown
        tab.evaluate("window.player.set({step: 3}); window.player.set({step: 4}); window.player.set({step: 5})")
        assert not finished(2)
        listen()
        until_done(2)

        tab.locator("#dots button").nth(3).click()
        assert not tab.evaluate("window.player.playing")
        listen()
        tab.evaluate("for (let i = 0; i < 9; i++) window.player.set({step: i})")
        for k in range(2):
            tab.locator("#acts button").nth(k).click()
        until_done(3)

        tab.locator("#dots button").nth(4).click()  # guessing: nothing is shown before
        assert not tab.locator("#guesscard").is_visible()
        tab.locator("#reveal").click()
        assert "three guesses" in tab.locator("#message").inner_text() and not finished(4)
        tab.keyboard.press("n")
        assert not tab.locator("#message").is_visible()  # it is about the page before
        tab.keyboard.press("b")
        listen()
        for k in range(3):
            tab.evaluate(f"window.player.set({{step: {2 + 2 * k}}})")
            tab.locator("[data-guess]").nth(k).click()
        assert not finished(4) and not tab.locator("#guesscard").is_visible()
        tab.locator("#reveal").click()
        until_done(4)
        assert tab.locator("#guesscard").is_visible() and tab.locator("#live td").count() == 15

        for k, n in ((5, 5), (6, 3)):
            tab.locator("#dots button").nth(k).click()
            for i in range(n):
                assert not finished(k)
                tab.locator(f"#acts [data-run='{i}']").click()
                wait_until(tab, f"window.player.playing && window.player.state.run === {i}")
            until_done(k)

        tab.locator("#dots button").nth(7).click()  # another grid: the waveform
        assert tab.locator("#wavecard").is_visible() and tab.evaluate("window.player.state.ear") == "noisy"
        listen()
        for step in range(6):
            tab.evaluate(f"window.player.set({{step: {step}}})")
        assert not finished(7)
        tab.locator("#acts button").nth(1).click()
        until_done(7)
        assert tab.locator("#pagecount").inner_text() == "page 8 of 8 · 8 done"
        tab.keyboard.press("b")
        assert tab.evaluate("[window.lesson.page, window.player.state.group]") == [6, 2]

        tab.emulate_media(color_scheme="dark")
        tab.set_viewport_size({"width": 390, "height": 844})
        for k in range(8):
            tab.evaluate(f"window.lesson.show({k})")
            tab.wait_for_timeout(60)
            wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391).length"
            assert tab.evaluate(wide) == 0, f"page {k + 1} is wider than a phone"
        assert seen == {"errors": [], "outside": []}


@pytest.mark.browser
def test_the_map_of_four_runs_of_diffwave_can_be_read(tmp_path):
    browsing.require_chromium()
    with browsing.browser(1280, 1000) as tab:
        browsing.open_player(tab, player.export(lesson.example_diffwave(), tmp_path / "wave.html"))
        assert browsing.overlapping_texts(tab, "#map text") == []
        assert "denoise, from step 25" in tab.locator("#mapkey").inner_text()
        assert tab.locator("#scale .sounding").inner_text() == "sound"


def test_words_are_a_line_over_the_compared_steps(voice, song_path, wave_model, monkeypatch):
    """Transcripts "abcd" of the source and "abxd" of every step: the error rate is 1/4 at the eight steps compared."""
    texts = []

    class Scripted:
        name = "scripted"

        def transcribe(self, samples, language=None):
            texts.append("abxd" if texts else "abcd")
            return recognition.Transcript(texts[-1], "en")

    monkeypatch.setattr(recognition, "WhisperRecognizer", Scripted)
    group = player.group(lesson.fast_and_full(wave_model, 4096, every_step=False))
    options = lesson.LessonOptions(0.1, 1.0, 16, words=True)
    made = lesson.make(
        voice, songs.load_song(song_path, FEATURES), options, wave=(group, {"wave_steps": 6, "wave_text": ""})
    )
    run, metric = made.groups[0][0], "character error rate"
    assert set(run.words.values()) == {0.25} and len(run.words) == 8 and len(texts) == 9
    assert metric in json.dumps(player.group([run])) and metric not in json.dumps(player.group(made.groups[2][1:]))
