"""The shareable instrument file: saving, and safe loading.

One zip with exactly ``instrument.json`` (settings, statistics, licence, consent, checksums), ``weights.safetensors``
(float32, no optimiser) and ``config.gin`` (a record for people, never parsed). Loading executes nothing in it: names,
sizes, types, shapes and values are compared with the architecture. The zip's comment holds the SHA-256 of all before
it; a zip packed anew by a file manager has none and is verified by its members' checksums.
"""

import dataclasses
import hashlib
import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from svclib import __version__
from svclib.features.extract import FeatureSettings
from svclib.features.f0 import F0_METHODS
from svclib.models import instrument_archive, layers
from svclib.models.ddsp.model import DdspSettings
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.diffwave.model import DiffWaveSettings
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.utils import atomic_store, filesystem, serialization
from svclib.utils.errors import ModelError, first_line, printable
from svclib.utils.serialization import from_dict, strict_json, to_dict

# Settings class of every model kind; its build() makes the model.
KINDS = {
    "ddsp": DdspSettings,
    "diffusion": DiffusionSettings,
    "diffwave": DiffWaveSettings,
    "harmonic": HarmonicSettings,
}
VOCODERS = ("harmonic", "diffwave")  # kinds that make sound of mels and know no voice

ALIKE = 0.5  # cosine of the weights of two instruments; above 0.9 where they have one base, near 0 where not
FORMAT, FORMAT_VERSION = "svclib instrument", 1
LICENCE = "No licence was stated: ask the maker before you publish anything made with this instrument."
CONSENT = (
    "Made for singing with the consent of the person whose voice it is. What it sings is a synthetic voice: say so "
    "wherever you publish it, and never use it to pass for that person."
)


@dataclasses.dataclass(frozen=True)
class Instrument:
    """An opened instrument, its ``model`` in eval mode on the CPU.

    ``features`` say how songs have to be measured for it, ``statistics`` are of the recordings it was trained on,
    ``info`` is that of :func:`save`; ``sha256`` of the whole file distinguishes instruments of equal name.
    """

    name: str
    kind: str
    model: nn.Module
    features: FeatureSettings
    statistics: dict
    info: dict
    sha256: str
    path: Path


@dataclasses.dataclass(frozen=True)
class InstrumentEntry:
    """A file of a folder of instruments: its name, kind and settings, or the sentence why it cannot be used."""

    path: Path
    name: str
    kind: str | None
    info: dict
    problem: str | None
    settings: Any = None

    @property
    def converts(self) -> bool:
        """True for what turns songs into another voice; vocoders and sources of waves are listed but do not."""
        return self.kind is not None and self.kind not in VOCODERS

    @property
    def is_vocoder(self) -> bool:
        """True for what makes sound of a mel; a DiffWave without mel makes sounds of its own."""
        return self.kind in VOCODERS and getattr(self.settings, "condition", "mel") == "mel"


def build_model(settings: Any, features: FeatureSettings, statistics: dict | None, seed: int = 0) -> nn.Module:
    """A model of any kind with its first weights, drawn from ``seed``; torch's global generator stays as it is."""
    return settings.build(features, statistics, seed)


def loss_definition(settings: Any) -> dict:
    """Definition of a model's loss: values compare only where this is equal (FFT sizes and log rule for DDSP)."""
    names = ("fft_sizes", "log_rule", "prediction", "coarse_weight", "vocoder", "vocoder_weight")
    return {"kind": settings.kind, **{n: to_dict(getattr(settings, n)) for n in names if hasattr(settings, n)}}


def f0_definition(features: FeatureSettings) -> dict:
    """The F0 method with the package and version that computes it here."""
    package = F0_METHODS[features.f0_method].package
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {"method": features.f0_method, "package": package, "version": version}


