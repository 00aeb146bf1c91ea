"""Truths about the player: what it shows is what the trace holds, in a browser without a network; one colour means one
level; differences have a sign; sounds have one gain; names stay text. Pictures are left in pytest's folder."""

import re

import browsing
import numpy as np
import pytest
from browsing import NAME, data_of, wait_until
from traces import sharpening

from svclib.analysis import compare, player, step_audio
from svclib.analysis import html as page
from svclib.audio import units
from svclib.utils.errors import ConversionError


def shown(trace, label="", n_sounds=6, cents=True):
    tone = np.sin(2 * np.pi * 330 * np.arange(trace.result.shape[1] * 256) / 22050).astype(np.float32)
    wanted = np.unique(np.linspace(0, len(trace) - 1, n_sounds).round().astype(int))
    heard = step_audio.render_steps(trace, lambda mel: tone * (0.1 + 0.001 * mel.std()), wanted)
    rng, sung = np.random.default_rng(0), {}
    for i in range(len(trace)):
        wrong = 400 * trace.sigma[i] ** 2 * rng.standard_normal(trace.result.shape[1])
        sung[i] = (trace.conditions["f0_hz"] * 2 ** (wrong / 1200), trace.conditions["voiced"])
    return player.Run(trace, label, heard, sung)


@pytest.fixture(scope="module")
def runs():
    few = sharpening(8, method="ddim", transpose=4)
    return [shown(sharpening(), "24 steps"), shown(few, NAME)]


@pytest.fixture(scope="module")
def document(runs):
    return player.document(runs, f"From noise to singing {NAME}")


