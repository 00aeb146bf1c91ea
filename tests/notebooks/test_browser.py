"""Truths about the notebooks as a person meets them: in JupyterLab in a real browser, and in classic Notebook with the
ipywidgets that Colab ships. Pictures of every page are left in pytest's temporary folder (``pytest --basetemp``).
"""

import json
import os
import re
from pathlib import Path

import browsing
import numpy as np
import pytest
import soundfile

SMALL = {"PRESET": "ddsp_small+tiny", "SINGER_MINUTES": 0.5}
CLASSIC = Path(__file__).resolve().parents[2] / ".venv-classic" / "bin" / "python"


@pytest.fixture(scope="module")
def folder(notebook_home):
    browsing.require_chromium()
    return notebook_home[0]


@pytest.fixture(scope="module")
def lab(folder):
    with browsing.server(folder) as url:
        yield url


@pytest.fixture
def page(lab):
    with browsing.browser() as page:
        seen = browsing.watch(page, lab)
        yield page
        assert seen == {"errors": [], "outside": []}


def run_in_lab(page, lab, folder, name, **parameters):
    browsing.copy_notebook(name, folder, BASE=str(folder / "home"), **SMALL, **parameters)
    browsing.open_in_lab(page, lab, name)
    browsing.run_all_in_lab(page)
    page.wait_for_timeout(500)
    assert browsing.errors_in_lab(page) == []


