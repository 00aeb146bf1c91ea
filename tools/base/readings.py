"""Synthetic readings for training: Kokoro-82M (Apache-2.0), flite and festival voices, text from the King James Bible.

    python tools/base/readings.py OUT --kokoro FOLDER --minutes 30

Resumable: utterance ``n`` is always the same text by the same voice, and files that exist are kept. FOLDER holds
``model.onnx``, ``vocab.json`` (of kokoro-onnx) and ``voices/*.bin`` (of the npm package kokoro-js).
"""

import argparse
import json
import random
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

HELD_OUT_VOICES = ("am_michael", "bf_emma")  # for validation only
BOOKS = ("gen", "exo", "job", "psa", "pro", "ecc", "isa", "mat", "mar", "luk", "joh", "act", "rom", "rev")
# espeak's IPA to the phonemes Kokoro was trained with.
TO_KOKORO = (
    ("tʃ", "ʧ"), ("dʒ", "ʤ"), ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("ɔɪ", "Y"), ("oʊ", "O"), ("əʊ", "Q"),
    ("ɚ", "əɹ"), ("ɜː", "ɜɹ"), ("ɐ", "ə"), ("r", "ɹ"), ("ː", ""),
)  # fmt: skip
CONSONANTS = "b d f h j k l m n p s t v w z ɡ ŋ ɲ ɹ ɾ ʃ ʧ ʤ ʒ θ ð x ɸ ʦ ɕ ʂ pʰ tʰ kʰ".split()
VOWELS = "a i u e o ɑ æ ɛ ɔ ə ɪ ʊ ʌ ɯ y ø œ A I O W".split()


def verses() -> list[str]:
    """Verses of 40 to 130 characters, in a fixed random order (Debian package bible-kjv)."""
    texts = []
    for book in BOOKS:
        out = subprocess.run(
            ["bible", "-f", "-l", "2000", f"{book}1:1-{book}150:1"], capture_output=True, text=True, input=""
        ).stdout
        for line in out.splitlines():
            text = re.sub(r"^\S+\s+", "", line).strip()
            if 40 <= len(text) <= 130:
                texts.append(text)
    random.Random(0).shuffle(texts)
    return texts


def syllables(rng: random.Random) -> str:
    """Phonemes of random syllables, for sounds that English lacks."""
    words = []
    for _ in range(rng.randint(6, 10)):
        word = ""
        for i in range(rng.randint(1, 3)):
            word += rng.choice(CONSONANTS) + ("ˈ" if i == 0 else "") + rng.choice(VOWELS)
            word += rng.choice(["", "", "", "n", "ŋ", "s", "k"])
        words.append(word)
    return " ".join(words) + "."


def english_phonemes(text: str) -> str:
    """IPA by espeak-ng in Kokoro's spelling; clauses are kept apart by commas."""
    out = subprocess.run(["espeak-ng", "-q", "--ipa", "-v", "en-us", text], capture_output=True, text=True).stdout
    phonemes = ", ".join(line.strip() for line in out.splitlines() if line.strip()) + "."
    for a, b in TO_KOKORO:
        phonemes = phonemes.replace(a, b)
    return phonemes


def kokoro(folder: Path, out: Path, minutes: float) -> None:
    """Read with every voice in turn until there are enough minutes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    vocab = json.loads((folder / "vocab.json").read_text())["vocab"]
    styles = {p.stem: np.fromfile(p, np.float32).reshape(-1, 256) for p in sorted((folder / "voices").glob("*.bin"))}
    texts, names, seconds, n = verses(), sorted(styles), 0.0, 0
    random.Random(1).shuffle(names)
    while seconds < 60 * minutes:
        name, round_number = names[n % len(names)], n // len(names)
        path = out / name / f"{n:05d}.flac"
        if not path.exists():
            rng = random.Random(n)
            phonemes = syllables(rng) if round_number % 4 == 3 else english_phonemes(texts[n % len(texts)])
            tokens = [vocab[c] for c in phonemes if c in vocab][:500]
            inputs = {
                "tokens": np.array([[0, *tokens, 0]], np.int64), "style": styles[name][len(tokens) - 1][None],
                "speed": np.array([rng.uniform(0.8, 1.15)], np.float32),
            }  # fmt: skip
            samples = session.run(None, inputs)[0].ravel()
            loud = np.flatnonzero(np.abs(samples) > 0.01)
            if len(loud) > 2400:
                samples = samples[max(0, loud[0] - 1200) : loud[-1] + 1200]
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples, 24000)
        seconds += soundfile.info(path).duration
        n += 1


def formant_synthesisers(out: Path, minutes: float) -> None:
    """flite's awb and kal16, festival's kal, ked and a Russian voice: a few minutes each."""
    texts = verses()[::-1]
    commands = {
        "flite_awb": lambda text, wav: (["flite", "-voice", "awb", "-t", text, "-o", wav], None),
        "flite_kal16": lambda text, wav: (["flite", "-voice", "kal16", "-t", text, "-o", wav], None),
        "festival_ked": lambda text, wav: (["text2wave", "-eval", "(voice_ked_diphone)", "-o", wav], text),
        "festival_kal": lambda text, wav: (["text2wave", "-eval", "(voice_kal_diphone)", "-o", wav], text),
    }
    for k, (name, command) in enumerate(commands.items()):
        seconds, n = 0.0, 0
        while seconds < 60 * minutes:
            path = out / name / f"{n:05d}.flac"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
                    args, text = command(texts[(k * 997 + n) % len(texts)], wav.name)
                    subprocess.run(args, input=text, text=True, capture_output=True, check=True)
                    samples, rate = soundfile.read(wav.name)
                    soundfile.write(path, samples, rate)
            seconds += soundfile.info(path).duration
            n += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kokoro", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="of Kokoro in all")
    parser.add_argument("--others", type=float, default=2.5, help="minutes of each other voice")
    arguments = parser.parse_args()
    formant_synthesisers(arguments.out, arguments.others)
    kokoro(arguments.kokoro, arguments.out, arguments.minutes)
