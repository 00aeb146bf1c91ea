"""Two synthetic singers with exactly known F0, voicing, loudness and phones, for tests, demo and lessons.

A score is rendered by a source-filter voice: harmonics of a glottal source, shaped by the formants of each vowel, plus
noise for breath and consonants (:mod:`svclib.audio.synthesis`). Every control is a closed function of time
(:mod:`svclib.data.synthetic.voice`), so ground truth exists on any frame grid, and both singers can render the same
score with the same phones at the same times.

The formants lie in the usual range of published vowel tables; they are not measurements of a person.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.audio import synthesis, units
from svclib.data.synthetic.voice import PAUSE, VOWELS, Note, Phone, Score, Singer, Truth, VoiceCurves
from svclib.utils.errors import DatasetError
from svclib.utils.progress import ProgressCallback

__all__ = ["PAUSE", "SINGERS", "Note", "Phone", "Score", "Singer", "SyntheticRecording", "Truth", "VOWELS"]

_CONTROL_HZ = 344.53125  # control points per second; 128 samples at 44.1 kHz
_N_BANDS = 129
_WHITE_POWER = 1.0 / 3.0  # synthesis.filtered_noise starts from noise that is uniform in -1..1


SINGERS = {
    "aria": Singer(
        "aria",
        0,
        57,
        79,
        {
            "a": (850, 1300, 2850, 3700, 4600),
            "e": (520, 2050, 2800, 3700, 4600),
            "i": (330, 2500, 3100, 3900, 4700),
            "o": (540, 930, 2700, 3600, 4500),
            "u": (380, 820, 2650, 3600, 4500),
            "m": (300, 1100, 2500, 3500, 4500),
            "n": (300, 1600, 2700, 3600, 4600),
            "l": (400, 1250, 2900, 3700, 4600),
        },
        rolloff_db=9.0,
        vibrato_hz=5.9,
        vibrato_cents=45.0,
        glide_s=0.08,
        breath_db=-34.0,
        consonant_ratio=1.12,
    ),
    "bruno": Singer(
        "bruno",
        -1,
        41,
        67,
        {
            "a": (690, 1100, 2450, 2850, 3350),
            "e": (430, 1750, 2400, 2800, 3300),
            "i": (290, 2100, 2550, 2950, 3400),
            "o": (440, 780, 2400, 2750, 3250),
            "u": (330, 720, 2300, 2700, 3250),
            "m": (260, 950, 2150, 2700, 3200),
            "n": (260, 1400, 2300, 2750, 3250),
            "l": (350, 1050, 2500, 2850, 3350),
        },
        rolloff_db=6.0,
        vibrato_hz=5.2,
        vibrato_cents=60.0,
        glide_s=0.11,
        breath_db=-40.0,
        consonant_ratio=0.93,
    ),
}


@dataclasses.dataclass(frozen=True)
class SyntheticRecording:
    """A rendered score: audio float32 ``[samples]`` within -1..1, and everything known about it."""

    singer: Singer
    score: Score
    audio: np.ndarray
    sample_rate_hz: int
    phones: tuple[Phone, ...]
    seed: int
    octave: int

    def truth(self, sample_rate_hz: int | None = None, hop_samples: int = 64, n_fft: int = 512) -> Truth:
        """Ground truth on a frame grid of any rate; harmonics above its Nyquist frequency are left out."""
        rate = sample_rate_hz or self.sample_rate_hz
        n_samples = units.resampled_length(len(self.audio), self.sample_rate_hz, rate)
        curves = VoiceCurves(self.singer, self.score, self.octave, self.seed)
        limit_hz = min(rate, self.sample_rate_hz) / 2
        return curves.truth(rate, hop_samples, n_samples, n_fft, limit_hz)


def render(
    singer: str | Singer, score: Score, sample_rate_hz: int = 44100, seed: int = 0, octave: int | None = None
) -> SyntheticRecording:
    """Render a score with the voice of a singer.

    Args:
        singer: A name in :data:`SINGERS`, or a :class:`Singer`.
        score: Notes and syllables; 0.15 s of silence are added before and 0.25 s after.
        sample_rate_hz: Rate of the audio.
        seed: Of the noise and the phase of the vibrato.
        octave: Octaves added to the written pitch; None: the singer's default.

    Returns:
        The audio with its score, phones and ground truth.

    Raises:
        DatasetError: for a note out of the singer's range, an unknown phone or an impossible duration.
    """
    import torch

    if isinstance(singer, str):
        if singer not in SINGERS:
            raise DatasetError(f"There is no singer '{singer}'; the singers are {' and '.join(SINGERS)}.")
        singer = SINGERS[singer]
    octave = singer.octave if octave is None else octave
    curves = VoiceCurves(singer, score, octave, seed)
    n_samples = int(round(curves.duration_s * sample_rate_hz))
    hop = 2 * max(1, int(round(sample_rate_hz / _CONTROL_HZ / 2)))
    n_frames = -(-n_samples // hop)
    t = units.frame_centers_s(n_frames, hop, sample_rate_hz)

    f0_hz = curves.f0_hz(t)
    partials = curves.harmonics(t, f0_hz, sample_rate_hz / 2)
    total = partials.sum(axis=1)
    shares = partials / np.maximum(total, 1e-12)[:, None]
    bands_hz = np.linspace(0, sample_rate_hz / 2, _N_BANDS)
    magnitudes = np.sqrt(curves.noise_power(t, bands_hz, sample_rate_hz / 2) / _WHITE_POWER * sample_rate_hz / 2)

    def tensor(x):
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[None]

    with torch.no_grad():
        harmonic, _ = synthesis.harmonic_synthesis(tensor(f0_hz), tensor(total), tensor(shares), sample_rate_hz, hop)
        generator = torch.Generator().manual_seed(seed)
        noise = synthesis.filtered_noise(tensor(magnitudes), hop, generator)
    samples = (harmonic + noise)[0, :n_samples].numpy()
    return SyntheticRecording(singer, score, samples, sample_rate_hz, curves.phones, seed, octave)


def random_score(
    seed: int, duration_s: float | int = 15, low_midi: float | int = 57, high_midi: float | int = 76
) -> Score:
    """A pentatonic melody with random syllables and a breath every few notes; written pitches stay in the range."""
    rng = np.random.default_rng(seed)
    key = int(rng.integers(12))
    scale = [m for m in range(math.ceil(low_midi), math.floor(high_midi) + 1) if (m - key) % 12 in (0, 2, 4, 7, 9)]
    degree, beat_s = int(rng.integers(len(scale))), float(rng.uniform(0.45, 0.7))
    notes, elapsed_s, until_rest = [], 0.0, int(rng.integers(5, 9))
    while elapsed_s < duration_s:
        if until_rest == 0:
            notes.append(Note(0, 0.6 * beat_s, ""))
            until_rest = int(rng.integers(5, 9))
        else:
            degree += int(rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3]))
            degree = -degree if degree < 0 else 2 * (len(scale) - 1) - degree if degree >= len(scale) else degree
            length_s = beat_s * float(rng.choice([0.5, 1.0, 1.0, 1.0, 1.5, 2.0]))
            notes.append(Note(scale[degree], length_s, _random_syllable(rng), float(rng.uniform(-9.0, 0.0))))
            until_rest -= 1
        elapsed_s += notes[-1].duration_s
    return Score(tuple(notes), f"random {seed}")


def _random_syllable(rng: np.random.Generator) -> str:
    onset = str(rng.choice(["", "l", "m", "n", "l", "n", "s", "sh", "f", "h", "t", "k"]))
    coda = str(rng.choice(["", "", "", "", "n", "m", "s"]))
    return onset + str(rng.choice(VOWELS)) + coda


def demo_song() -> Score:
    """The first two lines of "Twinkle, twinkle, little star" (melody: "Ah! vous dirai-je, maman", 18th century)."""
    pitches = (60, 60, 67, 67, 69, 69, 67, 65, 65, 64, 64, 62, 62, 60)
    lyrics = ("tin", "kel", "tin", "kel", "li", "tel", "sta", "hau", "ai", "on", "te", "ha", "tiu", "a")
    lengths_s = (*[0.52] * 6, 1.0) * 2
    notes = [Note(p, d, s, -1.0) for p, d, s in zip(pitches, lengths_s, lyrics, strict=True)]
    return Score((*notes[:7], Note(0, 0.2, ""), *notes[7:]), "twinkle")


def make_recordings(
    singer: str,
    out_folder: str | Path,
    minutes: float | int = 2.5,
    seed: int = 0,
    sample_rate_hz: int = 44100,
    piece_s: float | int = 15,
    progress: ProgressCallback | None = None,
) -> list[Path]:
    """Write at least ``minutes`` of recordings of a singer, each of about ``piece_s`` seconds, and return the files.

    Existing files are kept: the same arguments would give the same samples.
    """
    folder, voice = Path(out_folder), SINGERS[singer]
    n_pieces = max(1, math.ceil(minutes * 60 / piece_s))
    shift = 12 * voice.octave
    low, high = max(voice.low_midi - shift, 53), min(voice.high_midi - shift, 76)
    paths = []
    for i in range(n_pieces):
        path = folder / f"{singer}_{seed:02d}_{i:03d}.wav"
        if not path.is_file():
            score = random_score(1000 * seed + i, piece_s, low, high)
            made = render(singer, score, sample_rate_hz, seed=1000 * seed + i)
            audio.write(path, made.audio, sample_rate_hz, {"comment": "synthetic voice (svclib singers)"})
        paths.append(path)
        if progress:
            progress((i + 1) / n_pieces, f"rendering {path.name}")
    return paths
