"""DiffWave's network: noisy samples and a diffusion time in, predicted noise out.

After Kong et al. 2021, Fig. 2, 3 and appendix C. The gated stack is the one of ``layers``. A mel spectrogram conditions
every gate by one of two conditioners: ``samples`` is the paper's (transposed convolutions bring the mel to sample rate,
then one 1x1 convolution per layer), ``frames`` is the project's own (the 1x1 convolutions run at frame rate and their
results are interpolated between frame centres: a quarter fewer multiplications, and nothing to remember at sample
rate). A label (a spoken digit, a speaker) adds one vector to every gate.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from svclib.models import layers
from svclib.utils.errors import ModelError

SINUSOIDS, STEP_DIMS, LABEL_DIMS = 128, 512, 128  # the paper's
CONDITIONERS = ("frames", "samples")
STEP_RULES = ("exact", "table")
CONTEXT = 5  # mel frames one condition frame sees, where the condition is made at frame rate


def strides(hop_samples: int) -> tuple[int, ...]:
    """Even factors of the hop, two of nearly equal size where there are such: 256 is (16, 16), 882 is (882,).

    For an odd hop it raises ModelError.
    """
    if hop_samples < 2 or hop_samples % 2:
        raise ModelError(f"The hop is {hop_samples} samples; the upsampler needs an even number.")
    pairs = [(f, hop_samples // f) for f in range(2, math.isqrt(hop_samples) + 1, 2) if hop_samples % f == 0]
    pairs = [p for p in pairs if p[1] % 2 == 0]
    return pairs[-1] if pairs else (hop_samples,)


def table_embedding(t: Float[Tensor, " batch"], n_steps: int) -> Float[Tensor, "batch 128"]:
    """Step embedding as the public package computes it: a float32 table of whole steps, interpolated in between.

    At whole steps it differs from :func:`layers.step_embedding` by the rounding of float32 angles (up to 0.02 for 50
    steps), in between by everything: the sinusoids turn many times between two steps. Weights trained with it need it.
    """
    frequencies = 10.0 ** (torch.arange(SINUSOIDS // 2, device=t.device) * 4.0 / (SINUSOIDS // 2 - 1))
    angles = torch.arange(n_steps, device=t.device)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    low = t.floor().long().clamp(0, n_steps - 1)
    high = t.ceil().long().clamp(0, n_steps - 1)
    return table[low] + (table[high] - table[low]) * (t - low).to(table.dtype)[:, None]


def parameter_count(
    channels: int,
    n_layers: int,
    n_mels: int = 0,
    conditioner: str = "samples",
    hop_samples: int = 256,
    condition_dims: int = 128,
    n_labels: int = 0,
    squeeze: int = 1,
    sourced: bool = False,
) -> int:
    """Number of weights from the layer sizes alone: 2,619,971 for BASE, 6,885,315 for LARGE."""
    c, p = channels, squeeze
    layer = (6 * c * c + 2 * c) + (STEP_DIMS * c + c) + (2 * c * c + 2 * c)
    total = ((1 + sourced) * p * c + c) + (SINUSOIDS + 1 + STEP_DIMS + 1) * STEP_DIMS + (c * c + c) + (p * c + p)
    if n_mels and conditioner == "samples":
        layer += n_mels * 2 * c + 2 * c
        total += sum(6 * f + 1 for f in strides(hop_samples))
    elif n_mels:
        layer += condition_dims * 2 * c + 2 * c
        total += n_mels * CONTEXT * condition_dims + condition_dims
    if n_labels:
        layer += LABEL_DIMS * 2 * c + 2 * c
        total += n_labels * LABEL_DIMS
    return total + n_layers * layer


class DiffWaveNet(nn.Module):
    """The network of all DiffWaves; BASE is 30 layers of 64 channels, LARGE 30 of 128.

    Args:
        channels: Width of the gated stack.
        n_layers: Gated layers in it.
        dilation_cycle: After so many layers the dilations 1, 2, 4, ... start again.
        n_mels: Bands of the mel spectrogram that steers it; 0 for none.
        hop_samples: Samples per mel frame.
        conditioner: One of ``CONDITIONERS``.
        condition_dims: Channels of the condition at frame rate.
        n_labels: Number of labels that steer it; 0 for none.
        step_rule: ``exact``, or ``table`` for weights of the public package (:func:`table_embedding`).
        n_steps: Trained steps, for ``table``.
        squeeze: Neighbouring samples that make one position of the stack, as WaveGlow squeezes them (Prenger et al.
            2019): the layers run that many times less often, so that far wider ones are affordable. 1 is the paper's.
        sourced: Whether a harmonic source is a second input; see ``harmonic_source``.

    Attributes:
        halo: Positions on either side that one output position depends on.
        frame_positions: Positions per mel frame.
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
        if conditioner not in CONDITIONERS or step_rule not in STEP_RULES:
            raise ModelError(
                f"conditioner is '{conditioner}' and step_rule '{step_rule}'; choose from {', '.join(CONDITIONERS)} "
                f"and from {', '.join(STEP_RULES)}."
            )
        self.channels, self.n_mels, self.n_labels = channels, n_mels, n_labels
        self.conditioner, self.hop_samples = conditioner if n_mels else "none", hop_samples
        self.step_rule, self.n_steps = step_rule, n_steps
        if squeeze < 1 or (n_mels and hop_samples % squeeze) or (squeeze > 1 and self.conditioner == "samples"):
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

    def step(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch 512"]:
        """The vector of a diffusion time, whole or not."""
        if self.step_rule == "exact":
            return self.embedding(t)
        embedded = table_embedding(t, self.n_steps)
        return self.embedding.layers(embedded.to(self.embedding.layers[0].weight.dtype))

    def squeezed(self, x: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch squeeze positions"]:
        """Samples as positions of the stack."""
        return x.unflatten(1, (-1, self.squeeze)).transpose(1, 2)

    def inputs(
        self, x: Float[Tensor, "batch samples"], source: Float[Tensor, "batch samples"] | None
    ) -> Float[Tensor, "batch inputs positions"]:
        """Input of the first convolution: the noisy samples, and the harmonic source where there is one."""
        x = self.squeezed(x)
        return x if source is None else torch.cat([x, self.squeezed(source.to(x))], dim=1)

    def encode(self, mel: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch dims length"]:
        """The condition encoding that all layers share.

        Args:
            mel: Scaled to about -1 .. 1, as ``DiffWaveModel.scale`` gives it.

        Returns:
            ``[batch, condition_dims, frames]`` for ``frames``, ``[batch, mels, samples]`` for ``samples``.

        Raises:
            ModelError: for a mel of another number of bands, or where the network takes none.
        """
        if self.conditioner == "none" or mel.shape[1] != self.n_mels:
            raise ModelError(f"The mel has {mel.shape[1]} bands; this network takes {self.n_mels or 'no mel'}.")
        if self.conditioner == "samples":
            return self.upsampler(mel)
        return F.leaky_relu(self.context(mel), 0.4)

    def layer_condition(
        self, i: int, encoded: Float[Tensor, "batch dims length"]
    ) -> Float[Tensor, "batch gates samples"]:
        """The mel's addition to the gates of layer ``i``, at every position."""
        gates, conv = 2 * self.channels, self.stack.conditions
        rows = slice(i * gates, (i + 1) * gates)
        projected = F.conv1d(encoded, conv.weight[rows], conv.bias[rows])
        if self.conditioner == "frames":
            projected = F.interpolate(projected, scale_factor=self.frame_positions, mode="linear", align_corners=False)
        return projected

    def label_gates(self, label: Int[Tensor, " batch"]) -> Float[Tensor, "batch all_gates"]:
        """The labels' addition to the gates of all layers.

        Args:
            label: Numbers from 0 to ``n_labels - 1``.

        Returns:
            ``[batch, n_layers * 2 * channels]``, layer by layer.

        Raises:
            ModelError: for a label out of range, or where the network takes none.
        """
        if self.labels is None:
            raise ModelError("This network takes no label.")
        low, high = int(label.min()), int(label.max())
        if low < 0 or high >= self.n_labels:
            wrong = low if low < 0 else high
            raise ModelError(f"There is no label number {wrong}; this network knows 0 to {self.n_labels - 1}.")
        return self.label_conditions(self.labels(label))

    def check(self, mel: Tensor | None, label: Tensor | None, n_samples: int, source: Tensor | None = None) -> None:
        """Refuse conditions that are missing, unexpected or of the wrong length with a ModelError."""
        needs = (("mel", mel, self.n_mels), ("label", label, self.n_labels), ("source", source, self.sourced))
        for name, value, wanted in needs:
            if (value is None) == bool(wanted):
                raise ModelError(
                    f"This network takes {'a' if wanted else 'no'} {name}; leave {name} {'not ' if wanted else ''}out."
                )
        if n_samples % self.squeeze:
            raise ModelError(f"The signal has {n_samples} samples; this network takes {self.squeeze} at a time.")
        if mel is not None and mel.shape[-1] * self.hop_samples != n_samples:
            raise ModelError(
                f"{mel.shape[-1]} mel frames of {self.hop_samples} samples make "
                f"{mel.shape[-1] * self.hop_samples} samples, but the signal has {n_samples}."
            )
        if source is not None and source.shape[-1] != n_samples:
            raise ModelError(f"The source has {source.shape[-1]} samples, but the signal has {n_samples}.")

    def forward(
        self,
        x: Float[Tensor, "batch samples"],
        t: Float[Tensor, " batch"],
        mel: Float[Tensor, "batch mels frames"] | None = None,
        label: Int[Tensor, " batch"] | None = None,
        source: Float[Tensor, "batch samples"] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """The noise in ``x`` at diffusion times ``t``.

        Args:
            x: The noisy signals; their length is a multiple of ``squeeze``, with a mel ``frames * hop_samples``.
            t: Diffusion times counted from 0, whole or not.
            mel: Scaled to about -1 .. 1; given if and only if ``n_mels`` is not 0.
            label: Numbers of the labels; given if and only if ``n_labels`` is not 0.
            source: The signal of the pitch, as long as ``x``; given if and only if the network is ``sourced``.

        Returns:
            The predicted noise.

        Raises:
            ModelError: if conditions are missing, too many or of the wrong size.
        """
        self.check(mel, label, x.shape[1], source)
        step = self.step(t)
        encoded = None if mel is None else self.encode(mel)
        fixed = None if label is None else self.label_gates(label).chunk(len(self.stack.blocks), dim=1)
        h = F.relu(self.input(self.inputs(x, source)))
        total = None
        for i, block in enumerate(self.stack.blocks):
            condition = None if encoded is None else self.layer_condition(i, encoded)
            if fixed is not None:
                condition = fixed[i][:, :, None] if condition is None else condition + fixed[i][:, :, None]
            h, skip = block(h, step, condition)
            total = skip if total is None else total + skip
        total = total * (1.0 / math.sqrt(len(self.stack.blocks)))
        return self.output(F.relu(self.skip(total))).transpose(1, 2).flatten(1)
