"""A small classifier that names spoken digits, or any labels of short clips, and gives 64 numbers for each clip.

Measures of generated sets (``generation``) compare its outputs for real and for made clips, so they hang on it: two
numbers compare only where they come from the same classifier.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lib.classifier_net import Classifier, ClassifierSettings
from svclib.audio import io as audio
from svclib.data import recordings
from svclib.data.dataset import Dataset
from svclib.data.recordings import find_recordings
from svclib.training import checkpoints
from svclib.training.checkpoints import Checkpoint
from svclib.utils import atomic_store
from svclib.utils.errors import ConfigError, ModelError, TrainingError, raise_if_cancelled
from svclib.utils.serialization import from_dict, to_dict

DIGITS = ("{label}_{singer}_{take}", "*_[0-4].wav")  # how digits are named, and which are held out
SHIFT_S, NOISE_DB = (-0.03, 0.10), (-60.0, -15.0)


# Clips ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Clips:
    """Labelled clips of one length: ``audio`` float32 ``[clips, samples]``, ``labels`` by name, ``names`` of files."""

    audio: np.ndarray
    labels: tuple[str, ...]
    names: tuple[str, ...]
    sample_rate_hz: int

    def __len__(self) -> int:
        return len(self.labels)


def fit(samples: np.ndarray, n_samples: int) -> np.ndarray:
    """A sound cut, or followed by silence, to ``n_samples``."""
    return np.pad(samples[:n_samples], (0, max(0, n_samples - len(samples)))).astype(np.float32)


def clips(
    source: Dataset | str | Path,
    split: str | None = None,
    sample_rate_hz: int = 8000,
    duration_s: float | int = 1.0,
    naming: str = DIGITS[0],
    validation: str = DIGITS[1],
) -> Clips:
    """The labelled clips of a prepared dataset or of a folder of files.

    Args:
        source: A dataset made with labels, or a folder.
        split: ``train`` or ``validation``; None takes all.
        sample_rate_hz: Of the clips; recordings of other rates are resampled.
        duration_s: Of the clips: longer recordings are cut, shorter ones followed by silence.
        naming: How the files of a folder are named, without suffix; of a dataset's recordings the labels are known.
        validation: File name pattern of the held-out files of a folder, which has to fit some and not all of them;
            a dataset has its own split.

    Returns:
        The clips in the order of the recordings, float32 of full scale 1.

    Raises:
        ModelError: if there is no such split, nothing in it, or a recording without label.
        DatasetError, AudioError: if a folder or file cannot be used.
    """
    if split not in (None, "train", "validation"):
        raise ModelError(f"There is no split '{split}'; choose train or validation, or None for all.")
    if isinstance(source, Dataset):
        rate = source.settings.sample_rate_hz
        entries = source.recordings
        splits = [r["split"] for r in entries]

        def read(i: int) -> np.ndarray:
            return audio.resample(source.audio(i), rate, sample_rate_hz)
    else:
        found = [r for r in find_recordings(source, labels=naming) if r.problem is None]
        entries = [{"name": r.name, "label": r.label} for r in found]
        splits = recordings.hold_out(entries, validation) if entries and split else [None] * len(entries)

        def read(i: int) -> np.ndarray:
            return audio.read(found[i].path, sample_rate_hz).samples

    chosen = [i for i, s in enumerate(splits) if split in (None, s)]
    nameless = [entries[i]["name"] for i in chosen if entries[i]["label"] is None]
    if not chosen or nameless:
        what = f"'{nameless[0]}' has no label" if nameless else f"there are no recordings for {split or 'it'}"
        raise ModelError(f"A classifier needs labelled recordings, but {what}. Prepare them with a naming pattern.")
    n = round(duration_s * sample_rate_hz)
    sounds = np.stack([fit(read(i), n) for i in chosen])
    labels, names = (tuple(entries[i][key] for i in chosen) for key in ("label", "name"))
    return Clips(sounds, labels, names, sample_rate_hz)


# Listening ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Outputs of a classifier for clips.

    Attributes:
        features: float64 ``[clips, 64]``.
        probabilities: float64 ``[clips, labels]``; rows sum to 1.
        names: Of the labels.
    """

    features: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen) -> "Outputs":
        """Some of the clips, by a slice or positions."""
        return Outputs(self.features[chosen], self.probabilities[chosen], self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """The likeliest label of each clip."""
        return tuple(self.names[i] for i in self.probabilities.argmax(axis=1))


@torch.no_grad()
def classify(
    model: Classifier,
    sounds: np.ndarray | Sequence[np.ndarray],
    sample_rate_hz: int,
    batch_size: int = 100,
    progress: Callable[[float, str], None] | None = None,
) -> Outputs:
    """Outputs of the classifier for sounds.

    Args:
        model: From :func:`train` or :func:`load`; put into eval mode.
        sounds: Each ``[samples]``, one channel; cut, or followed by silence, to the length of the classifier's clips.
        sample_rate_hz: Of the sounds; has to be the classifier's.
        batch_size: Sounds at once; memory grows with it.
        progress: Called with a fraction and a text after each batch.

    Returns:
        Features, probabilities of the labels and their names, in the order of the sounds.

    Raises:
        ModelError: for another sample rate, no sounds, or samples that are not finite.
    """
    s = model.settings
    if sample_rate_hz != s.sample_rate_hz:
        raise ModelError(
            f"These sounds are at {sample_rate_hz} Hz, but the classifier was trained at "
            f"{s.sample_rate_hz} Hz; resample them first."
        )
    if not len(sounds) or not all(np.ndim(x) == 1 and np.isfinite(x).all() for x in sounds):
        raise ModelError(f"{len(sounds)} sounds were given; expected at least one, one channel of finite samples.")
    model.eval()
    features, probabilities = [], []
    for start in range(0, len(sounds), batch_size):
        batch = np.stack([fit(x, s.n_samples) for x in sounds[start : start + batch_size]])
        found = model.features(torch.from_numpy(batch))
        features.append(found.double().numpy())
        probabilities.append(model.last(found).double().softmax(dim=1).numpy())
        if progress:
            progress(min(1.0, (start + batch_size) / len(sounds)), "classifying")
    return Outputs(np.concatenate(features), np.concatenate(probabilities), s.labels)


def accuracy(outputs: Outputs, labels: Sequence[str]) -> float:
    """Share of the clips that were classified right."""
    if len(outputs) != len(labels):
        raise ModelError(f"{len(labels)} labels were given for {len(outputs)} clips; give one for each.")
    return float(np.mean([a == b for a, b in zip(outputs.labels, labels, strict=True)]))


# Training -------------------------------------------------------------------------------------------------------------


def varied(sounds: Float[Tensor, "batch samples"], sample_rate_hz: int, generator: torch.Generator) -> Tensor:
    """Clips moved by -0.03 to 0.1 s, under white noise 15 to 60 dB below their own level."""
    n, length = sounds.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, generator=generator)

    place = torch.arange(length)[None] - (draw(*SHIFT_S) * sample_rate_hz).round().long()
    moved = sounds.gather(1, place.clamp(0, length - 1)) * ((place >= 0) & (place < length))
    level = moved.square().mean(dim=1, keepdim=True).sqrt() * 10 ** (draw(*NOISE_DB) / 20)
    return moved + level * torch.randn(sounds.shape, generator=generator)


