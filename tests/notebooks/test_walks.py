"""Four people with real recordings go through the notebooks in JupyterLab: a musician, a teacher, a student and a
researcher. Each ends with what they came for; nothing is wider than its place at 1300 and 800 px, in light and dark.
``make screenshots`` keeps the pictures.
"""

import os
import shutil
from pathlib import Path

import browsing
import pytest
import soundfile

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.case("user A1")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    browsing.require_chromium()
    return tmp_path_factory.mktemp("walks")


@pytest.fixture(scope="module")
def lab(folder):
    with browsing.server(folder) as url:
        yield url


@pytest.fixture(scope="module")
def home(folder, data_dir):
    """A folder with twelve sentences of one speaker and ten seconds of another one's song."""
    made = folder / "home"
    for name in ("audio/kathleen", "examples", "instruments"):
        (made / name).mkdir(parents=True)
    for path in sorted((data_dir / "voices" / "kathleen_spoken").glob("*.flac"))[:12]:
        shutil.copy(path, made / "audio" / "kathleen")
    path = sorted((data_dir / "singing").glob("*/*.wav"))[0]
    rate_hz = soundfile.info(path).samplerate
    song, _ = soundfile.read(path, stop=10 * rate_hz)
    soundfile.write(folder / "My song.wav", song, rate_hz)
    shutil.copy(folder / "My song.wav", made / "examples" / "song.wav")
    return made


@pytest.fixture
def page(lab):
    with browsing.browser(1300, 1600) as page:
        seen = browsing.watch(page, lab)
        yield page
        assert seen["errors"] == []


def run(page, lab, folder, home, name, **parameters):
    browsing.copy_notebook(name, folder, BASE=str(home), **parameters)
    browsing.open_in_lab(page, lab, name)
    browsing.run_all_in_lab(page, 900)
    assert browsing.errors_in_lab(page) == []


def look(page, folder, name):
    """Pictures at both widths and in the dark, and nothing wider than its place."""
    kept = Path(os.environ.get("SVCLIB_SCREENSHOTS") or folder)
    for width, scheme in ((1300, "light"), (800, "light"), (1300, "dark")):
        page.set_viewport_size({"width": width, "height": 1600})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(500)
        assert browsing.too_wide(page) == [], (name, width, scheme)
        browsing.whole_screenshot(page, kept / f"{name}_{width}_{scheme}.png")
    page.set_viewport_size({"width": 1300, "height": 1600})
    page.emulate_media(color_scheme="light")


def choose(page, name, *words):
    """Options of a menu by their label up to the colon."""
    texts = page.locator(f".{name} option").all_text_contents()  # with spaces that do not break
    labels = [" ".join(text.partition(":")[0].split()) for text in texts]
    page.locator(f".{name} select").select_option(index=[labels.index(word) for word in words])


def done(page, panel, timeout_s=600):
    page.wait_for_selector(f"{panel} .svclib-message .svclib-done", timeout=1000 * timeout_s)


def test_a_musician_makes_an_instrument_of_her_recordings_and_sings_with_it(page, lab, folder, home):
    small = {"VOICE": "kathleen", "PRESET": "ddsp_small+tiny"}
    run(page, lab, folder, home, "01_prepare.ipynb", **small)
    assert "12 of 12 files usable" in page.locator(".jp-Notebook").inner_text()
    look(page, folder, "musician_01")
    run(page, lab, folder, home, "02_train.ipynb", MINUTES=2.0, STEPS=20, **small)
    page.locator(".t-consent input").fill("Kathleen agreed.")
    page.locator(".t-consent input").press("Tab")
    page.locator(".t-export").click()
    page.get_by_text("The instrument, from step").wait_for()
    page.locator(".t-download-instrument").click()
    with page.expect_download() as download:
        page.locator("a[download]").click()
    made = home / "instruments" / "kathleen-ddsp_small+tiny.zip"
    assert Path(download.value.path()).read_bytes() == made.read_bytes()
    look(page, folder, "musician_02")
    run(page, lab, folder, home, "03_convert.ipynb")
    page.locator(".t-transfer:not([disabled])").wait_for()
    assert "by kathleen-ddsp_small+tiny" in page.locator(".jp-Notebook").inner_text()  # the first try
    choose(page, "t-instrument", made.name)
    page.locator(".svclib-upload input[type=file]").set_input_files(folder / "My song.wav")
    page.get_by_text("My song.wav is stored").wait_for()
    for n in (1, 2):
        page.locator(".t-transfer").click()
        page.get_by_text(f"Result {n} is below").wait_for(timeout=300000)
    assert page.locator(".t-result").first.inner_text().startswith("2.")
    assert all(s == pytest.approx(10.0, abs=0.1) for s in browsing.durations_s(page, ".t-result audio"))
    look(page, folder, "musician_03")