def save(
    path: str | Path,
    model: nn.Module,
    features: FeatureSettings,
    statistics: dict,
    *,
    name: str | None = None,
    config_text: str = "",
    overwrite: bool = False,
    **info: Any,
) -> Path:
    """Write an instrument, weights only, in one atomic step; returns the path that was written.

    A name that is taken becomes ``NAME 2.zip`` unless ``overwrite``. The model, of a kind in ``KINDS``, has the weights
    to ship (a training's EMA); ``features`` and ``statistics`` are those of its dataset, ``name`` is shown in menus (by
    default the file's), and ``config_text``, the gin text of the training, is a record. ``info`` is for people:
    ``created`` (required, ``2026-11-21``), ``trained_steps``, ``validation_loss`` (None where it was not measured),
    ``singers``, ``licence``, ``consent``; ``f0``, :func:`f0_definition` at preparation.

    ModelError if the model is of no known kind, has a weight that is not finite, or if the file would be refused by
    :func:`open`.
    """
    path, settings = Path(path), model.settings
    if path.suffix != ".zip":
        raise ModelError(f"'{path.name}' cannot be an instrument's name; it has to end in .zip.")
    if not statistics:
        raise ModelError("The dataset has no statistics; prepare it again, then export.")
    if KINDS.get(settings.kind) is not type(settings):
        raise ModelError(f"'{settings.kind}' is no kind of instrument; known: {', '.join(KINDS)}.")
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    bad = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise ModelError(f"The weights '{bad[0]}' are not finite numbers; choose an earlier checkpoint.")
    defaults = {
        "trained_steps": 0,
        "validation_loss": None,
        "loss": loss_definition(settings),
        "f0": f0_definition(features),
        "singers": [],
        "licence": LICENCE,
        "consent": CONSENT,
        "versions": {"svclib": __version__, "torch": torch.__version__},
    }
    others = {"weights.safetensors": safetensors.torch.save(tensors), "config.gin": config_text.encode()}
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": filesystem.as_name(path.stem if name is None else name),
        "kind": settings.kind,
        "features": to_dict(features),
        "model": to_dict(settings),
        "statistics": statistics,
        "info": defaults | {k: v for k, v in info.items() if v is not None},
        "members": {k: {"bytes": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in others.items()},
    }
    text = filesystem.json_text(description, indent=1)
    _description(strict_json(text.encode(), "instrument.json"))  # what is written has to open again
    data = instrument_archive.pack({"instrument.json": text.encode(), **others})
    if overwrite:
        return atomic_store.commit_bytes(path, data)
    return atomic_store.commit_new(path, lambda part: atomic_store.commit_bytes(part, data))


# Opening --------------------------------------------------------------------------------------------------------------


def open(path: str | Path) -> Instrument:  # noqa: A001  (instrument.open reads well)
    """Open an instrument made by anybody, its model in eval mode on the CPU with weights that take no gradient.

    The zip is read, never extracted; a ModelError names the file, what is wrong with it, and what to do.
    """
    path = Path(path)
    with instrument_archive.opened(path) as archive:
        name, settings, features, raw = _description(strict_json(archive.read("instrument.json"), "instrument.json"))
        statistics, others = raw["statistics"], {}
        expected = architecture(settings, features, statistics)
        instrument_archive.check_size(expected, archive.size("weights.safetensors"))
        archive.check_seal()
        for member, entry in raw["members"].items():
            others[member] = archive.read(member)
            if (len(others[member]), hashlib.sha256(others[member]).hexdigest()) != (entry["bytes"], entry["sha256"]):
                raise ModelError(f"{member} is damaged (its checksum differs); download the file again.")
        model = build_model(settings, features, statistics)
        model.load_state_dict(instrument_archive.weights(others["weights.safetensors"], expected), strict=True)
    model = model.eval().requires_grad_(False)
    return Instrument(name, settings.kind, model, features, statistics, raw["info"], archive.sha256, path)


