"""Sound files of which users of such programs report that they are refused, cut or misread: the sound that is there
comes out whole, whatever their header says, and what is wrong with them is one sentence.
"""

import io
import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile
from explaining import assert_explains

from svclib.audio import io as audio
from svclib.utils import budget
from svclib.utils.errors import AudioError

RATE, SECONDS = 44100, 4.1
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


def sound(rate=RATE, seconds=SECONDS):
    """Soft, then loud and noisy: an average bitrate says nothing about its length."""
    t = np.arange(round(seconds * rate)) / rate
    x = np.sin(2 * np.pi * 440 * t) * np.where(t < seconds / 2, 3e-4, 0.3)
    return (x + np.where(t < seconds / 2, 0, 0.15) * np.random.default_rng(0).normal(size=len(t))).astype(np.float32)


def as_bytes(format, subtype="PCM_16", **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(), RATE, format=format, subtype=subtype, **options)
    return buffer.getvalue()


WAV = as_bytes("WAV")
MP3 = as_bytes("MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5)
FIRST = MP3.index(MP3[:2], 40)  # bytes of its first frame, which holds only the number of the others
AT = MP3.find(b"Xing")


def read(path, data):
    path.write_bytes(data)
    assert audio.find(path)[0] == [path]
    got = audio.read(path)
    assert audio.survey(path).info.n_samples == len(got.samples)
    return got


def assert_whole(got, n_warnings=0, slack_s=0.02):
    assert abs(got.duration_s - SECONDS) < slack_s and len(got.info.warnings) == n_warnings, got.info.warnings
    loudest = np.abs(got.samples[RATE * 3 :]).max()
    assert 0.5 < loudest < 1.2  # its end is there, and nothing else


# MP3 ------------------------------------------------------------------------------------------------------------------


def with_count(n):
    return MP3[: AT + 8] + struct.pack(">I", n) + MP3[AT + 12 :]


@pytest.mark.case("field F2")
def test_an_mp3_is_as_long_as_its_frames(tmp_path):
    """A VBR MP3 without Xing header, and one whose header counts too few frames, to their ends."""
    assert MP3[:2] == b"\xff\xfb" and MP3[FIRST : FIRST + 2] == b"\xff\xfb"
    assert soundfile.info(io.BytesIO(MP3[FIRST:])).duration < 2  # what libsndfile believes
    assert_whole(read(tmp_path / "a.mp3", MP3))
    assert_whole(read(tmp_path / "b.mp3", MP3[FIRST:]))
    few = read(tmp_path / "c.mp3", with_count(40))
    assert_whole(few, 1)
    assert "0:01.04" in few.info.warnings[0] and "0:04.1" in few.info.warnings[0]  # what it says, what there is


@pytest.mark.case("field F2")
@pytest.mark.parametrize("rate", [48000, 22050, 11025])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_every_version_of_the_format_without_a_count(tmp_path, rate, channels, mode):
    x, path = np.repeat(sound(rate)[:, None], channels, 1), tmp_path / "a.mp3"
    soundfile.write(path, x, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)
    data = path.read_bytes()
    second = data.index(data[:2], 40)
    assert data[4:second].strip(b"\0")[:4] in (b"Xing", b"Info")
    got = read(path, data[second:])
    assert 0 <= got.duration_s - SECONDS < 0.15 * 44100 / rate / 4 + 0.05


JUNK = np.random.default_rng(1).bytes(5000)
FRONT = {
    "zeros": bytes(1000),
    "junk": JUNK,
    "APE tag": b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0xA0000000) + bytes(8) + b"x" * 32,
    "ID3 of a wrong size": b"ID3\x03\0\0\0\0\x10\0" + bytes(10),
    "ID3 longer than the file": b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + bytes(10),
    "ID3 with padding": b"ID3\x03\0\0\0\0\x10\0" + bytes(2048),
}


@pytest.mark.case("field F10")
@pytest.mark.parametrize("what", FRONT)
def test_an_mp3_begins_with_its_first_frame(tmp_path, what):
    assert_whole(read(tmp_path / "a.mp3", FRONT[what] + MP3))
    assert_whole(read(tmp_path / "b.mp3", FRONT[what] + MP3[FIRST:] + b"TAG" + bytes(125)))


