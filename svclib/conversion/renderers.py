"""How each kind of instrument is asked to sing: what it is given of the song, what comes back.

Each gives audio, harmonic part and noise part, float32 ``[samples]`` at the instrument's rate.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from svclib.conversion.controls import ConditioningTracks, silence_gain
from svclib.conversion.song import Song, fit_length
from svclib.utils.errors import ConversionError, ModelError

_NO_VOICE = {
    "harmonic": "'{name}' is a vocoder: it makes sound of mels and knows no voice. Choose a diffusion instrument of "
    "the same mel, and this as its vocoder.",
    "diffwave": "'{name}' is a diffwave: it makes waves and follows no song by itself. Choose a diffusion instrument "
    "of the same mel, and this as its vocoder if it was trained on mels.",
}


def renderer(instrument: Any) -> Callable[..., list[np.ndarray]]:
    """What sings for a kind: a function of ``(instrument, song, adjusted, seed, progress, cancelled, **sampling)``.

    Raises ConversionError if it sings no songs, or is of a kind that is not known here.
    """
    if instrument.kind in _NO_VOICE:
        raise ConversionError(_NO_VOICE[instrument.kind].format(name=instrument.name))
    if instrument.kind not in _RENDERERS:
        raise ConversionError(
            f"'{instrument.name}' is an instrument of kind '{instrument.kind}', which this version of svclib cannot "
            f"sing with; it knows {', '.join(_RENDERERS)}. Update svclib."
        )
    return _RENDERERS[instrument.kind]


def require_same_grid(instrument: Any, song: Song) -> None:
    """Refuse a song that was measured on other frames than the instrument's: a ConversionError names both sides."""
    theirs, ours = instrument.features, song.features.settings
    for name, unit in (("sample_rate_hz", "Hz"), ("hop_samples", "samples per frame"), ("loudness_n_fft", "samples")):
        if getattr(theirs, name) != getattr(ours, name):
            raise ConversionError(
                f"The song was measured with {name} {getattr(ours, name)} ({unit}), but '{instrument.name}' needs "
                f"{getattr(theirs, name)}. Load the song again with this instrument's feature settings."
            )


def _ddsp(instrument, song: Song, adjusted: ConditioningTracks, seed: int, progress, cancelled) -> list[np.ndarray]:
    """Audio, harmonic and noise part. A last incomplete frame is sung too, with the values of the frame before it."""
    hop = instrument.features.hop_samples
    n_frames = -(-len(song.audio) // hop)

    def held(x):
        return np.pad(x, (0, n_frames - len(x)), mode="edge")

    source = fit_length(song.audio, n_frames * hop) if instrument.model.settings.z_dims else None
    sung = instrument.model.render(
        held(adjusted.f0_hz),
        held(adjusted.voiced),
        held(adjusted.loudness_db),
        audio=source,
        seed=seed,
        progress=progress,
        cancelled=cancelled,
    )
    return [np.asarray(part, dtype=np.float32).reshape(-1) for part in (sung.audio, sung.harmonic, sung.noise)]


def _diffusion(
    instrument, song: Song, adjusted: ConditioningTracks, seed: int, progress, cancelled, sampler=None, **sampling
) -> list[np.ndarray]:
    """As :func:`_ddsp`, through mels: the words come from the song's own."""
    features, own = song.features, instrument.features
    if features.log_mel is None:
        raise ConversionError(f"'{song.name}' was measured without a log-mel. Load it for '{instrument.name}' again.")
    own.mel.require(features.settings.mel, f"'{instrument.name}'", f"'{song.name}'")
    if own.units is not None and own.units != features.settings.units:
        raise ConversionError(f"'{song.name}' has no content features for '{instrument.name}'. Load it again.")
    n_frames = -(-len(song.audio) // own.hop_samples)

    def held(x):
        return np.pad(x, ((0, n_frames - len(x)), *[(0, 0)] * (x.ndim - 1)), mode="edge")

    try:
        sung = instrument.model.render(
            *(held(x) for x in (features.log_mel, features.f0_hz, features.voiced)),
            *(held(x) for x in (adjusted.f0_hz, adjusted.voiced, adjusted.loudness_db)),
            seed=seed,
            progress=progress,
            cancelled=cancelled,
            method=sampler,
            content=None if own.units is None else held(features.content),
            **sampling,
        )
    except ModelError as error:
        raise ConversionError(f"'{instrument.name}': {error}") from None
    parts = [np.asarray(part, dtype=np.float32) for part in (sung.audio, sung.harmonic, sung.noise)]
    gain = silence_gain(features.loudness_db, len(parts[0]), own.hop_samples)
    return parts if gain is None else [part * gain for part in parts]


_RENDERERS: dict[str, Callable[..., list[np.ndarray]]] = {"ddsp": _ddsp, "diffusion": _diffusion}