def test_a_teacher_shows_the_lesson_and_takes_it_along(page, lab, folder, home):
    browsing.panel_notebook(folder, "lesson.ipynb", home, "visualize", "ExamplePanel(base.root)")
    browsing.open_in_lab(page, lab, "lesson.ipynb")
    browsing.run_all_in_lab(page)
    lesson = page.frame_locator("iframe").first
    for k in range(9):
        lesson.locator("#dots button").nth(k).click()
        assert browsing.overlapping_texts(page.frames[-1], "#map text") == []
    page.locator(".t-example-file").click()
    with page.expect_download() as download:
        page.locator("a[download]").click()
    assert Path(download.value.path()).read_text("utf-8") == (home / "output" / "lesson.html").read_text("utf-8")
    look(page, folder, "teacher_04")


def test_a_student_sees_the_base_model_sing_a_song_out_of_noise(page, lab, folder, home):
    browsing.panel_notebook(folder, "own.ipynb", home, "visualize", "LessonPanel(base, 2.0, 1.0)")
    shutil.copy(browsing.ROOT / "svclib" / "models" / "base.zip", home / "instruments")
    browsing.open_in_lab(page, lab, "own.ipynb")
    browsing.run_all_in_lab(page)
    page.locator(".t-lesson-run:not([disabled])").wait_for()
    assert page.locator(".t-lesson-singer option").count() == 3
    browsing.set_number(page, "t-lesson-steps", 8)
    page.locator(".t-lesson-run").click()
    page.locator(".t-lesson-live img").first.wait_for(timeout=60000)
    done(page, ".widget-vbox")
    page.locator(".t-lesson-export").click()
    page.get_by_text("Written: ").wait_for()
    look(page, folder, "student_04")


def test_a_researcher_compares_samplers_and_keeps_the_numbers(page, lab, folder, home):
    if not (home / "instruments" / "base.zip").exists():
        shutil.copy(browsing.ROOT / "svclib" / "models" / "base.zip", home / "instruments")
    browsing.panel_notebook(folder, "table.ipynb", home, "convert", "ComparePanel(base)")
    browsing.open_in_lab(page, lab, "table.ipynb")
    browsing.run_all_in_lab(page)
    page.locator(".t-ab-compare:not([disabled])").wait_for()
    choose(page, "t-ab-samplers", "dpmpp", "ddim")
    choose(page, "t-ab-steps", "5")
    browsing.set_number(page, "t-ab-seconds", 1.0)
    page.locator(".t-ab-compare").click()
    done(page, ".svclib-compare")
    page.locator(".t-ab-csv").click()
    page.get_by_text("Saved as ").wait_for()
    assert len(list((home / "output").glob("compared*.csv"))[0].read_text().splitlines()) == 3
    look(page, folder, "researcher_03")
    browsing.panel_notebook(folder, "study.ipynb", home, "ablation", "AblationPanel(base)")
    browsing.open_in_lab(page, lab, "study.ipynb")
    browsing.run_all_in_lab(page)
    page.locator(".t-study-run:not([disabled])").wait_for()
    choose(page, "t-study-sampler", "dpmpp", "ddim")
    browsing.set_number(page, "t-study-steps", "4, 8")
    browsing.set_number(page, "t-study-seconds", 1.0)
    page.locator(".t-study-run").click()
    page.get_by_text("Run 4 is below").wait_for(timeout=600000)
    assert page.locator(".t-study-runs tbody tr").count() == 4 and page.locator(".t-study-players audio").count() == 1
    choose(page, "t-study-look", "metrics per step")
    page.get_by_alt_text("metrics per step of run 4").wait_for()
    look(page, folder, "researcher_04")