def blend(parts: Sequence[tuple[Instrument, float | int]]) -> Instrument:
    """One instrument of several trained from one base, each with its share: weights and statistics are their mean.

    Name and ``sha256`` list the parts with their shares; singers, settings and path are those of the first. ModelError
    where architectures differ, or where the weights are so unlike each other that there was no common base.
    """
    made, total = [one for one, _ in parts], sum(share for _, share in parts)
    if not made or min(share for _, share in parts) < 0 or not 0 < total < math.inf:
        raise ModelError("The shares of a blend must be 0 or more, and not all 0.")
    shares, first = [share / total for _, share in parts], made[0]
    states = [{k: v for k, v in one.model.state_dict().items() if not k.startswith("codebook.")} for one in made]
    known, directions = _design(first, states[0]), [_direction(state) for state in states]
    for one, state, direction in zip(made[1:], states[1:], directions[1:], strict=True):
        found = _design(one, state)
        for key in sorted(key for key in known | found if known.get(key) != found.get(key)):
            text = f"'{one.name}' has {key} {found.get(key)} where '{first.name}' has {known.get(key)}"
            raise ModelError(f"{text}: only instruments of one architecture can be blended.")
        if float(alike := F.cosine_similarity(direction, directions[0], dim=0)) < ALIKE:
            raise ModelError(
                f"'{one.name}' and '{first.name}' were not trained from the same base (cosine of their weights "
                f"{alike:.2f}), so a mean of them is no voice. Train both with the same --init."
            )
    means = {key: _mean([one.statistics.get(key) for one in made], shares) for key in _BLENDED}
    statistics = {**first.statistics, **means}
    settings: Any = first.model.settings
    if hasattr(settings, "retrieval_size"):  # the codebook belongs to the recordings of one
        settings = dataclasses.replace(settings, retrieval_size=0)
    model = build_model(settings, first.features, statistics)
    mixed = {k: sum(w * state[k] for w, state in zip(shares, states, strict=True)) for k in states[0]}
    model.load_state_dict({k: v.to(states[0][k].dtype) for k, v in mixed.items()})
    name, sha256 = (
        " + ".join(f"{getattr(one, field)} {share:.3g}" for one, share in zip(made, shares, strict=True))
        for field in ("name", "sha256")
    )
    terms = {key: "\n".join(dict.fromkeys(one.info[key] for one in made)) for key in ("licence", "consent")}
    changed = {"model": model.eval().requires_grad_(False), "statistics": statistics, "info": {**first.info, **terms}}
    return dataclasses.replace(first, name=name, sha256=sha256, **changed)


def list_folder(folder: str | Path) -> list[InstrumentEntry]:
    """The ``.zip`` files of a folder by name, each with its description or why it cannot be loaded.

    Reads only the descriptions: weights are checked when one is opened.
    """
    found = []
    for path in sorted(Path(folder).glob("[!.]*.zip"), key=lambda p: p.name.lower()):
        try:
            with instrument_archive.opened(path) as archive:
                name, settings, _, raw = _description(strict_json(archive.read("instrument.json"), "instrument.json"))
            found.append(InstrumentEntry(path, name, settings.kind, raw["info"], None, settings))
        except ModelError as error:
            found.append(InstrumentEntry(path, path.stem, None, {}, str(error)))
    return found


def describe(instrument: Instrument) -> str:
    """An instrument in a few lines of plain text."""
    info, pitch = instrument.info, instrument.statistics.get("f0_midi") or {}
    loss = "" if info["validation_loss"] is None else f", held-out loss {info['validation_loss']:.3f}"
    scales = f" ({len(info['loss']['fft_sizes'])} FFT sizes)" if loss and "fft_sizes" in info["loss"] else ""
    lines = [
        f"{instrument.name}: a {instrument.kind} instrument, file {instrument.sha256[:8]}, made {info['created']}",
        f"voice of {', '.join(info['singers']) or 'nobody named'}; trained {info['trained_steps']} steps{loss}{scales}",
        f"{instrument.features.sample_rate_hz} Hz, F0 by {info['f0']['method']} {info['f0']['version']}, "
        f"{sum(p.numel() for p in instrument.model.parameters()) / 1e6:.2f} million weights",
        info["licence"],
        info["consent"],
    ]
    if isinstance(pitch.get("mean_note"), float):
        lines.insert(2, f"its notes lie around MIDI {pitch['mean_note']:.1f}")
    return "\n".join(" ".join(printable(line, lines=True).split()) for line in lines)


# Inside ---------------------------------------------------------------------------------------------------------------

