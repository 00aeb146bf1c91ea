"""Truths about sound files: what goes in comes out; headers that lie, cut and damaged files, odd channels; resampling
is exact in length and time; nothing wraps, nothing is overwritten. Files are made here by soundfile, ffmpeg, by hand.
"""

import errno
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from svclib.audio import decode, units
from svclib.audio import io as audio
from svclib.utils.errors import AudioError

RATE = 44100


def tone(seconds=1.0, rate=RATE, f_hz=440.0, amplitude=0.3):
    t = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * f_hz * t)).astype(np.float32)


def melody(seconds=4.0, rate=RATE, seed=0):
    """Not compressible to nothing, so that cuts hit samples: noise over a tone."""
    noise = np.random.default_rng(seed).normal(0, 0.05, round(seconds * rate))
    return (tone(seconds, rate) + noise).astype(np.float32)


def put(path, samples, rate=RATE, **kwargs):
    soundfile.write(os.fspath(path), samples, rate, **kwargs)
    return path


def only_warning(info, *words):
    assert len(info.warnings) == 1, info.warnings
    assert info.path.name in info.warnings[0]
    for word in words:
        assert word in info.warnings[0]


# What goes in comes out -----------------------------------------------------------------------------------------------

LOSSLESS = [("wav", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")]
LOSSLESS += [("flac", "PCM_16"), ("flac", "PCM_24"), ("aiff", "PCM_24"), ("caf", "PCM_16"), ("w64", "PCM_16")]


@pytest.mark.case("A12")
@pytest.mark.parametrize(("suffix", "subtype"), LOSSLESS)
def test_lossless_formats_within_their_quantisation(tmp_path, suffix, subtype):
    x = melody(0.3)
    got = audio.read(put(tmp_path / f"a.{suffix}", x, subtype=subtype))
    step = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-23}.get(subtype, 2**-23)
    assert got.samples.dtype == np.float32 and got.sample_rate_hz == RATE and not got.info.warnings
    np.testing.assert_allclose(got.samples, x, atol=1.01 * step)


@pytest.mark.parametrize(
    ("suffix", "kwargs"), [("mp3", {}), ("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"})]
)
def test_lossy_formats_keep_length_and_time(tmp_path, suffix, kwargs):
    rate = 48000 if suffix == "opus" else RATE
    x = melody(2, rate)
    got = audio.read(
        put(tmp_path / f"A.{suffix.upper()}", x, rate, **({"format": "MP3"} if suffix == "mp3" else kwargs))
    )
    assert len(got.samples) == len(x) and not got.info.warnings
    lags = np.correlate(got.samples[4000:20000], x[4100:19900], "valid")
    assert lags.argmax() == 100


NAMES = ["a b.wav", "it's.WAV", 'q"uote.wav', "(live) [2] {x}.wav", "$(touch x)`y`;&%#.wav", "-rf.wav", "lie\nne\t.wav"]
NAMES += ["émoji 🎤 漢字 עברית.wav", "e\u0301.wav", "<img src=x onerror=alert(1)>.wav", "no suffix", "x.Mp3"]


@pytest.mark.case("P5", "B4", "B5")
@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_only_a_name(tmp_path, name):
    path = put(tmp_path / "plain.wav", tone(0.2)).rename(tmp_path / name)
    assert len(audio.read(path).samples) == 8820
    assert audio.find(tmp_path) == ([path], [])


@pytest.mark.case("A19")
def test_content_decides_not_the_suffix(tmp_path):
    wav = put(tmp_path / "a.wav", tone(1)).rename(tmp_path / "a.mp3")
    mp3 = put(tmp_path / "b.mp3", tone(1)).rename(tmp_path / "b.wav")
    flac = put(tmp_path / "c.flac", tone(1)).rename(tmp_path / "c")
    assert [audio.probe(p).format for p in (wav, mp3, flac)] == ["WAV", "MP3", "FLAC"]
    assert [len(audio.read(p).samples) for p in (wav, mp3, flac)] == [RATE] * 3


