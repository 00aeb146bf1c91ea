"""Train the base's ``harmonic`` vocoder on its own: it needs mels and pitch only.

    python tools/base/train_vocoder.py DATA OUT [--steps N] [--adversarial-steps N] [--minutes M]
        [--base FILE]

First by the spectral loss, then against discriminators too, with a loss of log-mels. Pieces of half a second; pulses
lie where the recordings have them, measured of every window by the vocoder of the beginning of a phase.
``OUT/vocoder_checkpoint.pt`` is taken up again; every draw depends on (seed, step). Writes ``OUT/vocoder.pt``, moving
averages of the weights, which ``train_base.py`` begins with, and with every save ``OUT/vocoder.zip`` to listen to.
"""

import argparse
import copy
import dataclasses
import datetime
import functools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from discriminators import Discriminators, discriminator_loss, generator_losses
from prepare import HOP, RATE_HZ, SETTINGS
from torch import Tensor
from train_base import LICENCE, MODEL, SEED, dataset_statistics, load

from svclib.audio import mel, spectral_loss, synthesis
from svclib.models import instrument
from svclib.utils import rng as draws

BATCH, FRAMES = 8, 43
RATES = {"spectral": 2e-3, "adversarial": 3e-4, "discriminators": 8e-4}
SPECTRAL, MEL, MATCHING, ADVERSARIAL = 1.0, 15.0, 2.0, 1.0  # weights of the second phase
DECAY = 0.998