@pytest.mark.case("field F10")
@pytest.mark.parametrize("at", [6000, 12000, 20000])
@pytest.mark.parametrize("n", [1, 100, 3000])
def test_an_mp3_goes_on_after_damage(tmp_path, at, n):
    """Of the damaged place only what cannot be decoded is missing, and no burst of noise stands there instead."""
    got = read(tmp_path / "a.mp3", MP3[:at] + JUNK[:n] + MP3[at + n // 2 :])
    assert_whole(got, 1, slack_s=0.5)
    assert "damaged" in got.info.warnings[0]
    loud = np.abs(sound()[: int(1.9 * RATE)]).max()
    assert np.abs(got.samples[: int(1.5 * RATE)]).max() < 40 * loud  # a burst was 500 times as loud


@pytest.mark.case("field F10")
def test_an_mp3_cut_within_a_frame_is_used_up_to_there(tmp_path):
    got = read(tmp_path / "a.mp3", MP3[FIRST : len(MP3) // 2 + 37])
    assert 2.3 < got.duration_s < 2.6 and "cut off" in got.info.warnings[0]
    joined = read(tmp_path / "b.mp3", MP3 + MP3)
    assert abs(joined.duration_s - 2 * SECONDS) < 0.1 and len(joined.info.warnings) == 1


# WAV ------------------------------------------------------------------------------------------------------------------


def wav(riff=None, data=None, front=b""):
    """The WAV with other lengths in its header, and bytes in front of its sound."""
    out = bytearray(WAV)
    for place, value in ((4, riff), (40, data)):
        out[place : place + 4] = out[place : place + 4] if value is None else struct.pack("<I", value)
    return bytes(out[:36]) + front + bytes(out[36:])


@pytest.mark.case("field F3")
@pytest.mark.parametrize(
    ("data", "n_warnings"),
    [
        (wav(riff=0), 0),
        (wav(data=0), 1),
        (wav(riff=0, data=0), 1),
        (wav(riff=0xFFFFFFFF, data=0xFFFFFFFF), 0),
        (wav(riff=36 + 8000, data=8000), 1),  # written for the last time after the first tenth of a second
        (wav(data=0, front=b"bext" + struct.pack("<I", 602) + bytes(602)), 1),
    ],
)
def test_a_recorder_that_was_killed_leaves_the_whole_sound(tmp_path, data, n_warnings):
    got = read(tmp_path / "a.wav", data)
    assert_whole(got, n_warnings)
    np.testing.assert_allclose(got.samples[: round(RATE * SECONDS)], sound(), atol=1 / 32768)


@pytest.mark.case("field F3")
def test_chunks_behind_the_sound_are_not_sound(tmp_path):
    for behind in (b"LIST" + struct.pack("<I", 4) + b"INFO", bytes(4096)):
        got = read(tmp_path / "a.wav", WAV + behind)
        assert len(got.samples) == round(RATE * SECONDS) and not got.info.warnings
    with pytest.raises(AudioError):
        audio.read(audio.write(tmp_path / "none.wav", np.zeros(0, np.float32), RATE))


@pytest.mark.case("field F3")
@needs_ffmpeg
@pytest.mark.parametrize("format", ["wav", "aiff", "au", "w64", "flac", "ogg", "mp3", "caf"])
def test_what_ffmpeg_writes_to_a_pipe(tmp_path, format):
    (tmp_path / "a.wav").write_bytes(WAV)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "a.wav", "-f", format, "pipe:1"]
    got = read(tmp_path / f"b.{format}", subprocess.run(command, capture_output=True, check=True).stdout)
    assert_whole(got, slack_s=0.06)


@pytest.mark.case("field F11")
def test_a_chunk_of_odd_length(tmp_path):
    """Padded as RIFF asks for, or not, as some programs write it."""
    info = b"LIST" + struct.pack("<I", 15) + b"INFOISFT" + struct.pack("<I", 3) + b"abc"
    for front in (info + b"\0", info):
        assert_whole(read(tmp_path / "a.wav", wav(front=front)))


@pytest.mark.case("field F4")
def test_a_bw64(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(), RATE, format="RF64", subtype="PCM_24")
    assert_whole(read(tmp_path / "a.wav", b"BW64" + buffer.getvalue()[4:]))


# Through ffmpeg -------------------------------------------------------------------------------------------------------

OTHERS = {  # options of ffmpeg by file name
    "a.oga": ["-c:a", "flac", "-f", "ogg"],
    "b.caf": ["-c:a", "alac"],
    "c.wv": [],
    "d.ac3": [],
    "e.mp2": [],
    "f.dts": ["-strict", "-2"],
    "g.wav": ["-c:a", "ac3", "-f", "ac3"],
    "h.m4a": ["-c:a", "alac"],
    "i.tta": [],
    "k.avi": ["-c:a", "mp3"],
    "l.ts": ["-c:a", "aac"],
    "j.bin": ["-c:a", "wavpack", "-f", "wv"],
}


@pytest.mark.case("field F4")
@needs_ffmpeg
@pytest.mark.parametrize("name", OTHERS)
def test_ffmpeg_reads_what_libsndfile_cannot(tmp_path, name):
    """By content, whatever the suffix."""
    (tmp_path / "source.wav").write_bytes(WAV)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "source.wav", *OTHERS[name], tmp_path / name]
    subprocess.run([os.fspath(part) for part in command], check=True)
    assert_whole(read(tmp_path / name, (tmp_path / name).read_bytes()), slack_s=0.1)


@pytest.mark.case("field F2", "field F4")
@needs_ffmpeg
def test_streams_in_a_chain_are_all_read(tmp_path, monkeypatch):
    """As a radio sends them; without ffmpeg it is said that only the first one is used."""
    data = as_bytes("OGG", "VORBIS") * 2
    assert abs(read(tmp_path / "a.ogg", data).duration_s - 2 * SECONDS) < 0.05
    monkeypatch.setattr(shutil, "which", lambda name: None)
    got = read(tmp_path / "b.ogg", data)
    assert abs(got.duration_s - SECONDS) < 0.05 and "ffmpeg" in got.info.warnings[0]
    joined = read(tmp_path / "c.wav", WAV + WAV)
    assert abs(joined.duration_s - SECONDS) < 0.01 and "another WAV" in joined.info.warnings[0]


@pytest.mark.case("field F4")
@needs_ffmpeg
def test_an_aac_with_a_tag(tmp_path):
    (tmp_path / "source.wav").write_bytes(WAV)
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "source.wav", tmp_path / "a.aac"], check=True)
    tag = b"ID3\x04\0\0\0\0\0\x15TIT2\0\0\0\x0b\0\0\x03My song\0\0\0"
    assert_whole(read(tmp_path / "b.aac", tag + (tmp_path / "a.aac").read_bytes()), slack_s=0.1)