@pytest.mark.case("A20")
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("suffix", ["m4a", "aac", "webm"])
def test_formats_that_ffmpeg_reads(tmp_path, suffix):
    source = put(tmp_path / "-song.wav", melody(2, 48000), 48000)
    made = tmp_path / f"-out $(x).{suffix}"
    codec = "libopus" if suffix == "webm" else "aac"
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, "-c:a", codec, f"file:{made}"], check=True)
    got = audio.read(made)
    assert got.sample_rate_hz == 48000 and abs(len(got.samples) - 96000) < 4096
    lags = np.correlate(got.samples[:30000], melody(2, 48000)[8000:24000], "valid")
    assert abs(lags.argmax() - 8000) < 2200  # coders put their delay in front
    made.write_bytes(made.read_bytes()[: made.stat().st_size // 3])
    with pytest.raises(AudioError) if suffix == "m4a" else open(os.devnull):
        assert len(audio.read(made).samples) < 60000


@pytest.mark.case("A20")
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_protected_file_is_called_so(tmp_path):
    """Sound encrypted by ffmpeg, its key thrown away; marked as FairPlay does; and unprotected, which is read."""
    source, made = put(tmp_path / "song.wav", melody(1, 48000), 48000), tmp_path / "bought.m4a"
    keys = ["-encryption_key", "76" * 16, "-encryption_kid", "a7" * 16]
    coder = ["ffmpeg", "-v", "error", "-i", source, "-c:a", "aac", "-f", "mp4"]
    subprocess.run([*coder, "-encryption_scheme", "cenc-aes-ctr", *keys, made], check=True)
    with pytest.raises(AudioError, match=r"bought.m4a is copy-protected.*Export it as WAV or FLAC"):
        audio.read(made)
    (tmp_path / "older.m4p").write_bytes(made.read_bytes().replace(b"enca", b"drms"))
    assert ["protected" in why for _, why in audio.find(tmp_path)[1]] == [True, True]
    subprocess.run([*coder, tmp_path / "mine.m4a"], check=True)
    assert len(audio.read(tmp_path / "mine.m4a").samples) > 47000


@pytest.mark.case("A18")
def test_files_beyond_four_gigabytes(tmp_path):
    """RF64 (EBU Tech 3306) and W64 have room for longer sizes; one that claims 5 GB is read as far as it goes."""
    x = melody(1)
    for format in ("RF64", "W64"):
        path = tmp_path / f"a.{format.lower()}"
        soundfile.write(path, x, RATE, format=format, subtype="PCM_16")
        got = audio.read(path)
        np.testing.assert_allclose(got.samples, x, atol=1 / 32768)
        assert (got.info.format, got.info.warnings) == (format, ())
    data = bytearray((tmp_path / "a.rf64").read_bytes())
    at, claim = data.index(b"ds64") + 8, 5 << 30
    data[at : at + 24] = struct.pack("<QQQ", claim + 100, claim, claim // 2)
    (tmp_path / "b.wav").write_bytes(data)
    got = audio.read(tmp_path / "b.wav")
    np.testing.assert_allclose(got.samples, x, atol=1 / 32768)
    assert f"of {claim + 108} bytes are there" in got.info.warnings[0]


@pytest.mark.case("B8")
@pytest.mark.slow
def test_twenty_thousand_files_in_one_folder(tmp_path):
    """Every one is found and every bad one told, in seconds."""
    data = put(tmp_path / "one.wav", melody(0.05)).read_bytes()
    many = tmp_path / "many"
    many.mkdir()
    for i in range(20_000):
        (many / f"{i:05d}.wav").write_bytes(data if i % 2000 else b"")
    started = time.process_time()
    usable, skipped = audio.find(many)
    assert len(usable) == 19_990 and len(skipped) == 10 and time.process_time() - started < 20
    assert usable[0].name == "00001.wav" and usable == sorted(usable)


@pytest.mark.case("A20")
def test_without_ffmpeg_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    path = tmp_path / "Memo.m4a"
    path.write_bytes(b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(100))
    with pytest.raises(AudioError, match=r"Memo\.m4a is AAC or ALAC.*Install ffmpeg.*save it as WAV"):
        audio.read(path)
    assert audio.find(tmp_path)[1][0][0] == path


@pytest.mark.parametrize("block", [1, 1000, 65536])
def test_blocks_are_the_whole(tmp_path, block, monkeypatch):
    monkeypatch.setattr(decode, "BLOCK_SAMPLES", block)
    x = np.stack([melody(0.1), melody(0.1, seed=1)], 1)
    path = put(tmp_path / "a.wav", x, subtype="FLOAT")
    np.testing.assert_array_equal(np.concatenate(list(audio.blocks(path))), x)


# Files that lie, are cut or damaged -----------------------------------------------------------------------------------


@pytest.mark.case("A1", "A2", "A3")
def test_nothing_and_not_audio(tmp_path):
    cases = {
        "empty.wav": (b"", "is empty"),
        "page.mp3": (b"\n <!DOCTYPE html><html><body>Quota exceeded</body></html>" * 30, "web page"),
        "notes.wav": (b"These are my notes for the recording.\n" * 30, "holds text"),
        "short.wav": (b"RIFF$\0\0\0WAVEfmt \x10\0\0\0", "cut off"),
        "random.flac": (np.random.default_rng(0).bytes(5000), "cannot be read"),
        "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(2000), "not a known audio file"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AudioError, match=reason) as error:
            audio.read(tmp_path / name)
        assert name in str(error.value)
    header_only = put(tmp_path / "header.wav", np.zeros(0, np.float32))
    with pytest.raises(AudioError, match="no sound"):
        audio.read(header_only)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="is a folder"):
        audio.read(tmp_path / "folder.wav")
    with pytest.raises(AudioError, match="no file"):
        audio.read(tmp_path / "absent.wav")


@pytest.mark.case("A4", "A5")
@pytest.mark.parametrize("suffix", ["wav", "aiff", "mp3", "flac", "ogg"])
def test_a_cut_file_is_used_up_to_the_cut_and_warned_about(tmp_path, suffix):
    x = melody(20, seed=3)
    path = put(tmp_path / f"a.{suffix}", x)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    got = audio.read(path)
    assert 0.3 * len(x) < len(got.samples) < 0.7 * len(x)
    only_warning(got.info, "damaged" if suffix == "flac" else "cut off")
    surveyed = audio.survey(path)
    assert surveyed.info.n_samples == len(got.samples) and surveyed.info.warnings == got.info.warnings
    assert len(audio.read(path, 16000).samples) == units.resampled_length(len(got.samples), RATE, 16000)


def xing(path, frames):
    data = bytearray(path.read_bytes())
    at = max(data.find(b"Xing"), data.find(b"Info"))
    assert at > 0
    data[at + 8 : at + 12] = struct.pack(">I", frames)
    path.write_bytes(data)


@pytest.mark.case("A6")
def test_an_mp3_header_that_claims_a_trillion_samples(tmp_path):
    path = put(tmp_path / "a.mp3", melody(10))
    true_length = len(audio.read(path).samples)
    xing(path, 0xFFFFFFFF)
    assert soundfile.info(os.fspath(path)).frames > 1e12
    got = audio.read(path)
    assert abs(len(got.samples) - true_length) < 3 * 1152
    only_warning(got.info, "is impossible")
    assert audio.probe(path).duration_s < 400
    assert abs(len(audio.read(path, 16000).samples) - true_length * 160 / 441) < 3000


@pytest.mark.case("A5")
def test_an_mp3_header_that_claims_too_little(tmp_path):
    path = put(tmp_path / "a.mp3", melody(20))
    true_length = len(audio.read(path).samples)
    xing(path, 20)
    got = audio.read(path)
    assert len(got.samples) == true_length
    only_warning(got.info, "0:00.52", "0:20.")


def test_a_cover_picture_is_no_sound(tmp_path):
    path = put(tmp_path / "a.mp3", melody(2))
    picture = b"APIC" + struct.pack(">I", 2_000_000) + bytes(2) + bytes(2_000_000)
    size = len(picture)
    tag = b"ID3\x03\0\0" + bytes((size >> s) & 0x7F for s in (21, 14, 7, 0))
    path.write_bytes(tag + picture + path.read_bytes())
    got = audio.read(path)
    assert abs(len(got.samples) - 2 * RATE) < 3000 and not got.info.warnings


@pytest.mark.case("A7")
def test_garbage_in_the_middle_never_crashes(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("mp3", "flac", "ogg", "wav"):
        path = put(tmp_path / f"a.{suffix}", melody(5))
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 3000] = rng.bytes(3000)
        path.write_bytes(data)
        got = audio.read(path)
        assert len(got.samples) > 0.3 * 5 * RATE


def test_mutated_files_end_in_sound_or_a_sentence(tmp_path):
    rng = np.random.default_rng(1)
    for suffix in ("wav", "mp3", "flac", "ogg"):
        data = put(tmp_path / f"a.{suffix}", melody(1)).read_bytes()
        for i in range(25):
            mutant = bytearray(data)
            if i % 2:
                for _ in range(rng.integers(1, 20)):
                    mutant[rng.integers(0, min(len(mutant), 4000 if i % 3 else len(mutant)))] = rng.integers(256)
            else:
                del mutant[rng.integers(0, len(mutant)) :]
            path = tmp_path / f"m{i}.{suffix}"
            path.write_bytes(mutant)
            try:
                assert len(audio.read(path).samples) < 60 * RATE
            except AudioError as error:
                assert path.name in str(error)


@pytest.mark.case("A16", "A17")
@pytest.mark.parametrize(("offset", "value"), [(24, 0), (24, 10**9), (22, 0), (22, 65535)])
def test_impossible_rates_and_channel_counts(tmp_path, offset, value):
    path = put(tmp_path / "a.wav", tone(0.5), subtype="PCM_16")
    data = bytearray(path.read_bytes())
    data[offset : offset + (4 if offset == 24 else 2)] = value.to_bytes(4 if offset == 24 else 2, "little")
    path.write_bytes(data)
    with pytest.raises(AudioError):
        audio.read(path)


@pytest.mark.case("A9")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_invalid_samples_are_refused_with_the_time(tmp_path, bad):
    x = tone(4)
    x[RATE * 2 + RATE // 2] = bad
    path = put(tmp_path / "a.wav", x, subtype="FLOAT")
    for function in (
        audio.read,
        audio.survey,
        lambda p: list(audio.blocks(p)),
        lambda p: audio.read(p, 16000),
    ):
        with pytest.raises(AudioError, match="0:02.50"):
            function(path)


# Channels, level, offset ----------------------------------------------------------------------------------------------


@pytest.mark.case("A14")
def test_mono_is_the_mean_of_the_channels(tmp_path):
    a, b = melody(1), melody(1, seed=1)
    got = audio.read(put(tmp_path / "a.wav", np.stack([a, b], 1), subtype="FLOAT"))
    np.testing.assert_allclose(got.samples, (a + b) / 2, atol=1e-6)
    assert not got.info.warnings


@pytest.mark.case("A14")
def test_a_silent_channel_is_left_out(tmp_path):
    a = melody(1)
    got = audio.read(put(tmp_path / "a.wav", np.stack([a * 0, a], 1), subtype="FLOAT"))
    np.testing.assert_allclose(got.samples, a, atol=1e-6)
    only_warning(got.info, "channel 1 is silent")


@pytest.mark.case("A15")
def test_opposite_phase_uses_the_left_channel(tmp_path):
    a = melody(1)
    got = audio.read(put(tmp_path / "a.wav", np.stack([a, -a], 1), subtype="FLOAT"))
    np.testing.assert_allclose(got.samples, a, atol=1e-6)
    only_warning(got.info, "opposite phase")


@pytest.mark.case("A14")
def test_six_channels_are_mixed_and_warned_about(tmp_path):
    a = melody(1)
    got = audio.read(put(tmp_path / "a.wav", np.stack([a, a, a, a * 0, a, a], 1), subtype="FLOAT"))
    np.testing.assert_allclose(got.samples, a, atol=1e-6)
    assert "6 channels" in " ".join(got.info.warnings)


@pytest.mark.case("A8")
def test_silence_is_named(tmp_path):
    got = audio.read(put(tmp_path / "a.wav", np.zeros(RATE, np.float32)))
    assert not got.samples.any()
    only_warning(got.info, "silent")
    assert audio.survey(tmp_path / "a.wav").peak == 0.0


@pytest.mark.case("A11")
def test_an_offset_is_removed_aloud(tmp_path):
    got = audio.read(put(tmp_path / "a.wav", tone(1) + 0.5, subtype="FLOAT"))
    np.testing.assert_allclose(got.samples, tone(1), atol=1e-4)
    only_warning(got.info, "+0.50")


@pytest.mark.case("A10")
def test_wrong_scale_is_brought_to_one_aloud(tmp_path):
    got = audio.read(put(tmp_path / "a.wav", tone(1, amplitude=60), subtype="FLOAT"))
    assert np.abs(got.samples).max() == pytest.approx(1.0, abs=1e-3)
    only_warning(got.info, "wrong scale")


def test_little_peaks_above_one_are_kept(tmp_path):
    x = tone(1, amplitude=1.5)
    path = put(tmp_path / "a.wav", x, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read(path).samples, x)


@pytest.mark.case("A16")
def test_low_rates_are_warned_about(tmp_path):
    only_warning(audio.read(put(tmp_path / "a.wav", tone(1, 8000), 8000)).info, "4 kHz")


# Resampling -----------------------------------------------------------------------------------------------------------

PAIRS = [(44100, 16000), (48000, 16000), (22050, 44100), (8000, 44100), (96000, 44100), (16000, 16000), (192000, 22050)]


@pytest.mark.parametrize(("rate_in", "rate_out"), PAIRS)
@pytest.mark.parametrize("n", [0, 1, 2, 1000, 44101])
def test_resampled_length_is_exact(rate_in, rate_out, n):
    for shape in ((n,), (n, 2)):
        found = audio.resample(np.zeros(shape, np.float32), rate_in, rate_out)
        assert found.shape == (units.resampled_length(n, rate_in, rate_out), *shape[1:])


@pytest.mark.case("A16")
@pytest.mark.parametrize(("rate_in", "rate_out"), PAIRS)
def test_resampling_keeps_time_and_shape(rate_in, rate_out):
    """A slow swell of 300 Hz, known at every time: read at the other rate it is the same curve."""

    def swell(rate):
        t = np.arange(rate) / rate
        return np.sin(2 * np.pi * 300 * t) * np.sin(np.pi * t) ** 2

    found = audio.resample(swell(rate_in).astype(np.float32), rate_in, rate_out)
    np.testing.assert_allclose(found, swell(rate_out), atol=1e-3)


@pytest.mark.parametrize(("rate_in", "rate_out"), PAIRS)
def test_blockwise_is_the_same_as_at_once(tmp_path, rate_in, rate_out):
    x = melody(3, rate_in)
    path = put(tmp_path / "a.wav", x, rate_in, subtype="FLOAT")
    expected = audio.resample(x, rate_in, rate_out)
    found = audio.read(path, rate_out).samples
    assert len(found) == units.resampled_length(len(x), rate_in, rate_out)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_impulse_stays_where_it_is():
    x = np.zeros(44100, np.float32)
    x[20000] = 1.0
    found = np.abs(audio.resample(x, 44100, 48000))
    centre_s = (found**2 * np.arange(48000)).sum() / (found**2).sum() / 48000
    assert abs(centre_s - 20000 / 44100) < 1e-5


def test_what_lies_above_the_new_nyquist_is_gone():
    found = audio.resample(tone(1, f_hz=11000.0), RATE, 16000)
    assert np.abs(found[500:-500]).max() < 1e-4


@pytest.mark.case("B10")
def test_progress_and_a_file_that_changes(tmp_path):
    path, told = put(tmp_path / "a.wav", melody(6)), []
    surveyed = audio.survey(path, lambda fraction, text: told.append(fraction))
    assert told == sorted(told) and told[-1] == 1.0
    for seconds in (5, 7):
        put(path, melody(seconds))
        with pytest.raises(AudioError, match="changed while"):
            audio.read(path, 16000, surveyed)


LONG = """
import resource, sys, numpy as np
from svclib.audio import io as audio
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = audio.read(sys.argv[1], 16000).samples
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(x), (after - before) / 1024, x.nbytes / 2**20)
"""


@pytest.mark.case("P14", "A18")
@pytest.mark.parametrize("minutes", [10, pytest.param(180, marks=pytest.mark.slow)])
def test_a_long_file_needs_little_more_than_its_result(tmp_path, minutes):
    path = tmp_path / "long.wav"
    second = np.stack([melody(1), melody(1, seed=1)], 1)
    with soundfile.SoundFile(os.fspath(path), "w", RATE, 2, "PCM_16") as file:
        for _ in range(60 * minutes):
            file.write(second)
    answer = subprocess.run([sys.executable, "-c", LONG, path], capture_output=True, text=True, check=True)
    n, used_mb, result_mb = map(float, answer.stdout.split())
    assert n == 60 * minutes * 16000
    assert used_mb < result_mb + 80, f"{used_mb:.0f} MB for a result of {result_mb:.0f} MB"


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus", "WAV"])
def test_written_sound_comes_back_with_its_tag(tmp_path, suffix):
    rate = 48000 if suffix == "opus" else RATE
    x = melody(1, rate)
    written = audio.write(tmp_path / f"a.{suffix}", x, rate)
    assert written == tmp_path / f"a.{suffix}"
    with soundfile.SoundFile(os.fspath(written)) as file:
        assert file.comment == audio.SYNTHETIC_TAG == "synthetic voice"
        assert file.frames == rate
        if suffix in ("wav", "flac"):
            assert file.subtype == "PCM_24"
            np.testing.assert_allclose(file.read(), x, atol=2**-22)
    assert list(tmp_path.iterdir()) == [written]


def test_a_comment_of_ones_own(tmp_path):
    audio.write(tmp_path / "a.flac", tone(), RATE, "synthetic voice, Süße Töne")
    with soundfile.SoundFile(os.fspath(tmp_path / "a.flac")) as file:
        assert file.comment == "synthetic voice, Süße Töne"


@pytest.mark.case("P36")
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_too_loud_is_turned_down_never_wrapped(tmp_path, suffix):
    x = tone(1, amplitude=2.0)
    written = audio.write(tmp_path / f"a.{suffix}", x, RATE)
    got = audio.read(written).samples
    assert np.abs(got).max() <= 1.0 + (0.02 if suffix in ("mp3", "ogg") else 0)
    inside = slice(2000, -2000)
    np.testing.assert_allclose(got[inside] / np.abs(got[inside]).max(), x[inside] / 2, atol=0.02)


def test_sixteen_bits_are_written_as_they_are(tmp_path):
    sixteen = np.rint(melody(0.5) * 32768).astype(np.int16)
    audio.write(tmp_path / "c.wav", sixteen, RATE)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "c.wav", dtype="int16")[0], sixteen)


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "a.wav"
    audio.write(path, tone(), RATE)
    before = path.read_bytes()
    second = audio.write(path, melody(), RATE)
    assert path.read_bytes() == before and second.name == "a 2.wav"


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    for name, x, rate, words in [
        ("a.xyz", tone(), RATE, "written as .wav"),
        ("a.wav", np.array([np.nan], np.float32), RATE, "finite"),
        ("a.mp3", tone(), 96000, "96000 Hz"),
        ("a.opus", tone(), 44100, "44100 Hz"),
    ]:
        with pytest.raises(AudioError, match=words):
            audio.write(tmp_path / name, x, rate)
    assert not list(tmp_path.iterdir())


@pytest.mark.case("red 20")
def test_the_systems_own_reason_is_given_where_a_disk_takes_no_more(tmp_path):
    """A limit of the process stands for a full disk; libsndfile calls both a system error of the format."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(OSError) as caught:
            audio.write(tmp_path / "a.wav", melody(), RATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.case("P6", "B3", "B10")
def test_find_lists_usable_and_skipped_with_reasons(tmp_path):
    (tmp_path / "take 1").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "x.wav").mkdir()
    good = [put(tmp_path / "take 1" / "b.wav", tone()), put(tmp_path / "x.wav" / "c.flac", tone())]
    good.append(put(tmp_path / "a.ogg", tone()).rename(tmp_path / "A.OGG"))
    put(tmp_path / ".ipynb_checkpoints" / "d.wav", tone())
    for name in (".DS_Store", "._b.wav", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "words.txt").write_text("la la")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    usable, skipped = audio.find(tmp_path)
    assert usable == sorted(good)
    assert {p.name: "empty" in reason for p, reason in skipped} == {"words.txt": False, "empty.wav": True}


@pytest.mark.case("B1")
def test_a_missing_folder_names_its_neighbours(tmp_path):
    (tmp_path / "Recordings").mkdir()
    with pytest.raises(AudioError, match="Near names there: Recordings"):
        audio.find(tmp_path / "recordings ")
