"""The yardstick: words, pitch and likeness of conversions by one or more instruments, one row each.

    python benchmarks/yardstick.py DATA OUT INSTRUMENT.zip [INSTRUMENT.zip ...] [--set kept_aside] [--publish NAME]

DATA holds the test recordings. Every instrument has to be of the voice ``voices/kathleen_sung``. Each clip
(``lib/clips``) is converted clean, with a second voice 6 dB below, and with reverb. For each clip:

- character error rate by two recognizers (Whisper; a phoneme recognizer that is no relative of it) against the
  transcript of the clean clip, and for degraded clips that of the source itself;
- F0: median absolute error and RMSE in cents, correlation (of logarithms), against the clean clip's F0 in the new key;
- likeness: cosine of speaker embeddings, mean over windows of 5 s to the target's voice print, and pairwise with its
  held-out windows; ``relative_similarity`` puts the shifted song at 0 and the target's held-out windows at 1; the
  control without a model is the shifted song through an equalizer to the target's long-term spectrum;
- multi-resolution STFT distance where the recording itself is the truth (the target's own phrases in their own key);
- real-time factor, and megabytes of the file.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import numpy as np

from lib import clips, measuring, recognizers
from svclib.conversion import recognition
from svclib.models import instrument

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = (
    "instrument",
    "training phrases",
    "own voice, not trained on",
    "others: mean (median)",
    "others, phonemes",
    "others + second voice",
    "others + reverb",
    "relative similarity: mean (least)",
    "control",
    "pairwise (target's own)",
    "F0: median error, RMSE, correlation",
    "STFT distance",
    "real-time factor",
    "MB",
)


def summary(rows: list[dict], first: str, second: str) -> dict:
    """Means over clips, by group and condition."""

    def chosen(group, condition="clean"):
        return [r for r in rows if r["condition"] == condition and group in (None, r["group"])]

    def cer(group, condition="clean", name=first):
        found = [r["words"][name]["cer"] for r in chosen(group, condition)]
        return [float(np.mean(found)), float(np.median(found))] if found else None

    clean = chosen(None) or rows  # all, if clean clips were not asked for
    others = [r for r in clean if r["group"] == "others"] or clean
    relative = [r["relative_similarity"] for r in others]
    parallel = [r["stft_distance"] for r in clean if r["stft_distance"] is not None]
    groups = ("training", "own", "others")
    return {
        "cer": {f"{group} {condition}": cer(group, condition) for group in groups for condition in clips.CONDITIONS},
        "phoneme_error_rate": {group: cer(group, name=second) for group in groups},
        "relative_similarity": [float(np.mean(relative)), float(min(relative))],
        "relative_similarity_of_control": float(np.mean([r["relative_similarity_of_control"] for r in others])),
        "pairwise": float(np.mean([r["likeness"]["result"]["pairwise"] for r in others])),
        "f0_median_cents": float(np.nanmedian([r["f0_median_cents"] for r in clean])),
        "f0_rmse_cents": float(np.nanmedian([r["f0_rmse_cents"] for r in clean])),
        "f0_correlation": float(np.nanmin([r["f0_correlation"] for r in clean])),
        "stft_distance": float(np.mean(parallel or [np.nan])),
        "real_time_factor": float(np.median([r["real_time_factor"] for r in clean])),
    }


def cells(report: dict) -> list[str]:
    """One row of the table."""
    s = report["summary"]

    def pair(value, digits=2):
        return "" if value is None else f"{value[0]:.{digits}f} ({value[1]:.{digits}f})"

    cer = s["cer"]
    return [
        report["instrument"],
        pair(cer["training clean"]),
        pair(cer["own clean"]),
        pair(cer["others clean"]),
        pair(s["phoneme_error_rate"]["others"]),
        pair(cer["others second_voice"]),
        pair(cer["others reverb"]),
        pair(s["relative_similarity"]),
        f"{s['relative_similarity_of_control']:.2f}",
        f"{s['pairwise']:.2f} ({report['held_out']['pairwise']:.2f})",
        f"{s['f0_median_cents']:.0f}, {s['f0_rmse_cents']:.0f} cents, {s['f0_correlation']:.3f}",
        f"{s['stft_distance']:.2f}",
        f"{s['real_time_factor']:.2f}",
        f"{report['megabytes']:.1f}",
    ]


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("instruments", type=Path, nargs="+", metavar="INSTRUMENT.zip")
    parser.add_argument("--set", choices=clips.SETS, default="development")
    parser.add_argument("--clip", action="append", help="only these clips")
    parser.add_argument("--condition", action="append", choices=clips.CONDITIONS)
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--shallow", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--content", choices=("own", "whisper"), default="own", help="see SamplingOptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", metavar="NAME", help="also write benchmarks/results/NAME.json for the tables")
    a = parser.parse_args()

    asked = {k: getattr(a, k) for k in ("sampler", "steps", "shallow", "temperature")}
    asked["content"] = None if a.content == "own" else a.content
    sampling = {k: v for k, v in asked.items() if v is not None}
    both = [
        measuring.CachedRecognizer(r, a.out / "transcripts")
        for r in (recognition.WhisperRecognizer(), recognizers.PhonemeRecognizer())
    ]
    wanted = [c for c in clips.SETS[a.set] if a.clip is None or c.name in a.clip]
    table, target = [], None
    for path in a.instruments:
        bench = measuring.Bench(a.data, a.out, instrument.open(path), both, sampling)
        target = bench.target = target or bench.target
        rows = []
        for i, clip in enumerate(wanted):
            for condition in a.condition or clips.CONDITIONS:
                rows.append(bench.measure(clip, condition, wanted[i - 1], a.seed))
                row, first = rows[-1], both[0].name
                print(
                    f"{path.stem} {clip.name} {condition}: CER {row['words'][first]['cer']:.2f} "
                    f"({row['words'][first]['converted'][:60]}), phonemes {row['words'][both[1].name]['cer']:.2f}, "
                    f"relative similarity {row['relative_similarity']:.2f}, key {row['key']:+d}",
                    flush=True,
                )
        report = {
            "instrument": path.stem + (", content by Whisper" if a.content == "whisper" else ""),
            "sha256": bench.voice.sha256,
            "trained_steps": bench.voice.info["trained_steps"],
            "set": a.set,
            "sampling": sampling,
            "seed": a.seed,
            "megabytes": path.stat().st_size / 1e6,
            "held_out": target.held_out,
            "summary": summary(rows, both[0].name, both[1].name),
            "clips": rows,
        }
        text = json.dumps(report, indent=1, ensure_ascii=False).replace("NaN", "null")
        (a.out / f"yardstick {path.stem} {a.content} {a.set}.json").write_text(text, encoding="utf-8")
        table.append(cells(report))
    for row in [list(COLUMNS), ["---"] * len(COLUMNS), *table]:
        print(f"| {' | '.join(row)} |")
    if a.publish:
        result = {
            "what": f"{a.set.replace('_', ' ').capitalize()} clips",
            "columns": list(COLUMNS),
            "figures": table,
            "command": "python benchmarks/yardstick.py DATA OUT INSTRUMENT.zip ..."
            + (f" --set {a.set}" if a.set != "development" else ""),
            "date": datetime.date.today().strftime("%B %Y"),
            "machine": "one CPU thread",
        }
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        (RESULTS / f"{a.publish}.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
