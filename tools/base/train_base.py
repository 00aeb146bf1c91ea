"""Train the shipped several-singer ``diffusion_small`` on the windows of ``prepare.py`` and ``sung.py``.

    python tools/base/train_base.py DATA OUT [--coarse-steps N] [--steps N] [--minutes M]

DATA holds ``windows`` and ``sung``; ``words.safetensors`` must be in the package. The coarse mel is trained first
(conditions and regression head, cheap steps), the denoiser after ``--coarse-steps``, where the vocoder of
``train_vocoder.py`` is taken up too. Content
codes are measured once: of every window as it is and three times as other speakers, pitches and microphones would say
it, while the target stays. ``OUT/checkpoint.pt`` is taken up again; every draw depends on (seed, step).
"""

import argparse
import copy
import datetime
import json
import math
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from prepare import SETTINGS
from sung import BAND_LIMITED

from svclib.data import statistics
from svclib.features import extract
from svclib.features.extract import ConditionInputs
from svclib.features.f0 import fill_unvoiced
from svclib.models import instrument
from svclib.models.diffusion import DiffusionSettings
from svclib.models.vocoders import HarmonicSettings
from svclib.utils import rng as draws

SEED, VARIANTS = 0, 4
OFFERED = ("flemishguy", "kerstin", "nathalie")
MODEL = DiffusionSettings(
    content="words", code_noise=0.4, warp_range=0.25, channels=192, n_layers=7, dilation_cycle=4, condition_dims=192,
    coarse_channels=256, coarse_layers=5, sampler="dpmpp", sampler_steps=20, temperature=0.5, vocoder_rows=2,
    vocoder=HarmonicSettings(n_harmonics=160, n_noise_bands=65, channels=128, excitation="pulses"),
)  # fmt: skip
FRAMES, BATCH = 129, 16


def load(data: Path) -> list[dict]:
    """Every window that may be trained on, sorted; arrays as torch tensors."""
    found = []
    for path in sorted([*data.glob("windows/*/[0-9]*.npz"), *data.glob("sung/*/[0-9]*.npz")]):
        speaker = path.parent.name
        if speaker.startswith("eval_") or speaker in BAND_LIMITED or ".part." in path.name:
            continue
        with np.load(path) as z:
            n = len(z["f0_hz"])
            audio = np.zeros(n * 256, np.int16)
            audio[: min(n * 256, len(z["audio"]))] = z["audio"][: n * 256]
            found.append({
                "path": path, "singer": speaker.removesuffix("_sung"), "audio": audio,
                "log_mel": z["log_mel"].astype(np.float32), "f0_hz": z["f0_hz"], "voiced": z["voiced"],
                "filled": fill_unvoiced(z["f0_hz"], z["voiced"]), "loudness_db": z["loudness_db"],
            })  # fmt: skip
    return found


def dataset_statistics(windows: list[dict]) -> dict:
    """As of a prepared dataset."""

    def measured():
        for w in windows:
            yield w["singer"], extract.Features(
                settings=SETTINGS, n_samples=len(w["audio"]), log_mel=w["log_mel"], f0_hz=w["f0_hz"],
                voiced=w["voiced"], loudness_db=w["loudness_db"], confidence=w["voiced"].astype(np.float32),
            )  # fmt: skip

    return statistics.compute(measured())


def codes(windows: list[dict], content, cache: Path) -> None:
    """Content codes of every window and of its variants, float16 ``[variants, frames, 64]``, cached in a folder."""
    for w in windows:
        path = cache / f"{w['path'].parent.parent.name}_{w['path'].parent.name}_{w['path'].stem}.npy"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            inputs = ConditionInputs.from_arrays(w["log_mel"], w["f0_hz"], w["voiced"], w["loudness_db"])
            made = content.variants(inputs, VARIANTS, zlib.crc32(path.name.encode()))
            np.save(path, made.to(torch.float16).numpy())
        w["code"] = np.load(path)


def batch(windows: list[dict], chance: np.ndarray, singers: list[str], step: int) -> dict[str, torch.Tensor]:
    """Random places of random windows; which variant of the content is read is random too."""
    rng = np.random.default_rng([SEED, step, 1])
    rows = {k: [] for k in ("audio", "log_mel", "f0_hz", "voiced", "loudness_db", "content", "singer")}
    for i in rng.choice(len(windows), BATCH, p=chance):
        w = windows[int(i)]
        a = int(rng.integers(0, max(1, len(w["f0_hz"]) - FRAMES)))
        b = a + FRAMES
        rows["audio"].append(w["audio"][a * 256 : b * 256].astype(np.float32) / 32768)
        rows["log_mel"].append(w["log_mel"][a:b])
        rows["f0_hz"].append(w["filled"][a:b])
        rows["voiced"].append(w["voiced"][a:b])
        rows["loudness_db"].append(w["loudness_db"][a:b])
        rows["content"].append(w["code"][int(rng.integers(VARIANTS)), a:b].astype(np.float32))
        rows["singer"].append(singers.index(w["singer"]))
    return {k: torch.from_numpy(np.stack(v)) for k, v in rows.items()}