def test_the_page_is_one_file_that_asks_for_nothing(document):
    assert len(document) < 10e6 and document.count("<script") == document.count("</script>") == 2
    assert "onerror=alert" not in document.replace("\\u003cimg src=x onerror=alert", "").replace(
        "&lt;img src=x onerror=alert", ""
    )
    addresses = set(re.findall(r"https?://[^\s\"']+", document))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place to fetch from
    assert "default-src 'none'" in document and not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\(", document)
    assert data_of(document)["runs"][1]["label"] == NAME


def test_the_template_is_small():
    from pathlib import Path

    assert Path(player.__file__).with_name("player.html").stat().st_size < 100_000


def test_sounds_share_one_gain_and_noise_is_turned_down():
    end = 0.2 * np.sin(np.arange(8000) / 10).astype(np.float32)
    made = step_audio.common_gain({0: 4 * end, 1: 0.5 * end, 2: end}, end, 8000)
    audio, quieter = made.audio, made.attenuated_db
    assert np.abs(audio[2]).max() == pytest.approx(0.7, rel=1e-3)
    np.testing.assert_allclose(audio[1], audio[2] / 2, atol=1e-6)
    np.testing.assert_allclose(audio[0], audio[2] * 10 ** (-12 / 20), atol=1e-6)
    assert quieter == {0: pytest.approx(20 * np.log10(4) + 12, abs=0.06)}


def test_what_does_not_belong_together_is_refused(runs):
    with pytest.raises(ConversionError, match="no run"):
        player.document([])
    with pytest.raises(ConversionError, match="same excerpt"):
        player.document([runs[0], player.Run(sharpening(3, seconds=1.0))])
    with pytest.raises(ConversionError, match="too many"):
        player.document(runs * 3)


def test_export_overwrites_nothing(tmp_path, document):
    first, second = (player.export(document, tmp_path / "lesson") for _ in range(2))
    assert first.name == "lesson.html" and second.name != first.name and first.read_text("utf-8") == document


@pytest.mark.browser
def test_in_a_browser_from_a_file(tmp_path, runs, document):
    browsing.require_chromium()
    path = player.export(document, tmp_path / "player.html")
    with browsing.browser(1280, 1400) as tab:
        seen = browsing.open_player(tab, path)
        trace = runs[0].trace
        low, high = data_of(document)["range_db"]

        def level(name, mel, frame):
            """The level a pixel stands for, by its place in the colour table of the guess of the result."""
            k = (79 - mel) * trace.result.shape[1] + frame
            return tab.evaluate(f"window.player.pixels('{name}')[{k}]")

        # scrubbing: the bytes shown are the trace's; the same level has the same colour at every step
        by_value = {}
        for step in (0, 11, 23):
            tab.evaluate(f"window.player.set({{step: {step}}})")
            values = np.clip(np.rint((trace.level_db(trace.x0_hat[step]) - low) / (high - low) * 255), 0, 255)
            for mel, frame in [(3, 10), (20, 100), (60, 200), (79, 5)]:
                by_value.setdefault(int(values[mel, frame]), set()).add(level("guess", mel, frame))
        assert all(len(colours) == 1 for colours in by_value.values()) and len(by_value) >= 6

        # differences: zero is one colour; against itself all is zero; the last step equals the result
        tab.evaluate("window.player.set({step: 23, against: 'end'})")
        assert tab.evaluate("new Set(window.player.pixels('change')).size") == 1
        tab.evaluate("window.player.set({step: 0, against: 'before'})")
        assert "nothing comes before" in tab.locator("#signs").inner_text()
        tab.evaluate("window.player.set({run: 0, against: 'run0'})")
        assert "itself" in tab.locator("#signs").inner_text()

        # the keyboard, from wherever the focus is
        tab.evaluate("window.player.set({step: 10, against: 'end'})")
        for key, step in [("ArrowRight", 11), ("Shift+ArrowRight", 16), ("ArrowLeft", 15), ("End", 23), ("Home", 0)]:
            tab.keyboard.press(key)
            assert tab.evaluate("window.player.state.step") == step, key
        assert tab.locator("#where").inner_text() == "step 1 of 24"
        tab.evaluate("window.player.set({step: 12})")
        snr = data_of(document)["runs"][0]["snr"][12]
        tab.keyboard.press("2")
        other = data_of(document)["runs"][1]["snr"]
        assert tab.evaluate("[window.player.state.run, window.player.state.step]") == [
            1,
            int(np.argmin(np.abs(np.array(other) - snr))),
        ]
        tab.keyboard.press("1")
        tab.keyboard.press("d")
        assert tab.evaluate("window.player.state.against") == "before"

        tab.keyboard.press("d")
        settled = np.mean(compare.decision(trace)[0] <= 12) * 100
        told = int(re.match(r"(\d+) %", tab.locator("#signs").inner_text())[1])
        assert told == pytest.approx(settled, abs=4) and 5 < settled < 95  # levels on the page are in steps of 0.4 dB

        # louder than the result is orange, softer is blue
        tab.evaluate("window.player.set({step: 12, against: 'end'})")
        change = trace.level_db(trace.x0_hat[12]) - trace.level_db(trace.result)
        for place in (np.unravel_index(change.argmax(), change.shape), np.unravel_index(change.argmin(), change.shape)):
            pixel = level("change", *map(int, place))
            assert ((pixel & 255) - (pixel >> 16 & 255)) * change[place] > 0

        # the map: where the paths begin and which is which; no text covers another
        assert set(tab.locator("#map text").all_text_contents()) >= {"noise", "1", "2"}
        assert browsing.overlapping_texts(tab, "#map text") == []
        assert tab.locator("#mapkey").inner_text() == f"1 24 steps · 2 {NAME}"

        # numbers: the formula is the schedule's
        tab.evaluate("window.player.set({step: 12, against: 'end'})")
        text = tab.locator("#formula").inner_text()
        assert f"{trace.alpha[12]:.3f}" in text and f"{trace.sigma[12]:.3f}" in text
        both = trace.conditions["voiced"]
        cents = units.cents(runs[0].f0[12][0][both].round(1), trace.conditions["f0_hz"][both].round(1))
        assert tab.locator("#off").inner_text() == (
            f"{np.sqrt(np.square(cents).mean()):.0f} cents RMS, {both.sum()} frames voiced in both"
        )
        value = compare.mel_metrics(trace, warped=False)[1].values[12]
        assert f"{value:.3g} dB" in tab.locator("#curves").inner_text()

        # a click in the map and in a picture
        box = tab.locator("#guess").bounding_box()
        tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + 30)
        assert tab.evaluate("window.player.state.time") == pytest.approx(1.5, abs=0.02)
        assert re.match(r"1\.5\d s, .* Hz: seen|1\.5\d s, .*kHz: seen", tab.locator("#read").inner_text())

        # sound goes on at the same place when the step changes
        tab.keyboard.press(" ")
        wait_until(tab, "window.player.at() > 1.7 && window.player.switched > 0")
        tab.evaluate("window.player.set({step: 23}); window.before = window.player.at();")
        tab.wait_for_timeout(300)
        assert 0 < tab.evaluate("window.player.at() - window.before") < 5
        tab.keyboard.press(" ")

        # speed of scrubbing
        tab.evaluate(
            "window.player.costs.length = 0; for (let i = 0; i < 200; i++) window.player.set({step: i * 7 % 24});"
        )
        costs = np.array(tab.evaluate("window.player.costs"))
        ready = tab.evaluate("window.player.ready")
        print(f"ready {ready:.0f} ms; scrub median {np.median(costs):.2f}, p95 {np.percentile(costs, 95):.2f} ms")
        assert np.median(costs) < 16

        tab.evaluate("window.player.set({step: 12}); scrollTo(0, 0)")
        tab.screenshot(path=str(tmp_path / "desktop.png"), full_page=True)
        tab.emulate_media(color_scheme="dark")
        tab.evaluate("window.player.set({step: 15, against: 'decided'})")
        tab.screenshot(path=str(tmp_path / "dark.png"), full_page=True)
        tab.set_viewport_size({"width": 390, "height": 844})
        tab.wait_for_timeout(200)
        wide = tab.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 391).length"
        )
        tab.screenshot(path=str(tmp_path / "phone.png"), full_page=True)
        assert wide == 0 and seen == {"errors": [], "outside": []}


@pytest.mark.browser
def test_in_an_isolated_frame_as_a_notebook_has_it(tmp_path, runs):
    browsing.require_chromium()
    path = tmp_path / "cell.html"
    path.write_text(f"<!doctype html><body>{page.frame(player.document(runs[1:]))}", encoding="utf-8")
    with browsing.browser(1000, 1000) as tab:
        seen = browsing.watch(tab, path.as_uri())
        tab.on("console", lambda m: seen["errors"].append(m.text) if m.type == "error" else None)
        tab.goto(path.as_uri())
        inside = tab.frames[1]
        wait_until(inside, "Boolean(window.player && window.player.ready > 0)")
        inside.locator("#step").focus()
        tab.keyboard.press("End")
        assert inside.locator("#where").inner_text() == "step 8 of 8"

        for missing, sentence in (("DecompressionStream", "too old"), ("AudioContext", "no audio")):
            old = tab.context.new_page()
            old.add_init_script(f"delete window.{missing}; delete window.webkitAudioContext")
            old.goto(player.export(player.document(runs[1:]), tmp_path / "old.html").as_uri())
            if missing == "AudioContext":
                wait_until(old, "window.player.ready > 0")
                old.keyboard.press(" ")
            wait_until(old, "!document.getElementById('message').hidden")
            assert sentence in old.locator("#message").inner_text()
            old.close()
        assert seen == {"errors": [], "outside": []}
