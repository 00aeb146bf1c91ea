"""DiffWave's network (Kong et al. 2021, Fig. 2, 3 and appendix C): noisy samples and a diffusion time in, noise out.

A mel conditions every gate by one of two conditioners. ``samples`` is the paper's: transposed convolutions bring the
mel to sample rate, then one 1x1 convolution per layer. ``frames`` runs these 1x1 convolutions at frame rate and
interpolates their results between frame centres: a quarter fewer multiplications. A label adds one vector to each gate.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from svclib.models import layers
from svclib.models.layers import Mels, Samples, Times
from svclib.utils.errors import ModelError

SINUSOIDS, STEP_DIMS, LABEL_DIMS = 128, 512, 128  # the paper's
CONDITIONERS = ("frames", "samples")
STEP_RULES = ("exact", "table")
CONTEXT = 5  # mel frames that one condition frame of ``frames`` sees


def strides(hop_samples: int) -> tuple[int, ...]:
    """Even factors of the hop, two of nearly equal size where there are such: 256 is (16, 16), 882 is (882,)."""
    if hop_samples < 2 or hop_samples % 2:
        raise ModelError(f"The hop is {hop_samples} samples; the upsampler needs an even number.")
    pairs = [(f, hop_samples // f) for f in range(2, math.isqrt(hop_samples) + 1, 2) if hop_samples % (2 * f) == 0]
    return pairs[-1] if pairs else (hop_samples,)


def table_embedding(t: Times, n_steps: int) -> Float[Tensor, "batch 128"]:
    """Step embedding as the public package computes it: a float32 table of whole steps, interpolated in between.

    Weights trained with it need it: at whole steps it differs from :func:`layers.step_embedding` only by the rounding
    of float32 angles, but in between the sinusoids turn many times.
    """
    frequencies = 10.0 ** (torch.arange(SINUSOIDS // 2, device=t.device) * 4.0 / (SINUSOIDS // 2 - 1))
    angles = torch.arange(n_steps, device=t.device)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    low, high = (x.long().clamp(0, n_steps - 1) for x in (t.floor(), t.ceil()))
    return table[low] + (table[high] - table[low]) * (t - low).to(table.dtype)[:, None]


class DiffWaveNet(nn.Module):
    """The network of all DiffWaves; BASE is 30 layers of 64 channels, LARGE 30 of 128.

    The arguments are those of ``DiffWaveSettings``. A mel (``n_mels``) or labels (``n_labels``) condition it, and with
    ``sourced`` a harmonic source is a second input. With ``squeeze`` (WaveGlow, Prenger et al. 2019) the layers run
    that many times less often, so that far wider ones are affordable. One output position depends on ``halo`` positions
    on either side; a mel frame has ``frame_positions``.
    """

    def __init__(
        self,
        channels: int,
        n_layers: int,
        dilation_cycle: int,
        n_mels: int = 0,
        hop_samples: int = 256,
        conditioner: str = "frames",
        condition_dims: int = 128,
        n_labels: int = 0,
        step_rule: str = "exact",
        n_steps: int = 50,
        squeeze: int = 1,
        sourced: bool = False,
    ):
        super().__init__()
        self.channels, self.n_mels, self.n_labels = channels, n_mels, n_labels
        self.conditioner, self.hop_samples = conditioner if n_mels else "none", hop_samples
        self.step_rule, self.n_steps = step_rule, n_steps
        if n_mels and hop_samples % squeeze or squeeze > 1 and self.conditioner == "samples":
            raise ModelError(
                f"squeeze is {squeeze}; it has to divide the hop of {hop_samples} samples, and to be 1 for the "
                "conditioner 'samples'."
            )
        self.squeeze, self.frame_positions, self.sourced = squeeze, hop_samples // squeeze, sourced
        self.input = nn.Conv1d(squeeze * (1 + sourced), channels, 1)
        self.embedding = layers.StepEmbedding(SINUSOIDS, STEP_DIMS, STEP_DIMS, 1e4, nn.SiLU, activate_last=True)
        dims = {"none": 0, "frames": condition_dims, "samples": n_mels}[self.conditioner]
        self.stack = layers.GatedStack(channels, n_layers, dilation_cycle, STEP_DIMS, dims)
        self.upsampler = layers.Upsampler(strides(hop_samples)) if self.conditioner == "samples" else None
        self.context = None
        if self.conditioner == "frames":
            self.context = nn.Conv1d(n_mels, condition_dims, CONTEXT, padding=CONTEXT // 2)
        self.labels = nn.Embedding(n_labels, LABEL_DIMS) if n_labels else None
        self.label_conditions = nn.Linear(LABEL_DIMS, n_layers * 2 * channels) if n_labels else None
        self.skip, self.output = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, squeeze, 1)
        for conv in (self.input, self.skip):
            nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(self.output.weight)
        self.halo = self.stack.halo

    def step(self, t: Times) -> Float[Tensor, "batch 512"]:
        """The vector of a diffusion time, whole or not."""
        if self.step_rule == "exact":
            return self.embedding(t)
        embedded = table_embedding(t, self.n_steps)
        return self.embedding.layers(embedded.to(self.embedding.layers[0].weight.dtype))

    def inputs(self, x: Samples, source: Samples | None) -> Float[Tensor, "batch inputs positions"]:
        """Input of the first convolution: the noisy samples, and the harmonic source where there is one."""
        signals = (x,) if source is None else (x, source.to(x))
        return torch.cat([s.unflatten(1, (-1, self.squeeze)).transpose(1, 2) for s in signals], dim=1)

    def encode(self, mel: Mels) -> Float[Tensor, "batch dims length"]:
        """The condition encoding that all layers share: ``length`` is frames for ``frames``, else samples."""
        if self.conditioner == "samples":
            return self.upsampler(mel)
        return F.leaky_relu(self.context(mel), 0.4)

    def layer_condition(
        self, i: int, encoded: Float[Tensor, "batch dims length"]
    ) -> Float[Tensor, "batch gates positions"]:
        """The mel's addition to the gates of layer ``i``, at every position."""
        gates, conv = 2 * self.channels, self.stack.conditions
        rows = slice(i * gates, (i + 1) * gates)
        projected = F.conv1d(encoded, conv.weight[rows], conv.bias[rows])
        if self.conditioner == "frames":
            projected = F.interpolate(projected, scale_factor=self.frame_positions, mode="linear", align_corners=False)
        return projected

    def label_gates(self, label: Int[Tensor, " batch"]) -> Float[Tensor, "batch layers gates 1"]:
        """The labels' addition to the gates of every layer, for numbers from 0 to ``n_labels - 1``."""
        gates = self.label_conditions(self.labels(label))
        return gates.view(len(label), len(self.stack.blocks), 2 * self.channels, 1)

    def forward(
        self,
        x: Samples,
        t: Times,
        mel: Mels | None = None,
        label: Int[Tensor, " batch"] | None = None,
        source: Samples | None = None,
    ) -> Samples:
        """The predicted noise in ``x`` at diffusion times counted from 0, whole or not.

        The mel is scaled to about -1 .. 1. The length of ``x`` is a multiple of ``squeeze``, with a mel ``frames *
        hop_samples``.
        """
        encoded = None if self.conditioner == "none" else self.encode(mel)
        fixed = None if self.labels is None else self.label_gates(label)
        made = self.run(self.inputs(x, source), self.step(t), self.gate_conditions(encoded, fixed))
        return made.transpose(1, 2).flatten(1)

    def gate_conditions(self, encoded: Tensor | None, fixed: Tensor | None) -> Iterable[Tensor | None]:
        """Additions to the gates, layer by layer, of the mel (:meth:`encode`) or the labels (:meth:`label_gates`)."""
        if fixed is not None:
            return fixed.unbind(1)
        return (None if encoded is None else self.layer_condition(i, encoded) for i in range(len(self.stack.blocks)))

    def run(
        self, x: Float[Tensor, "batch inputs positions"], step: Float[Tensor, "batch 512"], conditions: Iterable
    ) -> Float[Tensor, "batch squeeze positions"]:
        """The layers on :meth:`inputs`, with :meth:`gate_conditions`."""
        return self.output(F.relu(self.skip(self.stack(F.relu(self.input(x)), step, conditions))))