@pytest.mark.case("field F4")
def test_without_ffmpeg_its_formats_name_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "a.wv").write_bytes(b"wvpk" + bytes(500))
    with pytest.raises(AudioError) as error:
        audio.read(tmp_path / "a.wv")
    assert_explains(error.value, path=tmp_path / "a.wv", remedy="ffmpeg")


@pytest.mark.case("field F4")
@needs_ffmpeg
def test_lists_of_other_files_are_never_opened(tmp_path):
    """ffmpeg knows formats that name other files; none of them may read one."""
    (tmp_path / "secret.wav").write_bytes(WAV)
    lists = {
        "a.m3u8": b"#EXTM3U\n#EXTINF:4\nsecret.wav\n",
        "b.wav": b"ffconcat version 1.0\nfile secret.wav\n",
        "c.mp3": b"ID3\x03\0\0\0\0\0\0#EXTM3U\n#EXTINF:4\nsecret.wav\n",
        "d.sdp": b"v=0\nm=audio 5004 RTP/AVP 0\n",
    }
    for name, data in lists.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AudioError):
            audio.read(tmp_path / name)


@pytest.mark.case("field F13")
@pytest.mark.parametrize("head", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\7\1\0", b"\x1f\x8b\x08\0", b"PK\3\4\x14\0"])
def test_packed_files_say_unpack_first(tmp_path, head):
    (tmp_path / "voice.x").write_bytes(head + JUNK)
    with pytest.raises(AudioError) as error:
        audio.read(tmp_path / "voice.x")
    assert_explains(error.value, path=tmp_path / "voice.x", remedy="unpack")


# Places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.case("red 26")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_recordings_is_passed_over(tmp_path):
    (tmp_path / "a.wav").write_bytes(WAV)
    os.mkfifo(tmp_path / "z.wav")
    usable, skipped = audio.find(tmp_path)
    assert usable == [tmp_path / "a.wav"] and [path.name for path, _ in skipped] == ["z.wav"]
    assert_explains(AudioError(skipped[0][1]), path=tmp_path / "z.wav")


@pytest.mark.case("red 26")
def test_links_out_of_the_folder_are_not_followed(tmp_path):
    inside, outside = tmp_path / "mine", tmp_path / "private"
    inside.mkdir(), outside.mkdir()
    (inside / "a.wav").write_bytes(WAV), (outside / "diary.wav").write_bytes(WAV)
    (inside / "again.wav").symlink_to(inside / "a.wav")
    (inside / "b.wav").symlink_to(outside / "diary.wav")
    (inside / "more").symlink_to(outside)
    (tmp_path / "link").symlink_to(inside)
    usable, skipped = audio.find(inside)
    assert [path.name for path in usable] == ["a.wav", "again.wav"]
    assert sorted(path.name for path, _ in skipped) == ["b.wav", "more"]
    assert [path.name for path in audio.find(tmp_path / "link")[0]] == [
        "a.wav",
        "again.wav",
    ]  # the folder that was named
    assert audio.has_audio(inside) and not audio.has_audio(outside / "nothing")


@pytest.mark.case("red 07")
def test_a_file_of_kilobytes_that_lasts_for_days_is_refused(tmp_path, monkeypatch):
    """FLAC of constant blocks: the length is seen while it is decoded, and nothing is kept of it."""
    monkeypatch.setitem(budget.LIMITS, "recording", budget.Cost(seconds=36))
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
        for _ in range(40):
            file.write(np.full(16000, 1000, np.int16))
    assert path.stat().st_size < 20_000
    for use in (audio.survey, audio.read):
        with pytest.raises(AudioError) as error:
            use(path)
        assert_explains(error.value, path=path, remedy="cut it")


@pytest.mark.case("red 37", "field F11")
def test_a_name_that_is_not_utf_8_is_text_in_messages(tmp_path):
    name = os.fsdecode("grün.wav".encode("latin-1"))
    try:
        (tmp_path / name).write_bytes(wav(data=0))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    got = audio.read(tmp_path / name)
    assert got.info.name == "grün.wav" and "grün.wav" in got.info.warnings[0]
    got.info.warnings[0].encode()
