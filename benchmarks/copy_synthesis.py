"""Closeness of a vocoder to recordings it did not learn from, and whether it buzzes on breaths and sibilants.

    python benchmarks/copy_synthesis.py DATA VOCODER [VOCODER ...] [--clips OUT] [--words] [--every-step] [--limit N]
        [--keep DIR] [--json FILE]

DATA is a prepared dataset, of which the held-out recordings are taken, or a folder of recordings; with --clips it is
the folder of the test recordings, whose clips (``lib/clips``, both sets) are written to OUT and measured. --words adds
the character error rate by Whisper and the likeness to the recording. VOCODER is whatever
``svclib vocode`` takes: a harmonic or diffwave zip, a diffusion instrument, an NSF-HiFiGAN checkpoint. All vocoders see
the same recordings, each at its own rate. --keep writes what was made, to listen to.
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

from lib import clips, copysynthesis, measuring
from svclib.audio import io as audio
from svclib.audio import units
from svclib.conversion import recognition
from svclib.models.vocoders import auto as vocoding
from svclib.utils import filesystem


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("vocoders", nargs="+", metavar="VOCODER")
    parser.add_argument("--clips", type=Path, metavar="OUT")
    parser.add_argument("--words", action="store_true", help="character error rate and likeness too")
    parser.add_argument("--every-step", action="store_true", help="diffwave: every trained step")
    parser.add_argument("--limit", type=int, help="take only the first recordings")
    parser.add_argument("--keep", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    a = parser.parse_args()
    report, data, languages, recognizer = {}, a.data, {}, None
    if a.clips:
        data = []
        for name, clip in ((f"{c.name} {s}", c) for s, found in clips.SETS.items() for c in found):
            data.append(clips.render(a.data, dataclasses.replace(clip, name=name), a.clips))
            languages[data[-1].name] = clip.language
    if a.words:
        recognizer = measuring.CachedRecognizer(recognition.WhisperRecognizer(), (a.clips or a.data) / "transcripts")
    for where in a.vocoders:
        vocoder = vocoding.load_vocoder(where, fast=not a.every_step)
        rows, seconds, spent = [], 0.0, time.process_time()
        for name, samples in itertools.islice(copysynthesis.recordings(data, vocoder), a.limit):
            row = copysynthesis.measure(vocoder, samples)
            made, rate = row.pop("audio"), vocoder.sample_rate_hz
            if recognizer:
                row |= copysynthesis.words_and_voice(recognizer, samples, made, rate, languages.get(name))
            rows.append({"name": name, **row})
            seconds += len(made) / rate
            if a.keep:
                target = a.keep / f"{filesystem.safe_name(Path(name).stem)} - {vocoder.name}.wav"
                audio.write(target, made, rate)
        spent = time.process_time() - spent
        figures = copysynthesis.summary(rows)
        report[str(where)] = {"vocoder": vocoder.record(), "mean": figures, "recordings": rows}
        print(
            f"{vocoder.name} ({vocoder.kind}, {vocoder.sample_rate_hz} Hz), {len(rows)} recordings, "
            f"{units.duration_text(seconds)}; {spent:.0f} CPU seconds with all measuring"
        )
        print(copysynthesis.table(figures) + "\n")
    if a.json:
        a.json.write_text(json.dumps(report, indent=1).replace("NaN", "null"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
