"""The conversion taken apart link by link: what the vocoder, the coarse mel and the sampling run each cost in words.

    python benchmarks/chain.py DATA OUT INSTRUMENT.zip [INSTRUMENT.zip ...] [--clip NAME ...] [--steps N ...] ...

For each instrument and group of clips (``lib/clips``, development set, clean): character error rate and likeness (mean
cosine to the target over windows of 5 s) of the source's own mel through the vocoder, of the coarse mel (a sampling
run from diffusion step 1), and of sampling runs of several lengths and temperatures; each in the clip's own key and
shifted.
Instruments of different content kinds or training lengths are rows of the same table.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from lib import clips, measuring
from svclib.conversion import recognition
from svclib.models import instrument

KEYS = {"own key": 0, "+12": 12, "suggested key": None}


def links(steps: list[int], temperatures: list[float]) -> dict[str, dict]:
    """Label -> options of the conversion."""
    found = {"coarse mel": {"shallow": 1, "steps": 1}}
    found |= {f"sampling run, {n} steps": {"steps": n} for n in steps}
    return found | {f"sampling run, temperature {t:g}": {"temperature": t} for t in temperatures}


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("instruments", type=Path, nargs="+", metavar="INSTRUMENT.zip")
    parser.add_argument("--clip", action="append", help="only these clips")
    parser.add_argument("--key", action="append", choices=KEYS, help="all by default")
    parser.add_argument("--steps", type=int, action="append", help="5, 20 and 100 by default")
    parser.add_argument("--temperature", type=float, action="append", help="0, 0.5 and 1 by default")
    parser.add_argument("--content", choices=("own", "whisper"), default="own", help="see SamplingOptions")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()

    recognizer = measuring.CachedRecognizer(recognition.WhisperRecognizer(), a.out / "transcripts")
    wanted = [c for c in clips.DEVELOPMENT if a.clip is None or c.name in a.clip]
    groups = list(dict.fromkeys(c.group for c in wanted))
    target, report = None, []
    print(f"| instrument | link | key | {' | '.join(f'{g}: CER, likeness' for g in groups)} |")
    print("|---" * (3 + len(groups)) + "|")
    for path in a.instruments:
        bench = measuring.Bench(a.data, a.out, instrument.open(path), [recognizer])
        target = bench.target = target or bench.target
        rate = bench.voice.features.sample_rate_hz

        def row(label, key_label, sound_of, bench=bench, path=path, rate=rate):
            found = {}
            for clip in wanted:
                samples = measuring.at_16k(sound_of(clip), rate)
                words = bench.words(clip, samples)[recognizer.name]
                found[clip.name] = {
                    "group": clip.group,
                    "cer": words.cer,
                    "likeness": bench.target.likeness(samples)["windows"],
                    "transcript": words.converted,
                }
            report.append({"instrument": path.stem, "link": label, "key": key_label, "clips": found})
            cells = []
            for group in groups:
                each = [x for x in found.values() if x["group"] == group]
                cells.append(f"{np.mean([x['cer'] for x in each]):.2f}, {np.mean([x['likeness'] for x in each]):.2f}")
            print(f"| {path.stem} | {label} | {key_label} | {' | '.join(cells)} |", flush=True)

        row("source", "own key", lambda clip, bench=bench: bench.song(clip).audio)
        row("vocoder alone", "own key", lambda clip, bench=bench: bench.vocoded(bench.song(clip)))
        for label, options in links(a.steps or [5, 20, 100], a.temperature or [0.0, 0.5, 1.0]).items():
            for key_label in a.key or KEYS:

                def converted(clip, bench=bench, options=options, key=KEYS[key_label]):
                    key = bench.key(clip) if key is None else key
                    return bench.convert(bench.song(clip), key, a.seed, content=a.content, **options).audio

                row(label, key_label, converted)
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (a.out / f"chain {a.content}.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
