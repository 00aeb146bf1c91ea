"""Networks of the DDSP instrument: the decoder (dense stacks and a GRU) and the z encoder.

Layers, widths and initial values are those of the published systems (see ``ddsp``), whose parameter counts they match.
"""

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from svclib.audio import spectral_loss
from svclib.audio.mel import MelConfig
from svclib.models.layers import Samples, at_positions

Z_WINDOWS = {1024: 2048, 512: 1024, 256: 1024, 128: 512, 64: 256}  # hop of z -> window of its MFCCs, samples
Z_MFCC, Z_MELS, Z_FMIN_HZ, Z_FMAX_HZ = 30, 128, 20.0, 8000.0
LEAK, LAYER_NORM_EPS, INSTANCE_NORM_EPS = 0.2, 1e-3, 1e-5


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Glorot-uniform kernels, orthogonal recurrent kernels, zero biases, as the published systems were trained with."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight, generator=generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GRU):
        nn.init.xavier_uniform_(module.weight_ih_l0, generator=generator)
        nn.init.orthogonal_(module.weight_hh_l0, generator=generator)
        nn.init.zeros_(module.bias_ih_l0)
        nn.init.zeros_(module.bias_hh_l0)


class FcStack(nn.Sequential):
    """Dense, layer norm, leaky ReLU, repeated."""

    def __init__(self, n_in: int, channels: int, layers: int):
        super().__init__()
        for layer in range(layers):
            self.append(nn.Linear(n_in if layer == 0 else channels, channels))
            self.append(nn.LayerNorm(channels, eps=LAYER_NORM_EPS))
            self.append(nn.LeakyReLU(LEAK))
        self.n_out = channels if layers else n_in


class Decoder(nn.Module):
    """One dense stack per input, a GRU over all of them, a dense stack over stacks and GRU, one dense layer out."""

    def __init__(self, inputs: dict[str, int], rnn_channels: int, mlp_channels: int, layers: int, n_out: int):
        super().__init__()
        self.stacks = nn.ModuleDict({name: FcStack(n_in, mlp_channels, layers) for name, n_in in inputs.items()})
        width = sum(stack.n_out for stack in self.stacks.values())
        self.gru = nn.GRU(width, rnn_channels, batch_first=True)
        self.out_stack = FcStack(width + rnn_channels, mlp_channels, layers)
        self.out = nn.Linear(self.out_stack.n_out, n_out)

    def forward(
        self, inputs: dict[str, Float[Tensor, "batch frames _"]], state: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch frames out"], Tensor]:
        """Outputs and the GRU's state after the last frame, with which the next piece goes on."""
        hidden = torch.cat([stack(inputs[name]) for name, stack in self.stacks.items()], dim=-1)
        recurrent, state = self.gru(hidden, state)
        return self.out(self.out_stack(torch.cat([hidden, recurrent], dim=-1))), state


class ZEncoder(nn.Module):
    """Latent z of a recording: MFCCs, normalised over the whole clip, a GRU, a dense layer.

    The normalisation looks at the whole clip, so z of a piece on its own would differ.
    """

    def __init__(self, sample_rate_hz: float | int, hop_samples: int, rnn_channels: int, z_dims: int):
        super().__init__()
        self.hop_samples = hop_samples
        self.n_fft = Z_WINDOWS[self.hop_samples]
        mel = MelConfig(
            sample_rate_hz, self.n_fft, self.n_fft, hop_samples, Z_MELS, Z_FMIN_HZ, Z_FMAX_HZ, scale="htk", norm="none"
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Empty filters")  # the lowest are narrower than a bin of a short window
            self.register_buffer("mel", mel.filters(), persistent=False)
        order, k = np.arange(Z_MFCC)[:, None], np.arange(Z_MELS)
        dct = np.cos(math.pi / Z_MELS * order * (k + 0.5)) * math.sqrt(2.0 / Z_MELS)
        self.register_buffer("dct", torch.from_numpy(dct.astype(np.float32)), persistent=False)
        self.scale = nn.Parameter(torch.ones(Z_MFCC))
        self.shift = nn.Parameter(torch.zeros(Z_MFCC))
        self.gru = nn.GRU(Z_MFCC, rnn_channels, batch_first=True)
        self.out = nn.Linear(rnn_channels, z_dims)

    def mfcc(self, audio: Samples, first: int = 0, n_frames: int | None = None) -> Float[Tensor, "batch z_frames 30"]:
        """DCT-II of log mel magnitudes (floor 1e-5); frame ``i`` centred in samples ``[i * hop, (i + 1) * hop)``.

        ``ceil(samples / hop)`` frames, or ``n_frames`` of them from ``first``; outside the clip is silence.
        """
        n_frames = -(-audio.shape[1] // self.hop_samples) - first if n_frames is None else n_frames
        start = first * self.hop_samples - (self.n_fft - self.hop_samples) // 2
        stop = start + (n_frames - 1) * self.hop_samples + self.n_fft
        piece = audio[:, max(0, start) : stop].float()
        piece = F.pad(piece, (max(0, -start), stop - max(0, start) - piece.shape[1]))
        window = torch.hann_window(self.n_fft, device=audio.device)
        spectrum = torch.fft.rfft(piece.unfold(1, self.n_fft, self.hop_samples) * window)
        return self.cepstra(spectrum.abs())

    def cepstra(self, magnitudes: Float[Tensor, "*shape bins"]) -> Float[Tensor, "*shape 30"]:
        """DCT-II of log mel magnitudes."""
        return (magnitudes @ self.mel.T).clamp_min(spectral_loss.LOG_FLOOR).log() @ self.dct.T

    def encode(self, mfcc: Float[Tensor, "batch z_frames 30"]) -> Float[Tensor, "batch z_frames z"]:
        """z of a whole clip from its MFCCs."""
        variance, mean = torch.var_mean(mfcc, dim=1, correction=0, keepdim=True)
        normal = (mfcc - mean) / torch.sqrt(variance + INSTANCE_NORM_EPS) * self.scale + self.shift
        return self.out(self.gru(normal)[0])

    def forward(self, audio: Samples) -> Float[Tensor, "batch z_frames z"]:
        """z of a whole clip from its samples."""
        return self.encode(self.mfcc(audio))

    def at_frames(
        self, z: Float[Tensor, "batch z_frames z"], first: int, n_frames: int, hop_samples: int
    ) -> Float[Tensor, "batch frames z"]:
        """z on straight lines between its frames' centres, read at the centres of frames ``first...`` of the grid."""
        centre = (torch.arange(first, first + n_frames, device=z.device) + 0.5) * (hop_samples / self.hop_samples) - 0.5
        return at_positions(z, centre)
