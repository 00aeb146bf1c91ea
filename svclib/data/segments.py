"""Segments of recordings: streaming decoder, cuts on the frame grid, and feature extraction with context."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from svclib.data import shards
from svclib.features import extract
from svclib.utils.errors import DatasetError

SEGMENT_S = 160.0
CONTEXT_S = 2.0


def cuts(n_samples: int, settings: extract.FeatureSettings) -> list[tuple[int, int, int, int]]:
    """Segments of a recording as (start, stop, start with context, stop with context), in samples.

    Cuts and contexts lie on the frame grid and, if possible, on multiples of 80 ms, common to all pitch trackers (steps
    of 16 and 10 ms), so that features of segments equal those of the whole recording.
    """
    rate, hop = settings.sample_rate_hz, settings.hop_samples
    unit = math.lcm(hop, 2 * rate // math.gcd(2 * rate, 25))  # the smallest whole number of samples that is n * 80 ms
    unit = unit if unit < 30 * rate else hop
    length = max(1, round(SEGMENT_S * rate / unit)) * unit
    context = math.ceil(CONTEXT_S * rate / unit) * unit
    n_segments = max(1, math.ceil((n_samples - context) / length))  # a rest shorter than the context joins the last
    bounds = [i * length for i in range(n_segments)] + [n_samples]
    return [(a, b, max(0, a - context), min(n_samples, b + context)) for a, b in zip(bounds, bounds[1:], strict=False)]


def measure(audio_int16: np.ndarray, cut: tuple[int, int, int, int], settings: extract.FeatureSettings) -> dict:
    """Audio and features of one segment; ``audio_int16`` includes its context."""
    start, stop, from_sample, _ = cut
    hop = settings.hop_samples
    found = extract.extract(audio_int16.astype(np.float32) / shards.FULL_SCALE, settings)
    frames = slice((start - from_sample) // hop, (start - from_sample) // hop + (stop - start) // hop)
    arrays = {name: getattr(found, shards.FEATURES.get(name, name)) for name in shards.DTYPES if name != "audio"}
    arrays = {name: value[frames] for name, value in arrays.items() if value is not None}
    return {"audio": audio_int16[start - from_sample : stop - from_sample], **arrays}


class ResampledStream:
    """Streaming decoder: a recording as 16-bit audio at the dataset's rate, ``n_samples`` long, read once.

    ``blocks`` are float32 at the rate of the file with full scale 32767; ``notes`` are messages about the recording.
    """

    def __init__(self, n_samples: int, rate_in_hz: int, rate_out_hz: int, blocks: Iterable, notes: list[str]):
        self.n_samples, self.notes = n_samples, notes
        self._rates, self._blocks = (rate_in_hz, rate_out_hz), blocks
        self._stream, self._held, self._start = self._pieces(), list[np.ndarray](), 0

    def _resampled(self) -> Iterator[np.ndarray]:
        rate_in, rate_out = self._rates
        if rate_in == rate_out:
            yield from self._blocks
            return
        stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32")
        for block in self._blocks:
            yield stream.resample_chunk(np.ascontiguousarray(block, np.float32))
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)

    def _pieces(self) -> Iterator[np.ndarray]:
        left = self.n_samples
        for piece in self._resampled():
            piece = piece[:left]
            yield np.clip(np.rint(piece), -shards.FULL_SCALE, shards.FULL_SCALE).astype(np.int16)
            left -= len(piece)
        if left > 0.01 * self._rates[1]:
            raise DatasetError("it changed while it was read; wait until it is complete, then prepare again")
        yield np.zeros(left, np.int16)  # a resampler may end a sample early

    def take(self, start: int, stop: int) -> np.ndarray:
        """Samples ``start`` to ``stop``, int16; sequential access only: ``start`` must not decrease."""
        have = self._start + sum(map(len, self._held))
        while have < stop:
            self._held.append(next(self._stream))
            have += len(self._held[-1])
        joined = np.concatenate(self._held)[start - self._start :]
        self._held, self._start = [joined], start
        return joined[: stop - start].copy()