class Pieces:
    """Random pieces of windows, locked to a vocoder (``HarmonicVocoder.locked``); a margin is not compared."""

    def __init__(self, windows: list[dict], vocoder):
        self.windows, self.vocoder = windows, copy.deepcopy(vocoder).eval().requires_grad_(False)
        self.margin = vocoder.network.halo
        minutes = {w["singer"]: 0.0 for w in windows}
        for w in windows:
            minutes[w["singer"]] += len(w["f0_hz"])
        self.chance = np.array([len(w["f0_hz"]) / minutes[w["singer"]] ** 0.5 for w in windows])
        self.chance /= self.chance.sum()
        self.window = functools.lru_cache(maxsize=None)(self._window)

    def _window(self, i: int) -> dict[str, Tensor]:
        w = self.windows[i]
        row = {name: torch.from_numpy(w[name])[None] for name in ("log_mel", "f0_hz", "voiced")}
        row["audio"] = torch.from_numpy(w["audio"].astype(np.float32) / 32768)[None]
        if self.vocoder.pulses:
            row = self.vocoder.locked(row)
        else:
            row |= {"line_hz": synthesis.hold_f0(row["f0_hz"].double()), "initial_phase": torch.zeros(1)}
        row["centre"] = synthesis.frame_phase(row["line_hz"], RATE_HZ, HOP, row.pop("initial_phase"))
        return {name: x[0] for name, x in row.items()}

    def batch(self, step: int) -> dict[str, Tensor]:
        """Those of a step."""
        rng, rows = np.random.default_rng([SEED, step, 1]), []
        n = FRAMES + 2 * self.margin
        for i in rng.choice(len(self.windows), BATCH, p=self.chance):
            w = self.window(int(i))
            a = int(rng.integers(0, max(1, len(w["f0_hz"]) - n)))
            row = {name: w[name][a : a + n] for name in ("log_mel", "f0_hz", "voiced", "line_hz")}
            row["audio"] = w["audio"][a * HOP : (a + n) * HOP]
            row["initial_phase"] = torch.remainder(w["centre"][a] - w["line_hz"][a] * (HOP // 2) / RATE_HZ, 1.0)
            if len(row["f0_hz"]) == n:
                rows.append(row)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def sounds(self, model, data: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the vocoder makes of a batch, and the recordings, without the margins."""
        middle = slice(self.margin * HOP, (self.margin + FRAMES) * HOP)
        return model.resynthesize(data, generator)[:, middle], data["audio"][:, middle]


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2000, help="by the spectral loss alone")
    parser.add_argument("--adversarial-steps", type=int, default=1500)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--base", type=Path, help="base.zip to write again to OUT with this vocoder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, windows, tick = time.time(), load(arguments.data), time.time()
    known = dataset_statistics(windows)
    model = MODEL.vocoder.build(SETTINGS, None, SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        discriminators = Discriminators()
    mean = copy.deepcopy(model).eval().requires_grad_(False)
    parts = {"model": model, "mean": mean, "discriminators": discriminators}
    parts["optimizer"] = torch.optim.AdamW(model.parameters(), RATES["spectral"], (0.8, 0.99), weight_decay=0.0)
    parts["critics"] = torch.optim.AdamW(discriminators.parameters(), RATES["discriminators"], (0.8, 0.99))
    step, total, checkpoint = 0, arguments.steps + arguments.adversarial_steps, arguments.out / "vocoder_checkpoint.pt"
    start = copy.deepcopy(model.state_dict())  # of the phase
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step, start = state["step"], state["start"]

    def save() -> None:
        part = checkpoint.with_suffix(".part")
        torch.save({name: x.state_dict() for name, x in parts.items()} | {"step": step, "start": start}, part)
        part.rename(checkpoint)
        torch.save(mean.state_dict(), arguments.out / "vocoder.pt")
        instrument.save(
            arguments.out / "vocoder.zip", mean, SETTINGS, known, created=datetime.date.today().isoformat(),
            name="vocoder", trained_steps=step, licence=LICENCE, overwrite=True,
        )  # fmt: skip

    def pieces() -> Pieces:
        vocoder = copy.deepcopy(model)
        vocoder.load_state_dict(start)
        return Pieces(windows, vocoder)

    data, told = pieces(), []
    while step < total and time.time() - began < 60 * arguments.minutes:
        if step == arguments.steps:
            start = copy.deepcopy(mean.state_dict())
            model.load_state_dict(start)
            data = pieces()
            save()
        adversarial = step >= arguments.steps
        done = (step - arguments.steps) / arguments.adversarial_steps if adversarial else step / arguments.steps
        warm = min(1.0, (1 + (step - arguments.steps if adversarial else step)) / 100)
        slow = warm * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * done)))
        batch = data.batch(step)
        made, target = data.sounds(model, batch, torch.Generator().manual_seed(draws.seed_of(SEED, step)))
        linear, log = spectral_loss.spectral_loss(made, target, model.settings.fft_sizes, model.settings.log_rule)
        loss, report = SPECTRAL * (linear + log), {"spectral": linear + log}
        if adversarial:
            for group in parts["critics"].param_groups:
                group["lr"] = RATES["discriminators"] * slow
            real = discriminators(target)
            critic = discriminator_loss(real, discriminators(made.detach()))
            critic.backward()
            parts["critics"].step()
            parts["critics"].zero_grad()
            discriminators.requires_grad_(False)
            fooled, matching = generator_losses(real, discriminators(made))
            discriminators.requires_grad_(True)
            mels = F.l1_loss(mel.log_mel(made, SETTINGS.mel), mel.log_mel(target, SETTINGS.mel))
            # The generator's part of its beginning: the critics know nothing yet.
            loss = loss + MEL * mels + warm * (ADVERSARIAL * fooled + MATCHING * matching)
            report |= {"mel": mels, "critic": critic, "fooled": fooled, "matching": matching}
        for group in parts["optimizer"].param_groups:
            group["lr"] = RATES["adversarial" if adversarial else "spectral"] * slow
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0 if adversarial else 3.0)
        parts["optimizer"].step()
        parts["optimizer"].zero_grad()
        step += 1
        with torch.no_grad():
            for a, b in zip(mean.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - min(DECAY, (1 + step) / (10 + step)))
        told.append({name: float(x.detach()) for name, x in report.items()})
        if step % 100 == 0 or step in (5, 20):
            names = sorted({name for t in told for name in t})
            means = {name: round(float(np.mean([t[name] for t in told if name in t])), 4) for name in names}
            print(step, json.dumps(means), f"{(time.time() - tick) / len(told):.2f} s/step", flush=True)
            told, tick = [], time.time()
        if step % 500 == 0:
            save()
    save()
    if arguments.base:
        write_base(arguments.base, mean, arguments.out / "base.zip")


def write_base(path: Path, vocoder, target: Path) -> None:
    """The base model with another vocoder."""
    base = instrument.open(path)
    settings = dataclasses.replace(base.model.settings, vocoder=vocoder.settings)
    model = instrument.build_model(settings, base.features, base.statistics)
    weights = {name: value for name, value in base.model.state_dict().items() if not name.startswith("vocoder.")}
    weights |= {f"vocoder.{name}": value for name, value in vocoder.state_dict().items()}
    model.load_state_dict(weights)
    info = {name: value for name, value in base.info.items() if name not in ("versions", "loss")}
    instrument.save(target, model, base.features, base.statistics, name=base.name, overwrite=True, **info)


if __name__ == "__main__":
    main()
