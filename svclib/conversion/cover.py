"""A cover of a finished song: voice and accompaniment apart, the voice converted, both mixed again.

Separation is optional (extra ``cover``): Hybrid Transformer Demucs (Rouard et al. 2023, arXiv:2211.08553), or any other
:class:`Separator`. Mixing needs no weights: the accompaniment is what the separator left, so that the separated voice
and it add up to the song, and the converted voice takes the level and the place between the speakers of the one it
replaces.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import safetensors
import torch
from jaxtyping import Float

from svclib.audio import io as audio
from svclib.conversion.pipeline import Conversion, limiter_gain, write_with_settings
from svclib.conversion.song import fit_length, require_song_length
from svclib.data import quality
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConversionError, ModelError, ProgressCallback, reporter

MODEL = "htdemucs"
NETWORKS = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs")
LEVEL_WINDOW_S = 0.05
VOICE_RANGE_DB = 40.0  # below the loudest window of the separated voice: not the voice
SILENCE_DB = -80.0
HARMONY_SHARE = 0.1  # of the steady notes with a second pitch in them

Stereo = Float[np.ndarray, "samples channels"]


@runtime_checkable
class Separator(Protocol):
    """Anything that takes a voice out of a mix."""

    name: str
    sample_rate_hz: int

    def __call__(self, samples: Stereo, progress: Callable[[float, str], None]) -> Stereo:
        """The voice in a mix of two channels at ``sample_rate_hz``, as long as the mix."""


class DemucsSeparator:
    """Demucs from its safetensors files; the same sound gives the same voice (no random shifts).

    ``model`` is a folder with ``NAME.yaml`` and the ``.safetensors`` files that it names, or a name on the hub, then
    from its cache; ``download`` fetches what is not there. ModelError where package or weights are missing.
    """

    sample_rate_hz = 44100

    def __init__(self, model: str | Path = MODEL, download: bool = False):
        try:
            import yaml
            from demucs import apply, hf
        except ImportError as error:
            hint = "pip install 'svclib[cover]'; or separate with another program and give both of its files "
            hint += "(--accompaniment; in notebook 03 the menu Accompaniment)."
            raise ModelError(f"To take a voice out of a mix needs the package demucs ({error}).", hint=hint) from None
        described = [path.name for path in sorted(Path(model).glob("*.yaml"))] or [f"{Path(model).name}.yaml"]
        bag = yaml.safe_load(_file(model, described[0], download).read_text(encoding="utf-8"))
        paths = [_file(model, f"{part}.safetensors", download) for part in bag["models"]]
        networks = [hf.load_safetensors_model(_checked(path)) for path in paths]
        self._apply, self.name = apply.apply_model, f"demucs {Path(model).name}"
        self._model = apply.BagOfModels(networks, bag.get("weights"), bag.get("segment")).eval()
        if "vocals" not in self._model.sources or self._model.samplerate != self.sample_rate_hz:
            raise ModelError(f"'{model}' separates {', '.join(self._model.sources)}; a model with 'vocals' is needed.")

    def __call__(self, samples: Stereo, progress: Callable[[float, str], None]) -> Stereo:
        """See :class:`Separator`."""
        mix = torch.from_numpy(np.ascontiguousarray(samples.T))
        mean, std = mix.mean(), mix.std() + 1e-8

        def step(state: dict[str, Any]) -> None:
            done = state["model_idx_in_bag"] + state["segment_offset"] / max(1, state["audio_length"])
            progress(done / state["models"], "separating the voice")

        options = {"shifts": 0, "split": True, "overlap": 0.25, "callback": step}
        arguments = {"audio_length": mix.shape[-1]}
        with torch.no_grad():
            parts = self._apply(self._model, ((mix - mean) / std)[None], **options, callback_arg=arguments)[0]
        voice = parts[self._model.sources.index("vocals")] * std + mean
        return voice.T.numpy()


def _file(model: str | Path, name: str, download: bool) -> Path:
    """A file of a model: in its folder, or of the hub's repository."""
    if Path(model).is_dir():
        path = Path(model) / name
        if not path.is_file():
            hint = "Give a folder of Demucs' .yaml and .safetensors files."
            raise ModelError(f"'{model}' has no '{name}'.", hint=hint)
        return path
    from demucs.hf import hf_repo_name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(f"adefossez/{hf_repo_name(str(model))}", name, local_files_only=not download))
    except LocalEntryNotFoundError:
        hint = "Fetch them once (--download; in notebook 03 the menu Accompaniment), or give their folder"
        raise ModelError(f"The weights of '{model}' are not on this machine.", hint=f"{hint} (--separator).") from None


