"""Load a vocoder by name, path or URL; the registry of vocoders.

Three kinds are known: ``harmonic`` (an instrument file of its own, or the vocoder inside a diffusion instrument),
``diffwave`` (an instrument file trained on mels) and ``nsf_hifigan`` (a checkpoint that a person brings along).
"""

import dataclasses
import urllib.parse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from svclib.audio.mel import MelConfig
from svclib.features.extract import Features, FeatureSettings
from svclib.models import instrument
from svclib.models.ddsp.model import Synthesis
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave
from svclib.models.layers import registrar
from svclib.models.vocoders import nsf_hifigan
from svclib.utils import atomic_store, download, filesystem, unzip
from svclib.utils.errors import ModelError, ProgressCallback

CHECKPOINTS = (".ckpt", ".pt", ".pth")


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedVocoder:
    """An opened vocoder of any kind, by the ``harmonic.Vocoder`` protocol.

    Attributes:
        name: For people and messages.
        kind: ``harmonic``, ``diffwave``, ``nsf_hifigan`` or of a registered vocoder.
        features: How sound has to be measured for it; carries the mel contract.
        sha256: Of the file it came from.
        path: That file.
        model: What makes the sound: has :meth:`render`, or is such a function.
        fast: Of a diffwave: use its fast schedule rather than every trained step.
    """

    name: str
    kind: str
    features: FeatureSettings
    sha256: str
    path: Path
    model: Any
    fast: bool = True

    @property
    def contract(self) -> MelConfig:
        """The only mel it understands."""
        return self.features.mel

    @property
    def sample_rate_hz(self) -> int:
        """Of its sound."""
        return self.features.sample_rate_hz

    def record(self) -> dict[str, str]:
        """Name, kind and SHA-256, as conversions keep them; whether a diffwave used every step."""
        every = {"steps": "all"} if self.kind == "diffwave" and not self.fast else {}
        return {"name": self.name, "kind": self.kind, "sha256": self.sha256, **every}

    def render(
        self,
        log_mel: np.ndarray,
        f0_hz: np.ndarray,
        voiced: np.ndarray,
        seed: int = 0,
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Synthesis:
        """The vocoder protocol: a log-mel of this vocoder's configuration, of any length.

        A diffwave without a harmonic source uses no pitch. Only ``harmonic`` has parts; of the others ``harmonic`` is
        the whole sound and ``noise`` is silent. ModelError if the mel is not finite or the shapes do not belong
        together.
        """
        arrays = zip((log_mel, f0_hz, voiced), (np.float32, np.float32, bool), strict=True)
        tracks = [np.ascontiguousarray(x, dtype) for x, dtype in arrays]
        shapes, n_mels = [x.shape for x in tracks], self.contract.n_mels
        fit = shapes[0] == (*shapes[1], n_mels) and shapes[1] == shapes[2] and len(shapes[1]) == 1
        if not (fit and len(tracks[0]) and np.isfinite(tracks[0]).all()):
            raise ModelError(
                f"log_mel {shapes[0]}, f0_hz {shapes[1]} and voiced {shapes[2]} do not fit; expected finite numbers, "
                f"[frames, {n_mels}] and [frames] twice, with at least one frame."
            )
        if self.kind == "diffwave":
            callback, options = diffwave.step_progress(progress), SamplingOptions(seed=seed)
            mel, pitch, sounding = tracks
            sound = diffwave.vocode(self.model, mel, pitch, sounding, options, self.fast, callback, cancelled)
        else:
            render = getattr(self.model, "render", self.model)
            sound = render(*tracks, seed, progress=progress, cancelled=cancelled)
        return sound if isinstance(sound, Synthesis) else Synthesis(sound, sound, np.zeros_like(sound))

    def resynthesize(
        self, measured: Features, seed: int = 0, progress: ProgressCallback | None = None, cancelled: Any = None
    ) -> Synthesis:
        """Copy synthesis: :meth:`render` of measured features; ModelError if they have another mel contract or none."""
        if measured.log_mel is None:
            raise ModelError(f"These features have no log-mel; measure them as the vocoder '{self.name}' says.")
        self.contract.require(measured.settings.mel, f"the vocoder '{self.name}'", "these features")
        return self.render(measured.log_mel, measured.f0_hz, measured.voiced, seed, progress, cancelled)


# Loaders of vocoders that need no file, by the name that :func:`load_vocoder` and ``--vocoder`` take; ``model`` is a
# function ``(log_mel [frames, mels], f0_hz [frames], voiced [frames], seed, progress=, cancelled=)`` that returns
# float32 ``[frames * hop]`` or a Synthesis.
VOCODERS: dict[str, Callable[[], LoadedVocoder]] = {}
register = registrar(VOCODERS)


# Loading --------------------------------------------------------------------------------------------------------------


def load_vocoder(
    where: str | Path, near: str | Path | None = None, fast: bool = True, progress: ProgressCallback | None = None
) -> LoadedVocoder:
    """Load a vocoder by name, path or URL; it is named as the instrument is, or as the checkpoint's file.

    ``where`` is an instrument file of kind ``harmonic``, ``diffwave`` (trained on mels) or ``diffusion`` (for the
    vocoder inside); an NSF-HiFiGAN checkpoint, its folder or its zip; a link to any of these files; the bare name of an
    instrument file in the folder ``near``; or a name in :data:`VOCODERS`. ``fast`` is that of :class:`LoadedVocoder`. A
    ModelError or StorageError names the file, what is wrong with it and what to do.
    """
    if str(where) in VOCODERS:
        return VOCODERS[str(where)]()
    into = filesystem.cache_folder() / "vocoders"
    if download.is_link(where):
        path = download.fetch_file(str(where), into, progress)
        if path.suffix.lower() in CHECKPOINTS:
            beside = download.fetch_file(urllib.parse.urljoin(str(where), "config.json"), into, progress)
            atomic_store.copy_file(beside, path.with_name("config.json"))
    else:
        path = Path(where)
        if not path.exists() and near is not None and (Path(near) / f"{where}.zip").is_file():
            path = Path(near) / f"{where}.zip"
    if not path.exists():
        named = f", or one of these names: {', '.join(VOCODERS)}" if VOCODERS else ""
        raise ModelError(
            f"There is no vocoder '{where}'. Give an instrument file (.zip) of a vocoder, or an NSF-HiFiGAN "
            f"checkpoint with its config.json beside it{named}."
        )
    if path.is_file() and _holds_instrument(path):
        return dataclasses.replace(_of_instrument(instrument.open(path)), fast=fast)
    folder, given = path, path
    try:
        if path.is_file() and path.suffix.lower() == ".zip":
            # one folder for the contents of each zip
            name = f"{filesystem.safe_name(path.stem)} {filesystem.sha256_file(path)[:8]}"
            folder = unzip.unpack(path, into / name, progress)
        path = _checkpoint_in(folder) if folder.is_dir() else path
        model = nsf_hifigan.load(path)
    except ModelError as error:
        raise ModelError(f"In {given.name}: {error}" if given.suffix.lower() == ".zip" else str(error)) from None
    contract = model.contract
    measured = FeatureSettings(
        contract.sample_rate_hz, contract.hop_samples, loudness_n_fft=contract.n_fft, mel=contract
    )
    return LoadedVocoder(model.name, "nsf_hifigan", measured, filesystem.sha256_file(path), path, model)


def _holds_instrument(path: Path) -> bool:
    """True for an instrument file, and for a broken .zip, which loading reports."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except Exception:  # zipfile lets through more than BadZipFile
        return path.suffix.lower() == ".zip"
    if "instrument.json" in names:
        return True
    return path.suffix.lower() == ".zip" and not any(Path(n).name == "config.json" for n in names)


def _of_instrument(opened: instrument.Instrument) -> LoadedVocoder:
    kind, model = opened.kind, opened.model
    if kind == "diffusion":
        kind, model = "harmonic", opened.model.vocoder
    if kind not in ("harmonic", "diffwave") or getattr(model, "contract", None) is None:
        whys = {"diffusion": "trained without a vocoder", "diffwave": "trained without mels"}
        raise ModelError(
            f"'{opened.name}' is {whys.get(opened.kind, f'of kind {opened.kind!r}')}, so it cannot make sound of a "
            "mel. Choose a harmonic or diffwave vocoder, or a diffusion instrument."
        )
    measured = dataclasses.replace(opened.features, units=None)
    return LoadedVocoder(opened.name, kind, measured, opened.sha256, opened.path, model)


def _checkpoint_in(folder: Path) -> Path:
    """The one checkpoint in a folder or below it that has its config.json beside it."""
    beside = [p for config in sorted(folder.rglob("config.json")) for p in sorted(config.parent.iterdir())]
    found = [p for p in beside if p.is_file() and (p.suffix.lower() in CHECKPOINTS or p.name == "model")]
    found = [p for p in found if not p.name.startswith(".")]
    if len(found) != 1:
        raise ModelError(
            f"'{folder}' holds {len(found)} checkpoints ({', '.join(CHECKPOINTS)}) with a config.json beside them; "
            "name one."
        )
    return found[0]
