"""Content features: per-frame vectors of a pretrained network, measured when a dataset is prepared or a song is loaded.

What measures them is an :class:`Extractor`, registered by kind. ``contentvec`` (Qian et al. 2022,
https://arxiv.org/abs/2204.09224) is HuBERT (Hsu et al. 2021) trained to be independent of the speaker. Its weights are
read through ``transformers`` from the hub, a local folder or a link; they are never part of a dataset or an
instrument, which only name their source and carry a fingerprint of them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from svclib.audio import io as audio
from svclib.audio import units
from svclib.utils import atomic_store, budget, download, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, ModelError, ProgressCallback, StorageError, first_line
from svclib.utils.serialization import Settings, setting

SAMPLE_RATE_HZ = 16000
CHUNK_S, HALO_S = 20, 2  # whole seconds: chunks begin on the grid of the extractor
SILENCE_RMS = 1e-3  # -60 dB
WHERE = "SVCLIB_CONTENTVEC"  # environment variable: a folder with the weights, of any origin
KNOWN = (  # on the hub; an instrument or dataset of others may have them downloaded unasked
    "lengyue233/content-vec-best",
    "facebook/hubert-base-ls960",
    "facebook/hubert-large-ll60k",
    "facebook/hubert-xlarge-ll60k",
)
_allowed: set[str] = set()  # sources in this person's own preset
_UNUSED = {"masked_spec_embed"}  # of training alone; missing in some files


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A loaded network whose frame ``j`` sees the samples ``[j * hop, j * hop + reach)`` at 16 kHz."""

    model: Any
    fingerprint: str  # 16 hexadecimal digits of a SHA-256 of its weights, independent of the file format
    hop_samples: int  # divides 16000
    reach_samples: int
    dims: int  # size of a vector
    n_layers: int  # to choose from
    finish: ClassVar[Any] = None  # a method: vectors of the frames and whether they sound -> vectors of a recording

    def __call__(self, samples: Float[np.ndarray, " n"], layer: int) -> Float[np.ndarray, "frames dims"]:
        """The vectors of a chunk at 16 kHz, full scale 1."""
        raise NotImplementedError


# Loaders of extractors by kind; ``loader(source)`` raises a ModelError that names what is missing and the remedy.
EXTRACTORS: dict[str, Callable[[str], Extractor]] = {}


def register(kind: str) -> Callable:
    """Decorator that offers a loader of extractors under a name, the value of ``UnitSettings.kind``."""

    def add(loader: Callable[[str], Extractor]) -> Callable[[str], Extractor]:
        EXTRACTORS[kind] = loader
        return loader

    return add


@dataclasses.dataclass(frozen=True)
class UnitSettings(Settings):
    """The network and layer that measure the content features."""

    source: str = "lengyue233/content-vec-best"  # on the Hugging Face hub, a folder, or a link to a zip of one
    layer: int = setting(12, 1, 48)  # of the transformer, counted from 1
    dims: int = setting(768, 1, 4096)  # size of a vector; has to be that of the network
    fingerprint: str = ""  # of the weights; empty until a dataset is prepared with them, then others are refused
    kind: str = setting("contentvec", choices=EXTRACTORS, optional=True)

    def __post_init__(self):
        super().__post_init__()
        if not self.source:
            raise ConfigError("UnitSettings.source is empty; name an encoder on the hub, a folder or a link.")

    def same_but_for_fingerprint(self, other: "UnitSettings | None") -> bool:
        """True if ``other`` has the same settings apart from the fingerprint and the place of a folder."""
        bare = [s and dataclasses.replace(s, fingerprint="", source=_public(s.source)) for s in (self, other)]
        return bare[0] == bare[1]


def extract(
    samples: np.ndarray,
    sample_rate_hz: int,
    hop_samples: int,
    settings: UnitSettings,
    progress: ProgressCallback | None = None,
) -> Float[np.ndarray, "frames dims"]:
    """Content features of a recording, interpolated linearly to the frame centres of the grid, in half precision.

    Long recordings are measured in chunks of 20 s with 2 s of context on both sides. Attention reaches further and the
    first layer is normalised over all its input, so chunks do not equal the whole: a small HuBERT with random weights
    gave a mean difference of 0.06 standard deviations on a minute of singing. ``samples`` are float with full scale 1,
    or int16, at the rate of the grid. ModelError as :func:`load`.
    """
    n_frames = units.frame_count(len(samples), hop_samples)
    if n_frames == 0:
        return np.zeros((0, settings.dims), np.float16)
    encoder = load(settings)
    n_chunks = max(1, math.ceil((len(samples) / sample_rate_hz - HALO_S) / CHUNK_S))  # a short rest joins the last
    per_s, parts = SAMPLE_RATE_HZ // encoder.hop_samples, []
    for i in range(n_chunks):
        if progress is not None:
            progress(i / n_chunks, "measuring the content")
        low, last = max(0, i * CHUNK_S - HALO_S), i == n_chunks - 1
        high = None if last else ((i + 1) * CHUNK_S + HALO_S) * sample_rate_hz
        chunk = audio.resample(audio.as_float(samples[low * sample_rate_hz : high]), sample_rate_hz, SAMPLE_RATE_HZ)
        first = (i * CHUNK_S - low) * per_s
        parts.append(encoder(chunk, settings.layer)[first : None if last else first + CHUNK_S * per_s])
    found, centres_s = np.concatenate(parts), units.frame_centers_s(n_frames, hop_samples, sample_rate_hz)
    position = (centres_s * SAMPLE_RATE_HZ - encoder.reach_samples / 2) / encoder.hop_samples
    position = np.clip(position, 0, len(found) - 1)  # the end vectors are held
    left = np.minimum(position.astype(int), max(0, len(found) - 2))
    right = np.minimum(left + 1, len(found) - 1)
    share = (position - left).astype(np.float32)[:, None]
    vectors = found[left] * (1 - share) + found[right] * share
    if encoder.finish:
        frames = audio.as_float(samples[: n_frames * hop_samples]).reshape(n_frames, hop_samples)
        vectors = encoder.finish(vectors, np.square(frames).mean(1) > SILENCE_RMS**2)
    return vectors.astype(np.float16)


