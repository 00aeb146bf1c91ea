"""The demo in small: every product is there and fits the others, the page stands alone, a second run reuses everything.

Truths: the song's length and octave are known; the page is parsed; file times tell what was made anew.
"""

import base64
import html.parser
import io
import json
import re

import pytest
import soundfile

from svclib.cli import demo
from svclib.data import singers
from svclib.models import instrument
from svclib.training import resume
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConfigError

SMALL = dict(minutes=1, preset=("ddsp_small", "tiny"), corpus_minutes=0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    lines = []
    return demo.Demo(tmp_path_factory.mktemp("demo"), log=lines.append, **SMALL).run(), lines


class _Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.sources, self.tags, self.labels = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.sources += [attrs[k] for k in ("src", "href") if k in attrs]
        if tag == "audio":
            self.labels.append(attrs["aria-label"])


def test_everything_is_made_where_it_is_said(made):
    result, lines = made
    base = result.page.parent
    assert result.instrument == base / "instruments" / "aria.zip"
    assert result.converted.parent == base / "output"
    opened = instrument.open(result.instrument)
    assert opened.info["singers"] == ["aria"] and "nobody's voice" in opened.info["consent"]
    song = soundfile.info(base / "examples" / "bruno_twinkle.wav")
    info = soundfile.info(result.converted)
    assert info.samplerate == opened.features.sample_rate_hz == 16000
    assert info.frames == int(song.frames * 16000 / song.samplerate + 0.5)
    settings = json.loads((base / "output" / (result.converted.name + ".json")).read_text())
    assert settings["controls"]["octave_shift"] == 1  # bruno sings an octave below aria
    assert [line.split(".")[0] for line in lines] == ["1", "2", "3", "4", "5"]
    assert str(result.page) in result.text and str(result.instrument) in result.text


def test_the_page_stands_alone_and_plays(made):
    text = made[0].page.read_text(encoding="utf-8")
    page = _Page(text)
    assert all(source.startswith("data:") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "http://" not in text and "https://" not in text
    assert page.labels[:5] == ["Original", "Result", "Harmonic part", "Noise part", "What it should sound like"]
    song_s = sum(n.duration_s for n in singers.demo_song().notes) + 0.4
    sounds = [s for s in page.sources if s.startswith("data:audio")]
    for source in sounds[:5]:
        sound = soundfile.info(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert sound.duration == pytest.approx(song_s, abs=0.1)
    assert page.tags.count("img") == 3
    assert "synthetic voice" in text and "nobody&#39;s voice" in text
    for words in ("Right notes", "Loudness error", "held-out", "semitone"):
        assert words.lower() in text.lower()


def test_a_second_run_makes_nothing_anew(made):
    result, _ = made
    base = result.page.parent
    before = {p: p.stat().st_mtime_ns for p in base.rglob("*") if p.is_file()}
    lines = []
    again = demo.Demo(base, log=lines.append, **SMALL).run()
    assert {p: p.stat().st_mtime_ns for p in base.rglob("*") if p.is_file()} == before
    assert all("(as before)" in line for line in lines)
    assert (again.page, again.instrument, again.converted) == (result.page, result.instrument, result.converted)
    assert sum(again.seconds.values()) < 10


def test_own_recordings_and_song(made, tmp_path):
    result, _ = made
    voice, song = result.page.parent / "audio" / "aria", tmp_path / "my song.wav"
    atomic_store.copy_file(result.page.parent / "examples" / "bruno_twinkle.wav", song)
    own = demo.Demo(tmp_path / "out", voice, song, **SMALL).run()
    page = _Page(own.page.read_text(encoding="utf-8"))
    assert page.labels[:4] == ["Original", "Result", "Harmonic part", "Noise part"]
    assert "What it should sound like" not in page.labels  # nobody knows that of a real song
    assert own.converted.name == "my song - aria.wav"
    assert not list((tmp_path / "out" / "audio").iterdir())  # recordings are read where they lie
    assert re.search(r"consent of the person", own.page.read_text(encoding="utf-8"))


def test_the_base_model_converts_at_once_and_the_training_starts_from_it(made, tmp_path):
    """The first file is there before the dataset, by the base model's first singer, as long as the song."""
    lines = []
    result = demo.Demo(tmp_path, minutes=0.05, corpus_minutes=0.3, log=lines.append).run()
    assert lines[1].startswith("2. the base model's voice: bruno_twinkle - base.wav")
    song, first = (
        soundfile.info(tmp_path / p) for p in ("examples/bruno_twinkle.wav", "output/bruno_twinkle - base.wav")
    )
    assert first.duration == pytest.approx(song.duration, abs=1e-3)
    settings = json.loads((tmp_path / "output" / "bruno_twinkle - base.wav.json").read_text(encoding="utf-8"))
    assert settings["instrument"]["sha256"] == filesystem.sha256_file(resume.BASE_PATH)
    assert "At once" in _Page(result.page.read_text(encoding="utf-8")).labels
    weights, start = (instrument.open(p).model.state_dict() for p in (result.instrument, resume.BASE_PATH))
    moved = (weights["coarse.first.weight"] - start["coarse.first.weight"]).norm() / start["coarse.first.weight"].norm()
    assert moved < 0.1


def test_recordings_without_a_song(tmp_path):
    with pytest.raises(ConfigError, match="--song"):
        demo.Demo(tmp_path / "out", tmp_path / "voice", **SMALL)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_training_goes_on(made, tmp_path):
    def interrupt(fraction, text=""):
        if text.startswith("training, step") and int(text.split()[2].rstrip(",")) >= 3:
            raise KeyboardInterrupt

    lines = []
    with pytest.raises(KeyboardInterrupt):
        demo.Demo(tmp_path, log=lines.append, progress=interrupt, **SMALL).run()
    assert len(lines) == 2  # recordings and dataset are finished
    result = demo.Demo(tmp_path, log=lines.append, **SMALL).run()
    assert "(as before)" in lines[2] and "(as before)" in lines[3]
    assert "12 steps" in lines[4]
    assert result.page.is_file()