def train(
    source: Clips | Dataset | str | Path,
    seed: int = 0,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 4e-3,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Classifier:
    """Train a classifier on the train split: half a minute on a CPU for 2700 digits, and 99 % of their held-out takes.

    The same clips, seed, machine and number of threads give the same weights; torch's global generator stays as it is.

    Args:
        source: Clips to train on, all of them; or a dataset or folder, of which the train split is taken.
        seed: Of weights, order and variations.
        epochs: How often every clip comes by.
        batch_size: Most clips of one step.
        learning_rate: AdamW's highest: the rate rises to it for a fifth of the steps and falls to nothing.
        progress: Called with a fraction and a text.
        cancelled: Asked before each step.

    Returns:
        The classifier in eval mode on the CPU, its weights without gradient; its clips are as long as those given.

    Raises:
        ModelError: if there are fewer than two labels or clips; or as :func:`clips`.
        Cancelled: when ``cancelled()`` returns True.
    """
    known = source if isinstance(source, Clips) else clips(source, "train")
    names = tuple(sorted(set(known.labels)))
    settings = ClassifierSettings(names, known.sample_rate_hz, known.audio.shape[1] / known.sample_rate_hz)
    sounds = torch.from_numpy(known.audio)
    wanted = torch.tensor([names.index(label) for label in known.labels])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(settings).train()
    n_batches = -(-len(sounds) // batch_size)
    n_steps = max(10, epochs * n_batches)  # the schedule of the rate needs that many
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.02)
    rise = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, n_steps, pct_start=0.2)
    for epoch in range(epochs):
        order, total = torch.randperm(len(sounds), generator=generator), 0.0
        for i, chosen in enumerate(order.chunk(n_batches)):
            raise_if_cancelled(cancelled)
            logits = model(varied(sounds[chosen], settings.sample_rate_hz, generator))
            loss = F.cross_entropy(logits, wanted[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rise.step()
            total += float(loss.detach())
            if progress:
                done = (epoch * n_batches + i + 1) / (epochs * n_batches)
                progress(done, f"round {epoch + 1} of {epochs}, loss {total / (i + 1):.3f}")
    return model.eval().requires_grad_(False)


# Files ----------------------------------------------------------------------------------------------------------------


def save(path: str | Path, model: Classifier, info: dict | None = None) -> Path:
    """Write a classifier as one safetensors file; nothing is overwritten.

    Args:
        path: ``.../NAME.safetensors``; any other suffix is refused (ModelError).
        model: To be written.
        info: Plain values to keep beside it, such as its accuracy.

    Returns:
        The path used: ``NAME 2.safetensors`` where the name was taken.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"'{path.name}' cannot be a classifier's name; it has to end in .safetensors.")
    head = {
        "format": checkpoints.FORMAT,
        "format_version": checkpoints.FORMAT_VERSION,
        "kind": "classifier",
    }
    record = {**head, "settings": to_dict(model.settings), "info": info or {}}
    data = checkpoints.pack(Checkpoint(record, dict(model.state_dict())))
    return atomic_store.commit_new(path, lambda part: atomic_store.write_bytes(part, data))


def load(path: str | Path) -> tuple[Classifier, dict]:
    """A classifier from its file; nothing in the file is run.

    Args:
        path: A file that :func:`save` wrote.

    Returns:
        The classifier in eval mode on the CPU, its weights without gradient, and its ``info``, {} where it has none.

    Raises:
        ModelError: if the file is no classifier's, damaged, or of another version.
    """
    path = Path(path)
    try:
        read = checkpoints.unpack(path)
        if read.record.get("kind") != "classifier":
            raise ModelError("it holds no classifier")
        model = Classifier(from_dict(ClassifierSettings, read.record.get("settings"), "settings"))
        model.load_state_dict(read.tensors)
    except (TrainingError, ModelError, ConfigError) as error:
        raise ModelError(f"'{path.name}' cannot be used: {str(error).rstrip('.')}. Train a new one.") from None
    except RuntimeError:
        raise ModelError(f"'{path.name}' was written for another network. Train a new one.") from None
    info = read.record.get("info")
    return model.eval().requires_grad_(False), info if isinstance(info, dict) else {}