# Weights --------------------------------------------------------------------------------------------------------------


def allow(settings: UnitSettings) -> None:
    """Mark these settings as the person's own: their source may be fetched from the hub.

    A link is fetched only where the environment variable :data:`WHERE` names it: presets are passed on.
    """
    if not download.is_link(settings.source):
        _allowed.add(settings.source)


def pinned(settings: UnitSettings) -> UnitSettings:
    """The settings of a person's own preset with the fingerprint of the weights at their source.

    Of a local folder they keep the name: where it is, is noted for :func:`load` in a file of this user.
    """
    allow(settings)
    found, source = load(settings).fingerprint, _public(settings.source)
    if source != settings.source:
        places = filesystem.make_own_folder(filesystem.state_folder("encoders"))
        atomic_store.write_json(places / f"{found}.json", os.path.abspath(settings.source))
    return dataclasses.replace(settings, fingerprint=found, source=source)


def _public(source: str) -> str:
    """A source without the place of a local folder; that of Drive is the same on every machine."""
    local = Path(source).is_dir() and not filesystem.on_drive(source)
    return os.path.basename(os.path.abspath(source)) if local else source  # also of "." a name


def _place(settings: UnitSettings) -> str:
    """The source of an encoder, or the local folder in which its fingerprint was found."""
    note = filesystem.state_folder("encoders") / f"{filesystem.safe_name(settings.fingerprint)}.json"
    if settings.fingerprint and filesystem.is_own_folder(note.parent) and note.is_file():
        with contextlib.suppress(StorageError):
            place = filesystem.read_json(note)
            if isinstance(place, str) and Path(place).name == settings.source and Path(place).is_dir():
                return place
    return settings.source


def load(settings: UnitSettings) -> Extractor:
    """The network of these settings, on the GPU where there is one; the last one is kept for the next call.

    Weights that are not on this machine are downloaded only if their source is in :data:`KNOWN`, in the environment
    variable ``SVCLIB_CONTENTVEC`` (which goes before ``settings.source``) or in a person's own preset (:func:`allow`):
    an instrument from others causes no download. A ModelError refuses weights that are missing, or have other
    dimensions or another fingerprint.
    """
    encoder = EXTRACTORS[settings.kind](_place(settings))
    if encoder.dims != settings.dims or settings.layer > encoder.n_layers:
        text = f"The content encoder '{settings.source}' has {encoder.n_layers} layers of {encoder.dims} numbers,"
        text = f"{text} not layer {settings.layer} of {settings.dims}."
        raise ModelError(text, hint="Set layer and dims to match it.")
    if settings.fingerprint and encoder.fingerprint != settings.fingerprint:
        text = f"The weights of the content encoder '{settings.source}' have the fingerprint {encoder.fingerprint}, but"
        remedies = {"contentvec": f"Name a folder with those in the environment variable {WHERE}."}
        hint = remedies.get(settings.kind, "Install those.")
        raise ModelError(f"{text} {settings.fingerprint} was trained with.", hint=hint)
    return encoder


class Hubert(Extractor):
    """A ``transformers.HubertModel`` in eval mode, float32."""

    @torch.inference_mode()
    def __call__(self, samples: Float[np.ndarray, " n"], layer: int) -> Float[np.ndarray, "frames dims"]:
        """The vectors of a chunk; one shorter than a frame is padded with zeros."""
        samples = np.pad(samples, (0, max(0, self.reach_samples - len(samples)))).astype(np.float32)
        audio_16k = torch.from_numpy(samples)[None].to(next(self.model.parameters()).device)
        return self.model(audio_16k, output_hidden_states=True).hidden_states[layer][0].float().cpu().numpy()