def _checked(path: Path) -> Path:
    """The file, if it names one of Demucs' own networks: its loader imports whatever class is named."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("klass") not in NETWORKS or "structure" in metadata:
        raise ModelError(f"'{path.name}' is no network of Demucs that is stored as plain numbers.")
    return path


@dataclasses.dataclass(frozen=True, eq=False)
class Stems:
    """A song in two parts, ``[samples, 2]`` each, that add up to it."""

    voice: Stereo
    accompaniment: Stereo
    sample_rate_hz: int


def separate(
    path: str | Path,
    separator: Separator,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Stems:
    """Take a finished song apart, at the separator's sample rate."""
    report, rate_hz = reporter(progress, cancelled), separator.sample_rate_hz
    report(0.0, f"reading {Path(path).name}")
    song = read_stereo(path, rate_hz)
    voice = separator(song, lambda fraction, text: report(0.02 + 0.96 * fraction, text))
    if voice.shape != song.shape or not np.isfinite(voice).all():
        raise ConversionError(f"{separator.name} gave {voice.shape} samples for {song.shape}, or some are not finite.")
    return Stems(voice, song - voice, rate_hz)


def save_stems(stems: Stems, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write ``NAME - voice.wav`` and ``NAME - accompaniment.wav``; where one is taken, both get the same number.

    Both are turned down by as much if one would clip, so that they still add up to the song.
    """
    gain = limiter_gain(stems.voice, stems.accompaniment)
    names = (atomic_store.numbered(Path(folder) / f"{name} - {part}.wav") for part in ("voice", "accompaniment"))
    voice, rest = next(pair for pair in zip(*names, strict=True) if not any(path.exists() for path in pair))
    voice = audio.write(voice, stems.voice * gain, stems.sample_rate_hz, f"voice of {name}")
    return voice, audio.write(rest, stems.accompaniment * gain, stems.sample_rate_hz, f"accompaniment of {name}")


def open_stems(voice: str | Path, accompaniment: str | Path) -> Stems:
    """Stems of any program, at the accompaniment's rate and length; ConversionError where they cannot be one song."""
    rate_hz = audio.probe(accompaniment).sample_rate_hz
    vocals, rest = (read_stereo(path, rate_hz) for path in (voice, accompaniment))
    if abs(len(vocals) - len(rest)) > 0.1 * max(len(vocals), len(rest)):
        raise ConversionError(
            f"The voice lasts {len(vocals) / rate_hz:.1f} s and the accompaniment {len(rest) / rate_hz:.1f} s; they "
            "are not of one song, or one of them was cut. Give both as the separation made them."
        )
    return Stems(fit_length(vocals, len(rest)), rest, rate_hz)


def read_stereo(path: str | Path, sample_rate_hz: int) -> Stereo:
    """A file as two channels: one is doubled, of more the first two are taken."""
    info = audio.survey(path).info
    require_song_length(info)
    samples = audio.resample(np.concatenate(list(audio.blocks(path)))[:, :2], info.sample_rate_hz, sample_rate_hz)
    return np.repeat(samples, 2, axis=1) if samples.shape[1] == 1 else samples


def mixture_share(path: str | Path) -> float:
    """Share of the steady notes with a second pitch in them; 0 where there are too few."""
    return quality.examine([path]).files[0].mixture_share or 0.0


def harmony_warning(path: str | Path) -> str:
    """A sentence if a separated voice is more than one voice; else empty."""
    share = mixture_share(path)
    if share < HARMONY_SHARE:
        return ""
    return (
        f"In {100 * share:.0f} % of the notes of the voice another pitch sounds: a choir, a double or an instrument. "
        "Conversion follows one pitch; a model that separates lead and backing vocals gives a cleaner result."
    )


def levels_db(samples: Float[np.ndarray, " samples"], sample_rate_hz: int) -> np.ndarray:
    """RMS in windows of 50 ms, dB of full scale; -120 in silence."""
    window = round(LEVEL_WINDOW_S * sample_rate_hz)
    cut = fit_length(samples, max(1, len(samples) // window) * window).reshape(-1, window)
    return 10 * np.log10(np.square(cut, dtype=np.float64).mean(axis=1) + 1e-12)


def mix(result: Conversion, stems: Stems, voice_db: float | int = 0.0) -> tuple[Stereo, tuple[str, ...]]:
    """A converted voice in place of the one that was taken out.

    Its level (RMS where the separated voice sounds) and its gains left and right (least squares) are those of the
    separated voice; ``voice_db`` is added. Nothing is moved in time. Returns ``[samples, 2]`` at the stems' rate, as
    long as the song, turned down as a whole where it would clip; and warnings.
    """
    rate_hz, warnings = stems.sample_rate_hz, []
    new = fit_length(audio.resample(result.audio, result.sample_rate_hz, rate_hz), len(stems.voice))
    middle = stems.voice.mean(axis=1)
    energy = float(middle @ middle)
    # min over g of |voice_c - g middle|^2: g = <voice_c, middle> / <middle, middle>; their mean is 1
    sides = stems.voice.T @ middle / energy if energy > 0 else np.ones(2)
    old_db, new_db = levels_db(middle, rate_hz), levels_db(new, rate_hz)
    sounding = (old_db > old_db.max() - VOICE_RANGE_DB) & (new_db > new_db.max() - VOICE_RANGE_DB)
    gain = 1.0
    if min(old_db.max(), new_db.max()) > SILENCE_DB and sounding.any():
        powers = [10 * np.log10(np.mean(10 ** (x[sounding] / 10))) for x in (old_db, new_db)]
        gain = 10 ** ((powers[0] - powers[1] + voice_db) / 20)
    mixed = stems.accompaniment + np.outer(new * gain, sides).astype(np.float32)
    down = limiter_gain(mixed)
    if down < 1:
        warnings.append(f"The mix was too loud by {-20 * np.log10(down):.1f} dB and was turned down by as much.")
    shift = round(result.controls.pitch_shift_semitones, 2)
    if shift % 12:
        warnings.append(
            f"The voice was moved by {shift:+g} semitones and the accompaniment was not, so they are in different "
            "keys. Move the voice by whole octaves, or the accompaniment by as much."
        )
    return mixed * down, tuple(warnings)


def save_mix(
    result: Conversion, stems: Stems, folder: str | Path, format: str = "wav", voice_db: float = 0.0
) -> tuple[Path, tuple[str, ...]]:
    """Write :func:`mix` as ``<song> - <instrument> (mix).<format>`` with the settings of the conversion beside it.

    Returns its path, and the warnings of the mix.
    """
    samples, warnings = mix(result, stems, voice_db)
    settings = {**result.settings(), "mix": {"voice_db": voice_db, "warnings": list(warnings)}}
    name = filesystem.safe_name(f"{result.song.name} - {result.instrument_name} (mix)", "mix")
    target = Path(folder) / f"{name}.{format}"
    return write_with_settings(target, samples, stems.sample_rate_hz, settings), warnings
