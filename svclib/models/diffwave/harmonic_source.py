"""Harmonic source signal of a DiffWave vocoder: harmonics of the F0 with amplitudes computed from the mel.

A mel of 80 bands does not determine F0 to a cent, and a short training does not learn it. Given a
periodic signal (as in PeriodGrad, Hono et al. 2024, https://arxiv.org/abs/2402.14692), the network need only learn the
difference between that signal and a voice. The signal here is the harmonic part of an untrained
:class:`vocoders.HarmonicVocoder`: amplitudes by calculation from the mel, silent where there is no pitch.

In training its fundamental is locked to the phase of the recording's own, so that signal and voice belong together and
the network learns the phases of a voice relative to it; at inference, it follows the phase it is given.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svclib.audio import synthesis
from svclib.features.extract import FeatureSettings
from svclib.models.vocoders.harmonic import HarmonicSettings, HarmonicVocoder

LOCK_S = 0.03  # how much sound is looked at to find a phase
BLOCK_ELEMENTS = 2**22  # sines at once


class HarmonicSource:
    """Makes the signal for mels of one contract.

    Args:
        features: How the recordings are measured; must carry a mel contract.
    """

    def __init__(self, features: FeatureSettings):
        self.vocoder = HarmonicVocoder(HarmonicSettings(channels=1, n_layers=1), features).requires_grad_(False)

    def song(
        self,
        log_mel: Float[np.ndarray, "frames mels"],
        f0_hz: Float[np.ndarray, " frames"],
        voiced: Bool[np.ndarray, " frames"],
    ) -> Float[np.ndarray, " samples"]:
        """The signal of a song of any length, by its pitch alone: float32 ``[frames * hop]``."""
        return np.asarray(self.vocoder.render(log_mel, f0_hz, voiced).harmonic)

    @torch.no_grad()
    def locked(
        self,
        audio: Float[Tensor, "batch samples"],
        log_mel: Float[Tensor, "batch frames mels"],
        f0_hz: Float[Tensor, "batch frames"],
        voiced: Bool[Tensor, "batch frames"],
    ) -> Float[Tensor, "batch samples"]:
        """The signal of training pieces, its fundamental in phase with the recording's.

        The recording is turned by the running phase of its F0; what then stands still over 30 ms is the fundamental,
        and its angle is what the signal is turned by. Every harmonic turns with its number.
        """
        with torch.autocast(audio.device.type, enabled=False):  # phases need full precision
            return self._locked(audio.float(), log_mel.float(), f0_hz.float(), voiced)

    def _locked(self, audio, log_mel, f0_hz, voiced) -> Tensor:
        vocoder, hop = self.vocoder.to(log_mel.device), self.vocoder.contract.hop_samples
        rate = vocoder.sample_rate_hz
        on = voiced & (f0_hz > 0)
        amplitudes, _ = vocoder.controls(log_mel, f0_hz, on)
        amplitudes = amplitudes[..., : vocoder.n_sounding(f0_hz, on)]
        line = synthesis.hold_f0(f0_hz * on).double()
        phase = 2 * math.pi * torch.remainder((synthesis.upsample_linear(line, hop) / rate).cumsum(dim=1), 1.0)
        turn = torch.polar(torch.ones_like(phase), phase)
        still = (audio.double() * turn.conj())[:, None]
        size = 2 * round(LOCK_S * rate / 2)
        window = torch.hann_window(size, dtype=torch.double, device=audio.device)[None, None]
        padded = torch.nn.functional.pad(
            torch.view_as_real(still).movedim(-1, 1).flatten(1, 2), (size // 2 - hop // 2, size // 2)
        )
        centres = torch.nn.functional.conv1d(padded, window.expand(2, -1, -1), stride=hop, groups=2)
        found = torch.complex(*centres[..., : f0_hz.shape[1]].unbind(1))
        found = found / found.abs().clamp_min(1e-12)
        angle = synthesis.upsample_linear(torch.view_as_real(found), hop).contiguous()
        angle = (torch.view_as_complex(angle) * turn * 1j).angle().to(amplitudes)  # a sine in phase with the recording
        gate = synthesis.upsample_gate(on, hop, amplitudes.dtype)
        number = torch.arange(1, amplitudes.shape[-1] + 1, device=audio.device).to(amplitudes)
        rows = max(1, BLOCK_ELEMENTS // (audio.shape[1] * len(number)))
        made = [
            (torch.sin(a[..., None] * number) * synthesis.upsample_hann(h, hop)).sum(dim=-1)
            for a, h in zip(angle.split(rows), amplitudes.split(rows), strict=True)
        ]
        return torch.cat(made) * gate