@register("contentvec")
def _contentvec(source: str) -> Hubert:
    return _loaded(os.environ.get(WHERE) or source)


@functools.lru_cache(maxsize=1)
def _loaded(source: str) -> Hubert:
    try:
        from transformers import HubertConfig, HubertModel
    except ImportError:
        hint = "Install it (pip install transformers) and start again."
        raise ModelError("The content encoder 'contentvec' needs the package transformers.", hint=hint) from None
    may_fetch = source in {*KNOWN, *_allowed, os.environ.get(WHERE)}
    where = _unpacked(source, may_fetch) if download.is_link(source) else source
    local, tried = Path(where).is_dir(), None
    with _quiet_transformers():
        # an earlier download needs no network
        for offline in (True, False) if may_fetch and not local else (True,):
            try:
                config = HubertConfig.from_pretrained(where, local_files_only=offline)
                if config.model_type != "hubert":
                    break
                _check_size(source, config, Path(where) if local else None)
                options: dict[str, Any] = {"local_files_only": offline, "output_loading_info": True}
                loaded: Any = HubertModel.from_pretrained(where, config=config, dtype=torch.float32, **options)
                return _checked(source, *loaded)
            except ModelError:
                raise
            except Exception as error:  # of hub, network and damaged files
                tried = error
    if tried is not None and not may_fetch and not local:
        raise _unasked(source)
    why = f"{type(tried).__name__}: {first_line(tried, 120)}" if tried else "no HuBERT"
    hint = "Connect to the network, or name a folder with its config.json and weights in the environment variable"
    raise ModelError(f"The content encoder '{source}' could not be loaded ({why}).", hint=f"{hint} {WHERE}.")


@contextlib.contextmanager
def _quiet_transformers():
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _unasked(source: str) -> ModelError:
    hint = f"If you trust it, set the environment variable {WHERE} to that name, or to a folder with its files."
    return ModelError(
        f"The content encoder '{source}' is unknown to svclib, so it is not downloaded unasked.", hint=hint
    )


def _unpacked(link: str, may_fetch: bool) -> str:
    """The folder with the config.json of a downloaded zip."""
    into = filesystem.cache_folder() / "contentvec"
    if not may_fetch and not download.fetched(link, into):
        raise _unasked(link)
    homes = [path.parent for path in download.fetch(link, into).rglob("config.json")]
    if len(homes) != 1:
        raise ModelError(f"{link} holds {len(homes)} files config.json; give a zip of one encoder, as published.")
    return str(homes[0])


def _check_size(source: str, config: Any, folder: Path | None) -> None:
    """Refuse a network that its files cannot hold, before its memory is asked for."""
    from transformers import HubertModel

    shapes = (config.num_hidden_layers, config.hidden_size / 100, config.intermediate_size / 400, len(config.conv_dim))
    if not all(0 < x <= 48 for x in shapes):
        raise ModelError(f"The config.json of the content encoder '{source}' asks for too large a network.")
    with torch.device("meta"):
        n_bytes = 2 * sum(value.numel() for value in HubertModel(config).parameters())  # in half precision at least
    budget.require("content encoder", f"'{source}'", Cost(memory_bytes=n_bytes), error=ModelError)
    held = math.inf if folder is None else sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if n_bytes > held:
        text = f"The config.json of the content encoder '{source}' asks for {n_bytes / 1e6:.0f} MB of weights,"
        raise ModelError(f"{text} more than the {held / 1e6:.0f} MB that are there.", hint="Fetch it again.")


def _checked(source: str, model: Any, info: dict) -> Hubert:
    odd = sorted(set(info["missing_keys"]) - _UNUSED) or sorted(map(str, info["mismatched_keys"]))
    if odd:
        text = f"The weights of the content encoder '{source}' do not fit its config.json:"
        raise ModelError(f"{text} {odd[0][:100]} is missing or of another shape.", hint="Fetch it again.")
    config, reach, hop = model.config, 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        reach, hop = reach + (kernel - 1) * hop, hop * stride
    if SAMPLE_RATE_HZ % hop:
        raise ModelError(f"The content encoder '{source}' has a hop of {hop} samples; it has to divide 16000.")
    fingerprint = _fingerprint(model)
    model = model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    return Hubert(model, fingerprint, hop, reach, config.hidden_size, config.num_hidden_layers)


def _fingerprint(model: torch.nn.Module) -> str:
    """Hash of names and values of the weights, in the same spelling whichever version of torch named them."""
    tensors = {}
    for name, value in model.state_dict().items():
        stem, _, which = name.partition("parametrizations.weight.original")
        tensors[stem + {"0": "weight_g", "1": "weight_v"}[which] if which else name] = value
    digest = hashlib.sha256()
    for name in sorted(tensors.keys() - _UNUSED):
        value = tensors[name].float().contiguous().cpu().numpy()
        digest.update(f"{name} {value.shape} ".encode() + value.astype("<f4").tobytes())
    return digest.hexdigest()[:16]