_INFO: dict[str, Any] = {"trained_steps": int, "validation_loss": (float, int, type(None)), "singers": list}
_INFO |= dict.fromkeys(("loss", "versions"), dict) | dict.fromkeys(("licence", "consent", "created"), str)
_INFO |= {"f0": dict.fromkeys(("method", "package", "version"), str)}
_FIELDS: dict[str, Any] = {"format": str, "format_version": int, "name": str, "kind": str, "info": _INFO}
_FIELDS |= dict.fromkeys(("features", "model", "statistics"), dict)
_FIELDS |= {"members": dict.fromkeys(instrument_archive.MEMBERS[1:], {"bytes": int, "sha256": str})}


def _description(raw: Any) -> tuple[str, Any, FeatureSettings, dict]:
    """``instrument.json`` checked: (name, model settings, feature settings, the whole)."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ModelError("its instrument.json is not one of svclib's.")
    version = raw.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise ModelError(f"it has format {version}, made by a newer svclib; update svclib to open it.")
    serialization.check_fields(raw, _FIELDS, "instrument.json")
    if version != FORMAT_VERSION:
        raise ModelError(f"format {version} was never made by svclib.")
    if raw["kind"] not in KINDS:
        raise ModelError(f"its kind '{raw['kind'][:40]}' is unknown here; known: {', '.join(KINDS)}. Update svclib.")
    name = raw["name"]
    if not filesystem.is_name(name):
        raise ModelError(f"its name is empty, longer than {filesystem.MAX_NAME} characters or not printable.")
    info = raw["info"]
    serialization.check_plain(info, "info", items=4000)
    if info["trained_steps"] < 0 or not all(map(filesystem.is_name, info["singers"])):
        raise ModelError("info: trained_steps or singers are out of range.")
    if not isinstance(info["loss"].get("fft_sizes", []), list):
        raise ModelError("info.loss: fft_sizes is not a list.")
    serialization.check_statistics(raw["statistics"])
    features = from_dict(FeatureSettings, raw["features"], "features")
    settings = from_dict(KINDS[raw["kind"]], raw["model"], "model")
    if settings.kind != raw["kind"]:
        raise ModelError(f"model: kind is '{settings.kind}' but the instrument says '{raw['kind']}'.")
    return name, settings, features, raw


def architecture(settings: Any, features: FeatureSettings, statistics: dict) -> dict[str, torch.Tensor]:
    """Names, shapes and types of the weights, on torch's meta device: nothing is allocated."""
    try:
        with torch.device("meta"), layers.skip_init():
            return build_model(settings, features, statistics).state_dict()
    except (ValueError, RuntimeError, TypeError, OverflowError, MemoryError, KeyError) as error:
        raise ModelError(f"model: these settings build no model ({first_line(error)}).") from None


_BLENDED = ("f0_midi", "loudness_db", "loudness_quantiles_db")  # statistics that conversions use
SAMPLING = {"sampler", "sampler_steps", "temperature", "temperature_tilt"}  # settings that only sampling reads


def _design(one: Instrument, state: dict) -> dict[str, Any]:
    """Features, settings and shapes of weights, which instruments must have in common to be blended."""
    own = {k: v for k, v in to_dict(one.model.settings).items() if k not in SAMPLING | {"retrieval_size"}}
    shapes = {f"the shape of {k}": tuple(v.shape) for k, v in state.items()}
    return {**to_dict(one.features), "singers": len(one.statistics.get("singers") or ()), **own, **shapes}


def _direction(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The trained matrices of a model as one vector; the content encoder may be the same in all."""
    kept = (v.flatten().double() for k, v in sorted(state.items()) if v.ndim > 1 and not k.startswith("content."))
    return torch.cat(list(kept))


def _mean(values: list, shares: list[float]) -> Any:
    """Weighted mean of numbers in tables and lists of one form; the first value where there are no numbers."""
    first = values[0]
    if isinstance(first, dict):
        return {k: _mean([v[k] for v in values], shares) for k in first if all(k in (v or {}) for v in values)}
    if isinstance(first, list) and all(len(v or ()) == len(first) for v in values):
        return [_mean(list(items), shares) for items in zip(*values, strict=True)]
    numbers = all(type(v) in (int, float) for v in values)
    return sum(w * v for w, v in zip(shares, values, strict=True)) if numbers else first