def coarse_loss(model, data, generator):
    """The regression head's part of the loss, with conditions left out at random."""
    size = len(data["log_mel"])
    dropped = draws.uniform((size, 4), generator) < model.settings.condition_dropout
    code = model.content(ConditionInputs.from_batch(data), generator)
    singer = F.one_hot(data["singer"], len(model.singers)).to(code)
    condition = model.conditions(code, data["f0_hz"], data["voiced"], data["loudness_db"], singer, dropped)
    x0 = model.scale(data["log_mel"])
    guess, spread = model.coarse_and_std(condition)
    coarse = F.l1_loss(guess, x0)
    doubt = ((x0 - guess.detach()).abs() / (0.8 * spread) + spread.log()).mean()
    return coarse + 0.1 * doubt, {"coarse": float(coarse)}


def export(target: Path, model, windows: list[dict], step: int) -> None:
    """The instrument, with those singers only of whom there is much; the others have taught it and are not offered."""
    known = dataset_statistics([w for w in windows if w["singer"] in OFFERED])
    few = MODEL.build(SETTINGS, known, SEED)
    weights = model.state_dict()
    weights["conditions.singer"] = weights["conditions.singer"][[model.singers.index(name) for name in few.singers]]
    few.load_state_dict(weights)
    instrument.save(
        target, few, SETTINGS, known, created=datetime.date.today().isoformat(), name="base", trained_steps=step,
        singers=list(few.singers), licence=LICENCE, overwrite=True,
    )  # fmt: skip


def main() -> None:
    """Train, or go on, then write ``OUT/base.zip``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--coarse-steps", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    arguments = parser.parse_args()
    began = time.time()
    windows = load(arguments.data)
    singers = sorted({w["singer"] for w in windows})
    known = dataset_statistics(windows)
    model = MODEL.build(SETTINGS, known, SEED)
    codes(windows, model.content, arguments.out / "codes")
    minutes = {s: sum(len(w["f0_hz"]) for w in windows if w["singer"] == s) * 256 / 22050 / 60 for s in singers}
    print(
        f"{len(windows)} windows, {sum(minutes.values()):.0f} minutes of {len(singers)} singers, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights, {time.time() - began:.0f} s",
        flush=True,
    )
    chance = np.array([len(w["f0_hz"]) / minutes[w["singer"]] ** 0.5 for w in windows])
    chance /= chance.sum()
    mean = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), arguments.rate, weight_decay=0.01, fused=True)
    step, checkpoint = 0, arguments.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def save():
        part = checkpoint.with_suffix(".part")
        state = {
            "model": model.state_dict(),
            "mean": mean.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, part)
        part.rename(checkpoint)
        export(arguments.out / "base.zip", mean, windows, step)

    told, tick = [], time.time()
    while step < arguments.steps and time.time() - began < 60 * arguments.minutes:
        data = batch(windows, chance, singers, step)
        generator = torch.Generator().manual_seed(draws.seed_of(SEED, step))
        phase = step < arguments.coarse_steps
        if step == arguments.coarse_steps:
            for each in (model, mean):
                each.vocoder.load_state_dict(torch.load(arguments.out / "vocoder.pt", weights_only=True))
        if phase:
            done = step / arguments.coarse_steps
            loss, parts = coarse_loss(model, data, generator)
        else:
            done = (step - arguments.coarse_steps) / max(1, arguments.steps - arguments.coarse_steps)
            loss, parts = model.loss(data, generator)
        warm = min(1.0, (step + 1) / 100, 1.0 if phase else (step - arguments.coarse_steps + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * warm * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * done)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            decay = min(0.998, (1 + step) / (10 + step))
            for a, b in zip(mean.parameters(), model.parameters(), strict=True):
                a.lerp_(b, 1 - decay)
        told.append({k: float(v) for k, v in parts.items()})
        if step % 100 == 0 or step in (5, 20):
            names = sorted({k for t in told for k in t})
            means = {k: round(float(np.mean([t[k] for t in told if k in t])), 4) for k in names}
            print(step, json.dumps(means), f"{(time.time() - tick) / len(told):.2f} s/step", flush=True)
            told, tick = [], time.time()
        if step % 500 == 0:
            save()
    save()


LICENCE = (
    "MIT. Trained on CC0 recordings (rhasspy voices kerstin, nathalie, flemishguy) and on synthetic readings by "
    "Kokoro-82M (Apache-2.0), flite and festival voices; see the model card."
)

if __name__ == "__main__":
    main()
