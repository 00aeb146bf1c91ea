"""Train the content encoder ``words`` as a student of Whisper base.

    python tools/base/train_words.py WINDOWS OUT [--sung SUNG] [--steps 4000] [--start words.safetensors] [--map FILE]

WINDOWS is the folder ``windows`` that ``prepare.py`` made, SUNG what ``sung.py`` made of it. The student reads a
pitch-free envelope under augmentation; the teacher listened to the clean recording. Targets: which of 512 clusters of
the teacher's frames it is (cross-entropy; the numbers before the classifier are the code, as in Soft-VC), and the
teacher's 64 principal components (mean square). A checkpoint is written every 500 steps and taken up again; every draw
depends on (seed, step). With ``--start`` a published network goes on, and the mean square distance to the teacher in
its code space is a third target, so that the code keeps its meaning; ``OUT/whisper_base.safetensors`` is the map to
that space, fitted here; ``--map`` takes the published one instead.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from words_data import Augment, crop, load, normalise_teacher, sounding_teacher

from svclib.models.content import bottleneck
from svclib.models.content.words import CODE_DIMS, MEL, N_CEPSTRA, WEIGHTS, WordsNetwork, normalised
from svclib.models.layers import at_positions

SEED, CLUSTERS, SECONDS = 0, 512, 56.0
LENGTHS_S = (4.0, 7.0, 14.0)


def targets(windows: list[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """PCA of the teacher to 64 numbers of variance 1, in place of ``teacher``, and clusters, of trained speakers."""
    from sklearn.cluster import MiniBatchKMeans

    sound = torch.cat([w["teacher"][sounding_teacher(w)] for w in windows if not w["speaker"].startswith("eval_")])
    mean = sound.mean(0)
    _, _, v = torch.linalg.svd((sound - mean)[:: max(1, len(sound) // 40000)], full_matrices=False)
    parts = v[:CODE_DIMS].T
    scores = (sound - mean) @ parts
    scale = scores.std(0)
    kmeans = MiniBatchKMeans(CLUSTERS, batch_size=8192, n_init=1, max_iter=12, random_state=SEED)
    kmeans.fit((scores / scale.mean()).numpy()[:: max(1, len(sound) // 200000)])
    centroids = torch.tensor(kmeans.cluster_centers_, dtype=torch.float32)
    for w in windows:
        scores = (w["teacher"] - mean) @ parts
        w["label"] = torch.cdist(scores / scale.mean(), centroids).argmin(1)
        w["teacher"] = scores / scale
        w["sound"] = sounding_teacher(w)
    return mean, parts / scale, centroids


class Student(nn.Module):
    """The encoder with the two heads of its training; the heads read a noisy code."""

    def __init__(self):
        super().__init__()
        self.net = WordsNetwork()
        self.classes = nn.Conv1d(CODE_DIMS, CLUSTERS, 1)
        self.components = nn.Conv1d(CODE_DIMS, CODE_DIMS, 1)

    def forward(self, x, noise=None):
        """Code, cluster logits, components."""
        code = self.net(x)
        seen = code if noise is None else code + noise
        return code, self.classes(seen), self.components(seen)


def start_from(student: Student, path: Path) -> None:
    """Weights of an earlier network of fewer layers; the layers that are new begin as the identity."""
    old = {k: v.float() for k, v in safetensors.torch.load_file(path).items()}
    n, new = max(int(k.split(".")[1]) for k in old if k.startswith("convs.")) + 1, len(student.net.convs)
    renamed = {k.replace(f"norms.{n}.", f"norms.{new}."): v for k, v in old.items()}
    _, unexpected = student.net.load_state_dict(renamed, strict=False)
    assert not unexpected, unexpected
    for k in range(n, new):
        torch.nn.init.zeros_(student.net.convs[k].weight)
        torch.nn.init.zeros_(student.net.convs[k].bias)


def network_input(window: dict, matrix: torch.Tensor) -> torch.Tensor:
    """The student's input ``[1, inputs, frames]`` of a whole window without augmentation; frames are even."""
    envelope = window["envelope"][None, : len(window["envelope"]) // 2 * 2]
    return normalised(envelope @ matrix, envelope.mean(-1))


def code_targets(windows: list[dict], published: Path, matrix: torch.Tensor, spread: torch.Tensor, out: Path) -> None:
    """The teacher as points of a published encoder's code space, ``code`` [n, 64], by ridge regression.

    The map is written to ``out``: normalised features of Whisper base times ``weight`` plus ``bias``, then layer norm.
    """
    student = Student()
    start_from(student, published)
    network = student.net.eval()
    left, right = torch.zeros(513, 513, dtype=torch.float64), torch.zeros(513, CODE_DIMS, dtype=torch.float64)
    with torch.no_grad():
        for w in windows:
            if w["speaker"].startswith("eval_"):
                continue
            code = network(network_input(w, matrix))[0].T
            place = (((torch.arange(len(code)) * 2 + 1.0) * 256 / 22050 / 0.02) - 0.5).clamp(0, len(w["teacher"]) - 1)
            x = at_positions(w["teacher"][None], place)[0]
            keep = sounding_teacher(w)[place.round().long().clamp_max(len(w["teacher"]) - 1)]
            x = torch.cat([x, torch.ones(len(x), 1)], 1)[keep].double()
            left, right = left + x.T @ x, right + x.T @ code[keep].double()
    ridge = 1e-3 * left.trace() / 513 * torch.eye(513, dtype=torch.float64)
    solved = torch.linalg.solve(left + ridge, right).float()
    written = {"weight": solved[:512].half().contiguous(), "bias": solved[512].contiguous(), "spread": spread}
    safetensors.torch.save_file(written, out)
    for w in windows:
        w["code"] = F.layer_norm(w["teacher"] @ solved[:512] + solved[512], (CODE_DIMS,))


def mapped_targets(windows: list[dict], path: Path) -> None:
    """The teacher in the code space of a published map (``features/whisper_base.safetensors``)."""
    stored = safetensors.torch.load_file(path)
    for w in windows:
        w["code"] = F.layer_norm(w["teacher"] @ stored["weight"].float() + stored["bias"], (CODE_DIMS,))


def at(windows: list[dict], picks: np.ndarray, places: torch.Tensor, key: str = "teacher"):
    """Labels, components and whether there is sound, at the code's frames (pairs of input frames)."""
    middle = (places[:, 0::2] + places[:, 1::2]) / 2
    labels, components, sound = [], [], []
    for i, place in zip(picks, middle, strict=True):
        w = windows[int(i)]
        place = place.clamp(0, len(w["teacher"]) - 1)
        near = place.round().long()
        labels.append(w["label"][near])
        sound.append(w["sound"][near])
        components.append(at_positions(w[key][None], place)[0])
    return torch.stack(labels), torch.stack(components).transpose(1, 2), torch.stack(sound)


@torch.no_grad()
def evaluate(student: Student, windows: list[dict], matrix: torch.Tensor) -> dict:
    """Per held-out speaker: share of frames whose cluster is named, and of the teacher's variance explained."""
    student.eval()
    found = {}
    for w in windows:
        x = network_input(w, matrix)
        code, classes, components = student(x)
        places = ((torch.arange(x.shape[-1]) + 0.5) * 256 / 22050 / 0.02 - 0.5)[None]
        labels, wanted, sound = at([w], np.array([0]), places)
        right = (classes.argmax(1) == labels)[sound].float()
        top5 = (classes.topk(5, 1).indices == labels[:, None]).any(1)[sound].float()
        error = (components - wanted).square().sum(1)[sound]
        all_ = wanted.square().sum(1)[sound]
        near = torch.zeros(())
        if "code" in w:
            near = (code - at([w], np.array([0]), places, "code")[1]).square().mean(1)[sound].sum()
        found.setdefault(w["speaker"], []).append((right.sum(), top5.sum(), error.sum(), all_.sum(), len(right), near))
    student.train()
    return {
        s: [round(float(sum(r[0] for r in rows) / sum(r[4] for r in rows)), 3),
            round(float(sum(r[1] for r in rows) / sum(r[4] for r in rows)), 3),
            round(1 - float(sum(r[2] for r in rows) / sum(r[3] for r in rows)), 3),
            round(float(sum(r[5] for r in rows) / sum(r[4] for r in rows)), 3)]
        for s, rows in found.items()
    }  # fmt: skip


def export(checkpoint: Path, target: Path) -> None:
    """The network alone, convolutions in half precision."""
    state = torch.load(checkpoint, weights_only=True)["student"]
    network = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    half = {k: v.half() if ".weight" in k and v.ndim == 3 else v.float() for k, v in network.items()}
    safetensors.torch.save_file({k: v.contiguous() for k, v in half.items()}, target)


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--start", type=Path, help="words.safetensors to go on from, keeping its code space")
    parser.add_argument("--sung", type=Path, help="what sung.py made: the same words, sung")
    parser.add_argument("--map", type=Path, help="with --start: the published map from the teacher to the code space")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    matrix = bottleneck.cepstrum_basis(MEL.n_mels, N_CEPSTRA)
    began = time.time()
    windows = load(arguments.windows) + (load(arguments.sung) if arguments.sung else [])
    spread = normalise_teacher(windows)
    if arguments.map:
        mapped_targets(windows, arguments.map)
    elif arguments.start:
        code_targets(windows, arguments.start, matrix, spread, arguments.out / "whisper_base.safetensors")
    targets(windows)
    training = [w for w in windows if not w["speaker"].startswith("eval_")]
    held = [w for w in windows if w["speaker"].startswith("eval_")]
    # A speaker counts by the square root of his minutes: many speakers matter more than much of one.
    by_speaker = {
        s: sum(len(w["envelope"]) for w in training if w["speaker"] == s) for s in {w["speaker"] for w in training}
    }
    chance = np.array([len(w["envelope"]) / math.sqrt(by_speaker[w["speaker"]]) for w in training])
    chance /= chance.sum()
    print(
        f"{len(training)} windows, {sum(by_speaker.values()) * 256 / 22050 / 60:.0f} minutes, "
        f"{len(by_speaker)} speakers, ready after {time.time() - began:.0f} s",
        flush=True,
    )
    student, augment = Student(), Augment()
    if arguments.start:
        start_from(student, arguments.start)
    decay = [p for p in student.parameters() if p.ndim > 1]
    rest = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}], arguments.rate, fused=True
    )
    step, checkpoint = 0, arguments.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def save():
        part = checkpoint.with_suffix(".part")
        torch.save({"student": student.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
        part.rename(checkpoint)

    means, tick = [], time.time()
    while step < arguments.steps and time.time() - began < 60 * arguments.minutes:
        rng, noise = np.random.default_rng([SEED, step]), torch.Generator().manual_seed(1000003 * SEED + step)
        length = LENGTHS_S[step % len(LENGTHS_S)]
        frames = round(length * 22050 / 256) // 2 * 2
        picks = rng.choice(len(training), int(SECONDS / length), p=chance)
        with torch.no_grad():
            envelope, places = crop(training, picks, frames, rng)
            envelope = augment(envelope, noise)
            x = normalised(envelope @ matrix, envelope.mean(-1))
            labels, components, sound = at(training, picks, places)
            wanted = at(training, picks, places, "code")[1] if arguments.start else None
        warm = min(1.0, step / 100)
        rate = arguments.rate * warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / arguments.steps)))
        for group in optimizer.param_groups:
            group["lr"] = max(rate, 1e-5)
        code_noise = 0.3 * torch.randn((len(x), CODE_DIMS, frames // 2), generator=noise)
        code, classes, guess = student(x, code_noise)
        weight = sound.float() / sound.float().sum().clamp_min(1)
        ce = (F.cross_entropy(classes, labels, reduction="none", label_smoothing=0.05) * weight).sum()
        mse = ((guess - components).square().mean(1) * weight).sum()
        near = ((code - wanted).square().mean(1) * weight).sum() if arguments.start else torch.zeros(())
        loss = ce + 2.0 * mse + 3.0 * near
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        means.append((float(ce), float(mse), float(near)))
        step += 1
        if step % 100 == 0 or step in (5, 15):
            print(step, np.round(np.mean(means, 0), 3), f"{(time.time() - tick) / len(means):.2f} s/step", flush=True)
            means, tick = [], time.time()
        if step % 500 == 0:
            save()
            print(json.dumps(evaluate(student, held, matrix)), flush=True)
            tick = time.time()
    save()
    print(json.dumps(evaluate(student, held, matrix)), flush=True)
    export(checkpoint, arguments.out / WEIGHTS)


if __name__ == "__main__":
    main()
