"""Quality of generated digits: samples of each class, FID, IS, mIS, AM, NDB/K and accuracy, beside real clips'.

    python benchmarks/digits.py DATA MODEL.zip OUT [--per-label 30] [--fast] [--seed 0] [--device auto]

DATA is a folder of recordings named {digit}_{speaker}_{take}.wav (or holds one, digits/), takes 0-4 held out. MODEL.zip
is a DiffWave trained with labels or with no condition. Everything is made below OUT, and a second run uses what is
there: the classifier (OUT/classifier.safetensors, trained first, a minute on one thread), every clip (OUT/made-...).
Printed, and written to OUT/digits.json: one table for each number of clips per label that allows a comparison: the
model, another part of the training set, and the test set, each against the same clips of the training set. With few
clips FID depends more on their number than on the model: only the rows of one table compare.
OUT/digits.png shows spectrograms, made-.../all.wav plays three clips of each label.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from lib import classifier, generation
from svclib.analysis import plots
from svclib.audio import io as audio
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.instrument import Instrument
from svclib.utils import atomic_store

UNASKED = "any"  # the one label of a model that takes none


class Reporter:
    """Progress on one line every few seconds, with the time that is left."""

    def __init__(self, what: str):
        self.what, self.begun, self.reported = what, time.monotonic(), 0.0

    def __call__(self, fraction: float, text: str = "") -> None:
        """Tell how far it is."""
        now = time.monotonic()
        if now - self.reported > 10 or fraction >= 1:
            self.reported = now
            spent = now - self.begun
            left = f", {spent / fraction - spent:.0f} s left" if 0.02 < fraction < 1 else ""
            print(f"{self.what}: {100 * fraction:.0f} %, {spent:.0f} s{left}. {text}", flush=True)


def trained_classifier(folder: Path, out: Path, epochs: int) -> tuple[classifier.Classifier, dict]:
    """The classifier of an earlier run, or a new one, with its accuracy on both splits."""
    path = out / "classifier.safetensors"
    if not path.exists():
        model = classifier.train(folder, epochs=epochs, progress=Reporter("classifier"))
        info = {"epochs": epochs}
        for split, name in (("train", "train"), ("validation", "test")):
            known = classifier.clips(folder, split)
            outputs = classifier.classify(model, known.audio, known.sample_rate_hz)
            info |= {f"{name}_clips": len(known), f"{name}_accuracy": classifier.accuracy(outputs, known.labels)}
        classifier.save(path, model, info)
    return classifier.load(path)


def made_clips(voice: Instrument, labels: list[str], out: Path, options: argparse.Namespace) -> dict[str, list[Path]]:
    """The clips of each label, generated where they are missing; a batch hangs on the seed, its label and number."""
    schedule = "fast" if options.fast else "all"
    folder = out / f"made-{voice.sha256[:8]}-{schedule}-seed{options.seed}-by{options.batch}"
    n_samples = round(voice.model.settings.sound_s * voice.features.sample_rate_hz)
    batches = [(i, start) for start in range(0, options.per_label, options.batch) for i in range(len(labels))]
    report = Reporter("clips")
    for done, (i, start) in enumerate(batches):
        paths = [folder / f"{labels[i]}_{start + k:04d}.wav" for k in range(options.batch)]
        if not all(p.exists() for p in paths):
            asked = None if labels[i] == UNASKED else labels[i]
            sounds = diffwave_uses.generate(
                voice.model,
                n_samples,
                options.batch,
                asked,
                SamplingOptions(seed=options.seed * 10**6 + i * 10**4 + start),
                options.fast,
                lambda step, done=done: report((done + step.index / step.n_calls) / len(batches), "sampling"),
            )
            for path, sound in zip(paths, sounds, strict=True):
                if not path.exists():
                    written = audio.write(path, sound, voice.features.sample_rate_hz)
                    if (peak_db := 20 * np.log10(np.abs(sound).max(initial=1.0))) > 0:
                        print(f"{written.name} was turned down by {peak_db:.1f} dB: nothing clips.")
        report((done + 1) / len(batches), f"'{labels[i]}', {start + options.batch} clips")
    return {label: [folder / f"{label}_{k:04d}.wav" for k in range(options.per_label)] for label in labels}


def tables(judge, known: dict, made: classifier.Outputs, asked: list[str], conditional: bool) -> dict[int, dict]:
    """Rows of measures for each number of clips per label: model, other training clips, test set."""
    names = sorted(set(asked)) if conditional else sorted(set(known["train"].labels))
    chosen = {k: [i for i, label in enumerate(c.labels) if label in names] for k, c in known.items()}
    labels = {k: [known[k].labels[i] for i in v] for k, v in chosen.items()}
    outputs = {k: classifier.classify(judge, known[k].audio[v], known[k].sample_rate_hz) for k, v in chosen.items()}
    most = {k: min(v.count(name) for name in names) for k, v in labels.items()}
    of_model = min(asked.count(name) for name in names) if conditional else len(made) // len(names)
    sizes = sorted({min(of_model, n) for n in (most["test"], most["train"] // 2, most["train"])} - {0})
    found = {}
    for n in sizes:
        reference, *other = generation.balanced(labels["train"], n, parts=2 if most["train"] >= 2 * n else 1)
        by_label = generation.balanced(asked, n)[0] if conditional else np.arange(n * len(names))
        candidates = {"model": (made[by_label], [asked[i] for i in by_label] if conditional else None)}
        if other:
            candidates["other training clips"] = outputs["train"][other[0]], [labels["train"][i] for i in other[0]]
        if most["test"] >= n:
            of_test = generation.balanced(labels["test"], n)[0]
            candidates["test set"] = outputs["test"][of_test], [labels["test"][i] for i in of_test]
        n_bins = max(2, min(generation.N_BINS, n * len(names) // 5))
        against = outputs["train"][reference], [labels["train"][i] for i in reference]
        found[n] = {
            name: generation.measure(against[0], row, row_labels, against[1], n_bins)
            for name, (row, row_labels) in candidates.items()
        }
    return found


def spectrogram_grid(rows: Mapping[str, Sequence], columns: Sequence[str], sample_rate_hz: int):
    """Small spectrograms in rows and columns, all on the same axes.

    Args:
        rows: Sounds ``[samples]`` of each named row, one for each column; None leaves a place empty.
        columns: Headings.
        sample_rate_hz: Of all sounds.

    Returns:
        The figure; shorter sounds are followed by silence.
    """
    size = (0.5 + 1.1 * len(columns), 0.4 + 0.85 * len(rows))
    longest = max((len(x) for sounds in rows.values() for x in sounds if x is not None), default=1)
    with plots.styled_figure(len(rows), len(columns), size=size, sharex=True, sharey=True) as (figure, axes):
        for place, (name, sounds) in zip(axes, rows.items(), strict=True):
            for axis, samples in zip(place, sounds, strict=True):
                if samples is not None:
                    padded = np.pad(samples, (0, longest - len(samples)))
                    plots.draw_spectrogram(axis, padded, sample_rate_hz)
                axis.set(xticks=[], yticks=[], ylabel="")
            place[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, heading in zip(axes[0], columns, strict=True):
            axis.set_title(heading, fontsize=8)
        return figure


def picture(made: dict[str, list[np.ndarray]], real: classifier.Clips, columns: tuple[int, int] = (6, 3)) -> bytes:
    """PNG: some made clips of each label, and some of the test set where they have that label."""
    rows = {}
    for label, sounds in made.items():
        known = [real.audio[i] for i, name in enumerate(real.labels) if label in (name, UNASKED)][::5]
        row = [*sounds[: columns[0]], *[None] * (columns[0] - len(sounds)), *known[: columns[1]]]
        rows[label] = row + [None] * (sum(columns) - len(row))
    headings = [f"made {i + 1}" for i in range(columns[0])] + [f"real {i + 1}" for i in range(columns[1])]
    return plots.png(spectrogram_grid(rows, headings, real.sample_rate_hz))


def main(arguments: list[str] | None = None) -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-label", type=int, default=30)
    parser.add_argument("--batch", type=int, default=10, help="clips made at once; another number gives other clips")
    parser.add_argument("--fast", action="store_true", help="by the fast schedule instead of every trained step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5, help="of the classifier's training")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args(arguments)
    if options.per_label < 2 or options.batch < 1:
        parser.error("ask for at least two clips of each label, in batches of at least one")

    folder = options.data / "digits" if (options.data / "digits").is_dir() else options.data
    voice = instrument.open(options.model)
    settings = getattr(voice.model, "settings", None)
    if voice.kind != "diffwave" or settings.condition == "mel":
        parser.error(f"{options.model.name} cannot generate: give a DiffWave with labels, or without a condition")
    judge, info = trained_classifier(folder, options.out, options.epochs)
    print(
        f"classifier: {100 * info['test_accuracy']:.1f} % of {info['test_clips']} test clips, "
        f"{100 * info['train_accuracy']:.1f} % of {info['train_clips']} training clips",
        flush=True,
    )
    conditional = settings.condition == "label"
    unknown = sorted(set(settings.labels) - set(judge.settings.labels))
    if unknown or voice.features.sample_rate_hz != judge.settings.sample_rate_hz:
        parser.error("the model's labels or sample rate are not those of the recordings in DATA")
    labels = list(settings.labels) if conditional else [UNASKED]
    if not conditional:
        options.per_label *= len(judge.settings.labels)
    on_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    voice.model.to("cuda" if on_gpu else "cpu")

    paths = made_clips(voice, labels, options.out, options)
    made = {label: [audio.read(p).samples for p in of_label] for label, of_label in paths.items()}
    asked = [label for label, sounds in made.items() for _ in sounds]
    print("clips: " + ", ".join(f"{label} {len(sounds)}" for label, sounds in made.items()))
    together = paths[labels[0]][0].with_name("all.wav")
    if not together.exists():
        first = [x for sounds in made.values() for x in sounds[: 3 if conditional else 30]]
        audio.write(together, np.concatenate(first), voice.features.sample_rate_hz)
    outputs = classifier.classify(judge, [x for sounds in made.values() for x in sounds], voice.features.sample_rate_hz)
    known = {"train": classifier.clips(folder, "train"), "test": classifier.clips(folder, "validation")}
    found = tables(judge, known, outputs, asked, conditional)
    for n, rows in found.items():
        print(f"\n{n} clips of each label, against {n} of each of the training set\n\n{generation.table(rows)}")
    per_label = {
        label: {
            "clips": asked.count(label),
            "heard_as_asked": sum(a == b == label for a, b in zip(asked, outputs.labels, strict=True)),
        }
        for label in labels
    }
    if conditional:
        print("\nheard as asked: " + ", ".join(f"{k} {v['heard_as_asked']}/{v['clips']}" for k, v in per_label.items()))
    atomic_store.commit_bytes(options.out / "digits.png", picture(made, known["test"]))
    report = {
        "model": voice.name,
        "sha256": voice.sha256,
        "trained_steps": voice.info["trained_steps"],
        "fast": options.fast,
        "seed": options.seed,
        "classifier": info,
        "per_label": per_label,
        "significance": 0.05,
        "tables": {str(n): {name: _plain(row) for name, row in rows.items()} for n, rows in found.items()},
    }
    atomic_store.write_json(options.out / "digits.json", report)
    print(f"\n{options.out / 'digits.json'}, {options.out / 'digits.png'}, {together}")
    return 0


def _plain(row: dict) -> dict:
    """JSON has no infinity: it becomes a word."""
    return {k: "infinite" if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}


if __name__ == "__main__":
    sys.exit(main())