@pytest.mark.case("H9")
@pytest.mark.browser
def test_preparing_in_jupyterlab(page, lab, folder):
    run_in_lab(page, lab, folder, "01_prepare.ipynb")
    page.wait_for_selector(".t-chunk audio", state="attached")
    assert browsing.durations_s(page, ".t-chunk audio") == [pytest.approx(5.0, abs=0.1)]
    before = page.locator(".t-chunk img").get_attribute("src")
    page.locator(".t-seconds .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("d => document.querySelector('.t-chunk audio')?.duration > 5.3")
    assert page.locator(".t-seconds .widget-readout").inner_text() == "5.50"
    assert page.locator(".t-chunk img").get_attribute("src") != before
    label = page.locator(".t-seconds .widget-label span")
    assert (label.inner_text(), label.get_attribute("title")) == ("Length (s)", "length of the excerpt")
    assert page.locator(".t-choice-preset select").input_value() == SMALL["PRESET"]
    assert page.locator(".jp-CodeCell .jp-InputPlaceholder").count() == 2  # the form stands for the code of the choices
    browsing.whole_screenshot(page, folder / "01_prepare.png")
    asleep = page.locator("[id^=svclib-asleep]")
    assert asleep.count() == 4 and not asleep.first.is_visible()
    page.keyboard.press("Control+s")
    browsing.saved_with_outputs(folder / "01_prepare.ipynb")
    assert (folder / "01_prepare.ipynb").stat().st_size < 2e6
    browsing.end_kernels(page)
    browsing.open_in_lab(page, lab, "01_prepare.ipynb")  # a new kernel, which knows of no panel
    asleep.first.wait_for(state="visible")
    assert "run the notebook from its first cell" in asleep.first.inner_text()
    assert "Error displaying widget" not in page.locator("body").inner_text()  # bars that ended have left nothing


@pytest.mark.browser
def test_training_in_jupyterlab(page, lab, folder):
    run_in_lab(page, lab, folder, "02_train.ipynb", MINUTES=2.0, STEPS=20, NAME="seen")
    assert "20 of 20" in page.locator(".svclib-training").inner_text()
    page.wait_for_selector(".t-previews audio", state="attached")
    assert all(0.4 < s < 20 for s in browsing.durations_s(page))
    first = page.locator(".t-checkpoint select option").first.text_content().strip()
    page.locator(".t-checkpoint select").select_option(index=0)
    step = re.search(r"step\s+(\d+)", first)[1]
    page.wait_for_function(f"document.querySelector('.t-previews').innerText.includes('Step {step}')")
    assert not (folder / "home" / "instruments" / "seen.zip").exists()
    page.locator(".t-export").click()
    page.get_by_text("The instrument, from step").wait_for()
    assert (folder / "home" / "instruments" / "seen.zip").is_file()
    browsing.whole_screenshot(page, folder / "02_train.png")


def compare_one(page):
    """Press Compare as the panel stands: the song itself and one variant, 6 s each, every measure a number."""
    page.locator(".t-ab-compare").click()
    page.wait_for_selector(".svclib-compare .svclib-message .svclib-done", timeout=60000)
    song, converted = page.locator(".t-ab-table tbody tr").all_inner_texts()
    assert browsing.durations_s(page, ".t-ab-table audio") == [pytest.approx(6.0, abs=0.1)] * 2
    assert song.count("\N{EN DASH}") == 6 and re.fullmatch(
        r"\S+\s+([\d.]+\s+){2}\d+ cents\s+([\d.]+\s+){3}dB", converted
    )


@pytest.mark.browser
def test_converting_in_jupyterlab(page, lab, folder):
    run_in_lab(page, lab, folder, "03_convert.ipynb", MINUTES=2.0)
    browsing.whole_screenshot(page, folder / "03_before.png")
    page.locator(".t-octave-shift .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.t-octave-shift .widget-readout').innerText === '1'")
    page.locator(".t-transfer").dblclick()
    page.wait_for_selector(".t-result audio", state="attached", timeout=60000)
    page.wait_for_selector(".svclib-message .svclib-done", timeout=60000)
    lengths = browsing.durations_s(page, ".t-result audio")
    assert len(lengths) == 4 and all(s > 5 and s == pytest.approx(lengths[0], abs=0.15) for s in lengths)
    assert "octave +1" in page.locator(".t-result").inner_text()
    page.evaluate("document.querySelectorAll('.t-result audio')[1].play()")
    page.wait_for_function("document.querySelectorAll('.t-result audio')[1].currentTime > 0.2")
    page.locator(".t-suggest").click()
    page.wait_for_selector(".t-suggestion .svclib-info", timeout=60000)
    compare_one(page)
    browsing.whole_screenshot(page, folder / "03_convert.png")

    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_timeout(500)
    wide = page.evaluate(
        "[...document.querySelectorAll('.svclib-convert *')].filter(e => e.getBoundingClientRect().right > 421).length"
    )
    browsing.whole_screenshot(page, folder / "03_phone.png")
    assert wide == 0


def lesson_on(page):
    """The first lesson of a notebook, when it is drawn."""
    lesson = page.frame_locator("iframe:visible").first
    lesson.locator("button:visible").first.wait_for()
    assert "What we hear" in lesson.locator("body").inner_text()
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(x => x)"
    assert lesson.locator("canvas:visible").first.evaluate(drawn)
    return lesson


@pytest.mark.case("user 04.14")
@pytest.mark.browser
def test_the_lesson_appears_while_later_cells_run_and_again_and_is_not_in_the_notebook(page, lab, folder):
    name, path = "small.ipynb", folder / "small.ipynb"
    browsing.panel_notebook(folder, name, folder / "home", "visualize", "ExamplePanel(base.root)")
    book = json.loads(path.read_text())
    wait = "import os\nwhile not os.path.exists('seen'):\n    pass\nprint('seen')"
    path.write_text(json.dumps(book | {"cells": [*book["cells"], book["cells"][0] | {"id": "b", "source": wait}]}))
    browsing.open_in_lab(page, lab, name)
    browsing.press_run_all_in_lab(page)
    lesson_on(page)
    (folder / "seen").touch()
    browsing.wait_for_cells_in_lab(page)
    page.keyboard.press("Control+s")
    browsing.saved_with_outputs(path)
    assert path.stat().st_size < 2e4
    browsing.open_in_lab(page, lab, name)  # the same kernel
    lesson_on(page)
    browsing.end_kernels(page)
    browsing.open_in_lab(page, lab, name)
    page.get_by_text("open the file that its Save button wrote").wait_for()
    assert page.locator("iframe").count() == 0


@pytest.mark.case("L8", "user 04.14")
@pytest.mark.browser
def test_the_lesson_in_jupyterlab(page, lab, folder):
    run_in_lab(page, lab, folder, "04_visualize.ipynb", MINUTES=2.0)
    lesson = lesson_on(page)
    browsing.whole_screenshot(page, folder / "04_visualize.png")
    page.keyboard.press("Control+s")
    browsing.saved_with_outputs(folder / "04_visualize.ipynb")
    assert (folder / "04_visualize.ipynb").stat().st_size < 2e6

    def heights():
        frame = page.locator("iframe").first.evaluate("e => e.getBoundingClientRect().height")
        return frame, lesson.locator("main").evaluate("e => e.getBoundingClientRect().height")

    frame, content = heights()  # no empty space below the page
    assert content <= frame < content + 2
    lesson.locator("#dots button").nth(3).click()
    page.wait_for_timeout(500)
    taller, content = heights()
    assert taller > frame + 100 and content <= taller < content + 2
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_timeout(1000)
    on_phone, content = heights()  # as high as the screen: the bar with the steps stays in sight
    assert on_phone == pytest.approx(0.9 * page.evaluate("screen.height"), abs=1) and content > on_phone
    browsing.whole_screenshot(page, folder / "04_phone.png")


@pytest.mark.case("user 03.1", "user 03.2")
@pytest.mark.browser
def test_songs_of_any_size_are_uploaded_dropped_and_recorded(page, lab, folder):
    """12 MB, which Jupyter takes in no single message; a text, refused; a folder dropped into the page; Record."""
    home, song = folder / "uploads", folder / "song.wav"
    samples = np.random.default_rng(0).integers(-9999, 9999, 6_000_000, dtype=np.int16)
    soundfile.write(song, samples.reshape(-1, 2), 44100)
    (folder / "lyrics.wav").write_text("la la la")
    browsing.panel_notebook(folder, "upload.ipynb", home, "convert", "ConvertPanel(base)")
    browsing.open_in_lab(page, lab, "upload.ipynb")
    browsing.run_all_in_lab(page)
    message = page.locator(".svclib-convert .svclib-message")
    page.locator(".svclib-upload input").set_input_files([song, folder / "lyrics.wav"])
    page.wait_for_selector(".svclib-upload progress:not([hidden])")
    page.get_by_text("lyrics.wav is not audio").wait_for(timeout=60000)
    assert "song.wav is stored" in message.inner_text() and "text" in message.inner_text()
    assert (home / "examples" / "song.wav").read_bytes() == song.read_bytes()
    assert page.locator(".t-song select").input_value() and not page.locator(".svclib-upload progress").is_visible()
    page.evaluate(DROP)
    page.get_by_text("dropped.wav is stored").wait_for()
    page.locator(".svclib-record-button").click()
    page.wait_for_function("document.querySelector('.svclib-upload-state').innerText.includes('recording, 1 s')")
    page.locator(".svclib-record-button").click()
    page.get_by_text(re.compile(r"recording\.wav is stored")).wait_for(timeout=20000)
    info = soundfile.info(home / "examples" / "recording.wav")
    assert info.samplerate == 24000 and 0.3 < info.duration < 30
    assert sorted(p.name for p in (home / "examples").iterdir()) == ["dropped.wav", "recording.wav", "song.wav"]
    browsing.whole_screenshot(page, folder / "03_upload.png")


# A folder with a sound file, dropped on the buttons: what a browser gives a page, directory entries and all.
DROP = """() => {
    const wav = new Uint8Array(844);
    new TextEncoder().encodeInto('RIFF', wav); new TextEncoder().encodeInto('WAVEfmt ', wav.subarray(8));
    const view = new DataView(wav.buffer);
    view.setUint32(4, 836, true); view.setUint32(16, 16, true); view.setUint16(20, 1, true);
    view.setUint16(22, 1, true); view.setUint32(24, 8000, true); view.setUint32(28, 16000, true);
    view.setUint16(32, 2, true); view.setUint16(34, 16, true);
    new TextEncoder().encodeInto('data', wav.subarray(36)); view.setUint32(40, 800, true);
    for (let i = 44; i < 844; i += 2) view.setInt16(i, 9999 * Math.sin(i), true);
    const file = {isFile: true, file: (ok) => ok(new File([wav], 'dropped.wav'))};
    let rest = [[file], []];
    const folder = {isFile: false, createReader: () => ({readEntries: (ok) => ok(rest.shift())})};
    const drop = new Event('drop', {bubbles: true, cancelable: true});
    drop.dataTransfer = {items: [{webkitGetAsEntry: () => folder}]};
    document.querySelector('.svclib-upload button').dispatchEvent(drop);
}"""


@pytest.mark.slow
@pytest.mark.browser
def test_all_notebooks_in_classic_notebook_with_the_widgets_of_colab(folder):
    if not CLASSIC.exists():
        pytest.fail("there is no .venv-classic; run `make venv-classic`")
    with browsing.server(folder, str(CLASSIC)) as url, browsing.browser() as page:
        seen = browsing.watch(page, url)
        for name, ready in (
            ("01_prepare.ipynb", ".t-chunk audio"),
            ("02_train.ipynb", ".t-previews audio"),
            ("03_convert.ipynb", ".t-transfer"),
            ("04_visualize.ipynb", ".t-moment-view img"),
        ):
            more = {} if name.startswith("01") else {"MINUTES": 2.0}
            browsing.copy_notebook(name, folder, BASE=str(folder / "home"), **SMALL, **more)
            page.goto(f"{url}/notebooks/{name}")
            page.wait_for_function(
                "window.Jupyter?.notebook?.kernel?.is_connected()",
                timeout=60000,
            )
            page.wait_for_timeout(1500)
            page.evaluate("Jupyter.notebook.execute_all_cells()")
            page.wait_for_function(
                "Jupyter.notebook.get_cells().filter(c => c.cell_type === 'code').every(c => c.input_prompt_number > 0)"
                " || document.querySelector('.output_error')",
                timeout=300000,
            )
            assert page.locator(".output_error, .output_stderr").all_inner_texts() == []
            assert page.locator("input[type=file]:visible").count() == 0  # its button is the panel's own
            page.wait_for_selector(ready, state="attached", timeout=60000)
            if name.startswith("03"):
                handle = page.locator(".t-octave-shift .ui-slider-handle")
                handle.click()
                handle.focus()
                page.keyboard.press("ArrowRight")
                page.wait_for_function("document.querySelector('.t-octave-shift .widget-readout').innerText === '1'")
                page.locator(".t-transfer").click()
                page.wait_for_selector(".t-result audio", state="attached", timeout=60000)
                assert all(s > 5 for s in browsing.durations_s(page, ".t-result audio"))
                compare_one(page)
            kept = Path(os.environ.get("SVCLIB_SCREENSHOTS") or folder)
            for width in (1300, 800):
                page.set_viewport_size({"width": width, "height": 1600})
                page.wait_for_timeout(500)
                assert browsing.too_wide(page) == [], (name, width)
                browsing.whole_screenshot(page, kept / f"classic_{name[:2]}_{width}.png")
        assert seen["outside"] == []


@pytest.mark.case("L7")
@pytest.mark.browser
def test_pictures_while_the_study_panel_samples(page, lab, folder):
    from diffusion_files import make_instrument, make_song

    home = folder / "study"
    browsing.panel_notebook(folder, "study.ipynb", home, "ablation", "AblationPanel(base)")
    for name in ("instruments", "examples"):
        (home / name).mkdir(parents=True)
    make_instrument(home / "instruments")
    make_song(home / "examples" / "a.wav", seconds=12)
    browsing.open_in_lab(page, lab, "study.ipynb")
    browsing.run_all_in_lab(page)
    page.wait_for_selector("button.t-study-run:not([disabled])")
    browsing.set_number(page, "t-study-seconds", 1.0)
    browsing.set_number(page, "t-study-steps", 300)
    for _ in range(2):  # with and without the song to be measured first
        seen = browsing.run_study(page)
        pictures = seen["pictures"][:-1]  # the last change takes them away
        assert seen["busy"] < pictures[0] < 3000 and len(pictures) >= 3, seen  # aim on an idle machine: 1000
        assert max(b - a for a, b in zip(pictures, pictures[1:], strict=False)) < 3000, seen  # 500
    browsing.set_number(page, "t-study-steps", 1000)
    browsing.set_number(page, "t-study-seconds", 10.0)
    found = browsing.cancel_study(page)
    assert found["said"] < 2000 and found["free"] < 3000 and "cancelled" in found["text"], found
    assert page.locator(".t-study-live img").count() == 0
    assert page.locator(".t-study-runs tbody tr").count() == 2
