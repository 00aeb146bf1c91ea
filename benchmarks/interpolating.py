"""Between two speakers: a DiffWave of digits mixes two recordings in its noise, and a classifier names the result.

    OMP_NUM_THREADS=1 python benchmarks/interpolating.py MODEL.zip DATA CLASSIFIER.safetensors [--pairs 3] [--step 50]

DATA is a folder of ``{label}_{singer}_{take}.wav``; CLASSIFIER the one that ``benchmarks/digits.py`` trained. For every
label, PAIRS pairs of held-out recordings of two speakers are interpolated (``diffwave_uses.interpolate``) with shared
and with independent noise; beside them stand the plain mixtures of the same recordings, where both speakers sound
at once. For each share of the second recording:

- ``right``: how many the classifier names right;
- ``level``: RMS against the mean of both recordings', dB;
- ``second``: where the sound lies between the two, by the classifier's 64 numbers: 0 at the first, 1 at the second,
  the projection on the line between them; ``off``: how far beside that line, in lengths of the line.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from denoising import held_out
from lib import classifier
from svclib.conversion import diffwave_files
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def pairs(clips: list[dict], per_label: int, seed: int) -> list[tuple[dict, dict]]:
    """Two held-out recordings of one label by two speakers, drawn by the seed."""
    rng, found = np.random.default_rng(seed), []
    for label in sorted({c["label"] for c in clips}):
        clips_of_label = [c for c in clips if c["label"] == label]
        for _ in range(per_label):
            first = clips_of_label[rng.integers(len(clips_of_label))]
            others = [c for c in clips_of_label if c["singer"] != first["singer"]]
            found.append((first, others[rng.integers(len(others))]))
    return found


def rms(samples: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def between(first: np.ndarray, second: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Position of a point along the line between two, and how far beside it, both in lengths of the line."""
    line = second - first
    along = float((made - first) @ line / (line @ line))
    return along, float(np.linalg.norm(made - first - along * line) / np.linalg.norm(line))


def main() -> None:
    """Print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a DiffWave of digits")
    parser.add_argument("data", type=Path, help="folder of digits")
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--pairs", type=int, default=3, help="for each label")
    parser.add_argument("--step", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    opened, (ear, _) = diffwave_files.load_model(chosen.model), classifier.load(chosen.classifier)
    rate = opened.features.sample_rate_hz
    found = pairs(held_out(chosen.data, rate), chosen.pairs, chosen.seed)
    if not found:
        parser.error(f"there are no held-out digits in '{chosen.data}'")
    labels = [first["label"] for first, _ in found]
    sounds: dict[str, list[np.ndarray]] = {"shared noise": [], "independent noise": [], "plain mixture": []}
    for i, (first, second) in enumerate(found):
        ends = first["audio"], second["audio"]
        label = first["label"] if opened.model.settings.condition == "label" else None
        for name, shared in (("shared noise", True), ("independent noise", False)):
            how = (chosen.step, shared, label, SamplingOptions(seed=chosen.seed + i))
            made = [diffwave_uses.interpolate(opened.model, ends, share, *how) for share in SHARES]
            sounds[name].append(np.stack(made))
        length = max(map(len, ends))
        a, b = (np.pad(x, (0, length - len(x))) for x in ends)
        sounds["plain mixture"].append(np.stack([(1 - s) * a + s * b for s in SHARES]))
    ends = [classifier.classify(ear, [pair[k]["audio"] for pair in found], rate) for k in (0, 1)]
    rows = []
    print("| method | share of the second | right | level, dB | second | off |\n" + "|---" * 6 + "|")
    for name, made in sounds.items():
        for k, share in enumerate(SHARES):
            outputs = classifier.classify(ear, [x[k] for x in made], rate)
            places = [between(*x) for x in zip(*(h.features for h in (*ends, outputs)), strict=True)]
            level = [
                20 * np.log10(rms(x[k]) / np.mean([rms(c["audio"]) for c in p]))
                for x, p in zip(made, found, strict=True)
            ]
            along, off = np.mean(places, axis=0)
            right = classifier.accuracy(outputs, labels)
            rows.append(
                {
                    "method": name,
                    "share": share,
                    "clips": len(found),
                    "level_db": float(np.mean(level)),
                    "right": right,
                    "second": along,
                    "off": off,
                }
            )
            print(f"| {name} | {share:g} | {right:.0%} | {np.mean(level):+.1f} | {along:.2f} | {off:.2f} |", flush=True)
    if chosen.json:
        report = {"model": opened.name, "sha256": opened.sha256, "seed": chosen.seed, "step": chosen.step, "rows": rows}
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
