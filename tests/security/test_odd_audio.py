"""Damaged and odd recordings through all that a person does with one: listed, read, examined by the doctor, loaded as a
song. Each ends in finite sound or in a sentence that names the file, within seconds and in bounded memory.

``tests/helpers/odd_audio.py`` makes the files from their number; the full series of 10,000 runs in ten pieces.
"""

import struct

import numpy as np
import odd_audio
import pytest
import soundfile
from untrusted import measured, require_sentence

from svclib.audio import io as audio
from svclib.conversion import song as songs
from svclib.data import quality
from svclib.features.extract import FeatureSettings
from svclib.utils.errors import AudioError, ConversionError, ModelError

SECONDS, MEGABYTES = 5.0, 512.0
GRID = FeatureSettings()


def used(path) -> str:
    """What became of a file: ``sound``, or ``said`` where a sentence refused it."""
    usable, skipped = audio.find(path.parent)
    for _, reason in skipped:
        require_sentence(reason, path.name)
    try:
        found = audio.read(path)
    except AudioError as error:
        require_sentence(str(error), path.name)
        outcome = "said"
    else:
        assert usable == [path] and np.isfinite(found.samples).all() and found.samples.ndim == 1
        assert 0 < len(found.samples) <= 60 * found.sample_rate_hz  # the longest whole file has a second
        for warning in found.info.warnings:
            require_sentence(warning, path.name)
        outcome = "sound"
    report = quality.examine(path)
    assert len(report.files) == 1 and (outcome == "sound" or not report.files[0].usable), report.files
    assert report.files[0].usable or report.findings
    for finding in report.findings:
        assert finding.text.isprintable() and finding.text.endswith((".", "?")), finding
        if finding.kind == "unusable" and finding.file and outcome == "sound":  # it can be read, but not be learnt from
            assert finding.text.startswith(("It is silent", "It lasts only")), finding
    try:
        song = songs.load_song(path, GRID)
    except (AudioError, ConversionError, ModelError) as error:
        require_sentence(str(error), path.name)
        assert outcome == "said" or isinstance(error, ConversionError)
    else:
        assert outcome == "sound" and np.isfinite(song.audio).all()
        assert all(np.isfinite(x).all() for x in (song.features.f0_hz, song.features.loudness_db))
    return outcome


@pytest.mark.case("A22")
@pytest.mark.parametrize(
    ("first", "count"), [(0, 100), *(pytest.param(1000 * i, 1000, marks=pytest.mark.slow) for i in range(10))]
)
def test_every_odd_file_ends_in_sound_or_a_sentence(tmp_path, first, count):
    outcomes, slowest, most = [], 0.0, 0.0
    for number in range(first, first + count):
        path = odd_audio.write(tmp_path, number)
        with measured() as cost:
            outcomes.append(used(path))
        slowest, most = max(slowest, cost.seconds), max(most, cost.megabytes)
        assert cost.seconds < SECONDS and cost.megabytes < MEGABYTES, (number, cost)
        path.unlink()
    assert list(tmp_path.iterdir()) == []
    print(f"{count} files: {outcomes.count('sound')} sound, slowest {slowest:.2f} s, most memory {most:.0f} MB")
    assert 0.2 * count < outcomes.count("sound") < 0.9 * count


def test_the_same_number_is_the_same_file(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    for number in range(20):
        one, two = (odd_audio.write(tmp_path / name, number) for name in "ab")
        assert one.name == two.name and one.read_bytes() == two.read_bytes()


@pytest.mark.case("A18")
def test_five_hours_that_only_the_header_knows(tmp_path):
    """Nothing is allocated from a claim: the sound that is there is used, and the difference is said."""
    x = np.random.default_rng(0).normal(0, 0.1, 44100)
    for suffix in ("wav", "flac"):
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, x, 44100, "PCM_16")
        data, claim = bytearray(path.read_bytes()), 5 * 3600 * 44100
        if suffix == "wav":
            data[4:8], data[40:44] = struct.pack("<I", 2 * claim + 36), struct.pack("<I", 2 * claim)
        else:
            data[18:26] = (int.from_bytes(data[18:26], "big") >> 36 << 36 | claim).to_bytes(8, "big")
        path.write_bytes(data)
        with measured() as cost:
            found = audio.read(path)
        assert 0 < len(found.samples) <= 44100 and any(w in found.info.warnings[0] for w in ("cut off", "damaged"))
        assert cost.seconds < SECONDS and cost.megabytes < 100


@pytest.mark.case("A18")
@pytest.mark.slow
def test_five_hours_of_silence_in_a_small_file(tmp_path):
    """Some megabytes that unpack to hours: looked at block by block, with progress at least every five seconds."""
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 44100, 1, "PCM_16") as file:
        for _ in range(300):
            file.write(np.zeros(60 * 44100, np.int16))
    assert path.stat().st_size < 20e6
    import time

    told = [time.process_time()]
    with measured() as cost:
        found = audio.survey(path, lambda fraction, text: told.append(time.process_time()))
        assert found.peak == 0.0 and found.info.duration_s == 5 * 3600
    assert max(np.diff(told)) < SECONDS and cost.megabytes < MEGABYTES
    with measured() as cost:
        report = quality.examine(path)
    assert "silent" in " ".join(f.text for f in report.findings) and cost.megabytes < MEGABYTES
