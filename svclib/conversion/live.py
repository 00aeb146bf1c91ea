"""Live conversion: blocks in, blocks out, with a constant latency.

For DDSP instruments, whose decoder looks at no later frame. A frame is measured as soon as ``lookahead_s`` behind it is
there, with at most ``CONTEXT_S`` before it; the decoder, the oscillators, the noise and the room carry on from block to
block. What needs a whole song cannot be had: loudness by the statistics of song and instrument, autotune to a suggested
key, the attenuation between notes.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.signal
import torch
from jaxtyping import Float

from svclib.audio import synthesis, units
from svclib.conversion.controls import F0_LIMITS_HZ, LOUDNESS_FLOOR_DB, Controls, statistic
from svclib.conversion.song import fit_length
from svclib.features import extract
from svclib.models.ddsp.model import ControlRenderer
from svclib.models.ddsp.networks import INSTANCE_NORM_EPS, ZEncoder
from svclib.models.layers import at_positions
from svclib.utils.errors import ConversionError, ProgressCallback, reporter

CONTEXT_S = 0.8
LOOKAHEAD_S = 0.064  # half the windows of loudness and of the F0 tracker, and a frame of its own
DEFAULT_MIDI = 60.0  # F0 before the first voiced frame, of an instrument without statistics


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one core: a second thread of such short operations waits when the browser has the other core."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


class LiveVoice:
    """A DDSP instrument that is fed with blocks.

    Args:
        instrument: From ``load_instrument``, of kind ``ddsp``.
        controls: Octaves, semitones and loudness shift are applied.
        lookahead_s: Sound after a frame that is waited for before it is measured.
        seed: Of the noise.

    z is normalised by the mean and spread of what was received so far, in place of the whole song's.

    Attributes:
        latency_samples: Delay of the output in samples at the instrument's rate; a player adds a block to it.
        f0_hz, voiced, loudness_db, z: What the decoder was given, a list of arrays per block.
    """

    def __init__(
        self, instrument: Any, controls: Controls | None = None, lookahead_s: float = LOOKAHEAD_S, seed: int = 0
    ):
        if instrument.kind != "ddsp":
            raise ConversionError(
                f"'{instrument.name}' is of kind '{instrument.kind}' and looks at seconds of the song to come; to "
                "follow a voice live, choose an instrument of kind 'ddsp'."
            )
        self.model, self.settings = instrument.model, instrument.features
        self.controls = controls or Controls()
        self._features = dataclasses.replace(self.settings, mel=None, units=None)
        self.rate, self.hop = self.settings.sample_rate_hz, self.settings.hop_samples
        self.lookahead = round(lookahead_s * self.rate)
        self.context = round(CONTEXT_S * self.rate) // self.hop * self.hop
        self.renderer = ControlRenderer(self.model.settings.n_noise_bands, self.rate, self.hop, seed)
        self.latency_samples = self.lookahead + self.hop + self.renderer.margin
        self.state, self.phase, self.last_hz = None, None, None  # of the decoder; at the last frame's centre
        midi = statistic(instrument.statistics, "f0_midi", "mean_note") or DEFAULT_MIDI
        self.held_hz = float(units.midi_to_hz(midi))
        self.received, self.begin = np.zeros(0, np.float32), 0  # the newest samples, and the place of the first of them
        self.tail = np.zeros(0, np.float32)  # of the room
        extract.extract(np.zeros(self.context, np.float32), self._features)  # loads the F0 tracker
        self.queue = np.zeros(self.latency_samples, np.float32)
        self.f0_hz, self.voiced, self.loudness_db, self.z = ([] for _ in range(4))
        self.z_stream = None if self.model.z_encoder is None else _ZStream(self.model.z_encoder)

    @_one_thread()
    def process(self, block: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Take a block at the instrument's rate, of any length; give as many samples, ``latency_samples`` late."""
        self.received = np.concatenate([self.received, np.asarray(block, np.float32)])
        last = (self.begin + len(self.received) - self.lookahead) // self.hop
        made = self._advance(last)
        return self._pop(self._in_room(made), len(block))

    @_one_thread()
    def finish(self) -> np.ndarray:
        """The sound that is still to come, up to the end of the last whole frame."""
        end = (self.begin + len(self.received)) // self.hop
        made = self._in_room(np.concatenate([self._advance(end), np.add(*self.renderer.finish())]))
        return self._pop(made, len(self.queue) + len(made))

    def _in_room(self, dry: np.ndarray) -> np.ndarray:
        """The dry sound with the trained room, whose end is kept for the next block."""
        if self.model.room is None or not len(dry):
            return dry
        wet = np.zeros(max(len(self.tail), len(dry) + len(self.model.room) - 1), np.float32)
        wet[: len(self.tail)] += self.tail
        wet[: len(dry) + len(self.model.room) - 1] += scipy.signal.fftconvolve(dry, self.model.reflections())
        self.tail = wet[len(dry) :]
        return dry + wet[: len(dry)]

    def _pop(self, made: np.ndarray, n: int) -> np.ndarray:
        self.queue = np.concatenate([self.queue, made])
        taken, self.queue = self.queue[:n], self.queue[n:]
        return taken

    @torch.no_grad()
    def _advance(self, last: int) -> np.ndarray:
        """Measure and render the frames up to ``last``; the samples that became final."""
        first = self.renderer.n_frames
        if last <= first:
            return np.zeros(0, np.float32)
        drop = max(0, (first * self.hop - self.context - self.begin) // self.hop * self.hop)
        self.received, self.begin = self.received[drop:], self.begin + drop
        f0_hz, voiced, loudness_db = self._measure(first - self.begin // self.hop, last - self.begin // self.hop)
        for kept, values in zip((self.f0_hz, self.voiced, self.loudness_db), (f0_hz, voiced, loudness_db), strict=True):
            kept.append(values)
        place = self.model.decoder.out.weight
        pitch, on, level = (torch.from_numpy(x)[None].to(place.device) for x in (f0_hz, voiced, loudness_db))
        z = None
        if self.z_stream is not None:
            z = self.z_stream.at_frames(self.received, self.begin, first, last, self.hop)
            self.z.append(z[0].cpu().numpy())
        controls, self.state = self.model._controls(pitch, on, level, z, self.state)
        known, start = pitch, None
        if self.phase is not None:
            known = torch.cat([self.last_hz, pitch], dim=1)
            start = self.phase - known[:, 0].double() * (self.hop // 2 / self.rate)
        centres = synthesis.frame_phase(known, self.rate, self.hop, start)
        self.phase, self.last_hz = centres[:, -1], pitch[:, -1:]
        return np.add(*self.renderer.add(controls, centres[:, 0]))

    def _measure(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """F0 (held where unvoiced), voicing and loudness of received frames, with the controls applied."""
        found = extract.extract(self.received, self._features)
        f0_hz, voiced, loudness = (getattr(found, x)[first:last] for x in ("f0_hz", "voiced", "loudness_db"))
        low_hz, high_hz = F0_LIMITS_HZ
        moved_hz = np.clip(f0_hz * 2 ** (self.controls.pitch_shift_semitones / 12), low_hz, high_hz)
        held_hz = np.empty(len(f0_hz), np.float32)
        for i in range(len(held_hz)):  # the next voiced frame is not known yet, so nothing can be interpolated
            self.held_hz = float(moved_hz[i]) if voiced[i] else self.held_hz
            held_hz[i] = self.held_hz
        loudness = np.clip(loudness + self.controls.loudness_shift_db, LOUDNESS_FLOOR_DB, None)
        return held_hz, np.array(voiced), loudness.astype(np.float32)


class _ZStream:
    """z of a stream: MFCC frames as they come, their mean and variance over all so far, the encoder's GRU going on."""

    def __init__(self, encoder: ZEncoder):
        self.encoder, self.state = encoder, None
        self.n, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())
        self.z: list[torch.Tensor] = []  # of the last of the ``n`` frames, ``[1, 1, z]`` each

    def at_frames(self, received: np.ndarray, begin: int, first: int, last: int, hop: int) -> torch.Tensor:
        """z ``[1, frames, z]`` at the frames ``first`` to ``last``; ``received`` starts at sample ``begin``."""
        encoder, place = self.encoder, self.encoder.shift
        ready = max(encoder.hop_samples // 2, begin + len(received) - encoder.n_fft // 2)  # at least one frame
        while (centre := self.n * encoder.hop_samples + encoder.hop_samples // 2) <= ready:
            low = centre - encoder.n_fft // 2 - begin
            piece = received[max(0, low) : max(0, low + encoder.n_fft)]
            before = min(encoder.n_fft, max(0, -low))
            piece = np.pad(piece, (before, encoder.n_fft - before - len(piece)))
            samples = torch.from_numpy(piece)[None].to(place)
            spectrum = torch.fft.rfft(samples * torch.hann_window(encoder.n_fft, device=place.device))
            found = encoder.cepstra(spectrum.abs())
            self.n, self.total, self.squares = self.n + 1, self.total + found, self.squares + found.square()
            mean = self.total / self.n
            deviation = (self.squares / self.n - mean.square() + INSTANCE_NORM_EPS).clamp_min(INSTANCE_NORM_EPS).sqrt()
            normal = ((found - mean) / deviation * encoder.scale + encoder.shift)[:, None]
            out, self.state = encoder.gru(normal, self.state)
            self.z.append(encoder.out(out))
        known = self.n - len(self.z)
        at = (torch.arange(first, last, device=place.device) + 0.5) * (hop / encoder.hop_samples) - 0.5
        found = at_positions(torch.cat(self.z, dim=1), at - known)
        del self.z[: max(0, int(at[-1]) - known)]  # what follows begins after it
        return found


@dataclasses.dataclass(frozen=True)
class StreamReport:
    """Figures of a stream, in seconds, and the number of blocks that took longer than they last."""

    block_s: float
    latency_s: float
    slowest_s: float
    real_time_factor: float
    late_blocks: int
    n_blocks: int

    @property
    def text(self) -> str:
        """The figures in a line."""
        return (
            f"Blocks of {1000 * self.block_s:.0f} ms, latency {1000 * self.latency_s:.0f} ms (block included); "
            f"real-time factor {self.real_time_factor:.2f}, slowest block {1000 * self.slowest_s:.0f} ms, "
            f"{self.late_blocks} of {self.n_blocks} late."
        )


def stream(
    voice: LiveVoice,
    samples: Float[np.ndarray, " n"],
    block_samples: int,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Float[np.ndarray, " n"], StreamReport]:
    """Feed a recording at the instrument's rate block by block; the result is in time with it and as long."""
    report, made, seconds = reporter(progress, cancelled), [], []
    for start in range(0, len(samples), block_samples):
        report(start / len(samples), "converting")
        began = time.perf_counter()
        made.append(voice.process(samples[start : start + block_samples]))
        seconds.append(time.perf_counter() - began)
    result = np.concatenate([*made, voice.finish()])[voice.latency_samples :]
    block_s = block_samples / voice.rate
    figures = StreamReport(
        block_s,
        block_s + voice.latency_samples / voice.rate,
        max(seconds),
        sum(seconds) * voice.rate / len(samples),
        sum(s > block_s for s in seconds),
        len(seconds),
    )
    return fit_length(result, len(samples)), figures
