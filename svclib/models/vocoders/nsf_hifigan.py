"""The community's NSF-HiFiGAN vocoders, read from weights that a person brings along.

Generators of 2022.12, 2024.02 (``mini_nsf`` false) and PC-NSF-HiFiGAN of 2025.02 (``mini_nsf`` true): HiFi-GAN (Kong et
al. 2020, section 2.2) whose upsampling stages also receive an excitation made from the F0 (neural source-filter, Wang
et al. 2019, section III-A). Nothing in a checkpoint can run, and no network is built before names and shapes of its
weights are those that the ``config.json`` beside it asks for. The published weights are for non-commercial use.
"""

import dataclasses
import json
import math
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from svclib.audio.mel import MelConfig
from svclib.features.f0 import fill_unvoiced
from svclib.models import instrument_archive, layers
from svclib.models.ddsp.model import Synthesis
from svclib.models.layers import Frames, LogMels, Samples
from svclib.utils.errors import ConfigError, ModelError, printable, raise_if_cancelled
from svclib.utils.serialization import Settings, from_dict, setting

SLOPE = 0.1  # of the leaky ReLUs, but 0.01 before the last layer
N_SINES, SINE, VOICED_NOISE, UNVOICED_NOISE = 9, 0.1, 0.003, 0.1 / 3
NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
MAX_CONFIG_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class NsfSettings(Settings):
    """The fields of ``config.json``, under its own names; the mel always has a natural log and the floor 1e-5.

    ``upsample_rates`` multiply to the hop, and channels halve from stage to stage. With ``mini_nsf`` the source is one
    sine at the rate of the second stage and for it alone, voiced or not; without, nine harmonics with noise at the
    sample rate, for every stage. ``noise_sigma`` is noise added behind the first layer.
    """

    sampling_rate: int = 44100
    hop_size: int = 512
    num_mels: int = setting(128, 1, 1024)
    n_fft: int = 2048
    win_size: int = 2048
    fmin: float = 40.0
    fmax: float = 16000.0
    upsample_rates: tuple[int, ...] = setting((8, 8, 2, 2, 2), 1, 65536)
    upsample_kernel_sizes: tuple[int, ...] = setting((16, 16, 4, 4, 4), 1, 65536)
    upsample_initial_channel: int = setting(512, 1, 4096)
    resblock_kernel_sizes: tuple[int, ...] = setting((3, 7, 11), 1, 65536)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = setting(((1, 3, 5),) * 3, 1, 65536)
    mini_nsf: bool = setting(False, optional=True)  # the oldest config.json have neither of these two
    noise_sigma: float = setting(0.0, 0, 1, optional=True)

    def __post_init__(self):
        super().__post_init__()
        rates, kernels, first = self.upsample_rates, self.upsample_kernel_sizes, self.upsample_initial_channel
        sizes, dilations = self.resblock_kernel_sizes, self.resblock_dilation_sizes
        if not all(1 <= len(x) <= 8 for x in (rates, kernels, sizes, *dilations)):
            raise ModelError("its lists have no numbers, or more than 8.")
        if math.prod(rates) != self.hop_size or len(rates) < 2:
            raise ModelError(f"upsample_rates {rates} do not multiply to hop_size {self.hop_size}.")
        if len(kernels) != len(rates) or any(k < r or (k - r) % 2 for k, r in zip(kernels, rates, strict=False)):
            raise ModelError(f"upsample_kernel_sizes {kernels} do not fit upsample_rates {rates}.")
        if first % 2 ** len(rates):
            raise ModelError(f"upsample_initial_channel is {first}; it has to halve {len(rates)} times.")
        if len(sizes) != len(dilations) or any(k % 2 == 0 for k in sizes):
            raise ModelError(f"resblock_kernel_sizes {sizes} must be odd, with dilations for each.")

    @property
    def contract(self) -> MelConfig:
        """The mel it was trained on."""
        sizes = (self.sampling_rate, self.n_fft, self.win_size, self.hop_size, self.num_mels)
        return MelConfig(*sizes, fmin_hz=self.fmin, fmax_hz=self.fmax)

    @classmethod
    def from_json(cls, record: Any) -> "NsfSettings":
        """The settings of a ``config.json``, whose other entries are about training; ModelError or ConfigError."""
        if not isinstance(record, dict):
            raise ModelError("its config.json is no JSON object.")
        if str(record.get("resblock", "1")) != "1":
            raise ModelError(f"its blocks are of type {str(record['resblock'])[:20]!r}; only type '1' is known.")
        known = {f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record}
        return from_dict(cls, known, "config.json", complete=True)


class ResBlock(nn.Module):
    """Three times: leaky ReLU, dilated convolution, leaky ReLU, convolution, added to what came in."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)
        self.reach = sum((d + 1) * (kernel - 1) // 2 for d in dilations)

    def forward(self, x: Float[Tensor, "batch channels n"]) -> Float[Tensor, "batch channels n"]:
        """The next signal, of the same shape."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class NsfHifigan(nn.Module):
    """The generator, by the ``Vocoder`` protocol; :func:`load` makes one of a checkpoint.

    Names of its tensors are the published ones, without weight normalisation. One frame of sound depends on ``halo``
    frames on either side.
    """

    def __init__(self, settings: NsfSettings, name: str = "nsf_hifigan"):
        super().__init__()
        s, self.settings, self.name, self.contract = settings, settings, name, settings.contract
        self.sample_rate_hz = s.sampling_rate
        channels = [s.upsample_initial_channel // 2**i for i in range(len(s.upsample_rates) + 1)]
        self.conv_pre = nn.Conv1d(s.num_mels, channels[0], 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        reach, rate = 3.0, 1
        for c_in, c_out, r, k in zip(channels, channels[1:], s.upsample_rates, s.upsample_kernel_sizes, strict=False):
            self.ups.append(nn.ConvTranspose1d(c_in, c_out, k, r, padding=(k - r) // 2))
            blocks = [ResBlock(c_out, *b) for b in zip(s.resblock_kernel_sizes, s.resblock_dilation_sizes, strict=True)]
            self.resblocks.extend(blocks)
            reach, rate = reach + k / (r * rate), rate * r
            reach += max(b.reach for b in blocks) / rate
        self.conv_post = nn.Conv1d(channels[-1], 1, 7, padding=3)
        self.halo = math.ceil(reach + 4 / rate) + 2
        if s.mini_nsf:
            self.source_conv = nn.Conv1d(1, channels[2], 1)
        else:
            self.m_source = nn.ModuleDict({"l_linear": nn.Linear(N_SINES, 1)})
            strides = [math.prod(s.upsample_rates[i + 1 :]) for i in range(len(self.ups))]
            self.noise_convs = nn.ModuleList(
                nn.Conv1d(1, c, 2 * n, n, padding=n // 2) if n > 1 else nn.Conv1d(1, c, 1)
                for c, n in zip(channels[1:], strides, strict=True)
            )

    @property
    def source_hop(self) -> int:
        """Samples of the source per frame: the hop, or the product of the first two rates."""
        return math.prod(self.settings.upsample_rates[:2]) if self.settings.mini_nsf else self.settings.hop_size

    def frame_phase(self, f0_hz: Frames) -> Frames:
        """Cycles (float64) that the pitch has run before each frame begins.

        A frame's pitch holds for the frame; with ``mini_nsf`` it moves in a straight line to the next frame's.
        """
        step = f0_hz.double() * self.settings.hop_size / self.sample_rate_hz
        if self.settings.mini_nsf:
            n = self.source_hop
            step = step + (_next(step) - step) / 2 * (n - 1) / n
        return F.pad(step.cumsum(1)[:, :-1], (1, 0)) % 1.0

    def source(
        self,
        f0_hz: Frames,
        following_hz: Frames,
        phase: Frames,
        initial: Float[Tensor, " sines"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch 1 n"]:
        """The excitation signal: ``frames * source_hop`` samples.

        With ``mini_nsf`` one sine of amplitude 1 on straight lines to the pitch of the following frame. Otherwise
        ``tanh(w . s + b)`` of nine harmonics ``s`` of amplitude 0.1, begun at ``initial`` cycles, with noise of 0.003
        if there is a generator; in frames of 0 Hz ``s`` is noise of 0.1 / 3 alone.
        """
        n, like = self.source_hop, self.conv_pre.weight
        count = torch.arange(1, n + 1, dtype=torch.float64, device=f0_hz.device)
        step = f0_hz.double()[..., None] * (self.settings.hop_size / (self.sample_rate_hz * n))
        cycles = phase[..., None] + step * count
        if self.settings.mini_nsf:
            slope = (following_hz - f0_hz).double()[..., None] * (self.settings.hop_size / (self.sample_rate_hz * n))
            cycles = cycles + 0.5 * slope * count * (count - 1) / n
            return torch.sin(2 * math.pi * cycles).flatten(1)[:, None].to(like)
        number = torch.arange(1, N_SINES + 1, dtype=torch.float64, device=f0_hz.device)
        cycles = cycles[..., None] * number
        if initial is not None:
            cycles = cycles + initial.to(cycles)
        voiced = (f0_hz > 0).to(like)[..., None, None]
        sines = SINE * torch.sin(2 * math.pi * (cycles % 1.0)).to(like) * voiced
        if generator is not None:
            noise = torch.randn(sines.shape, generator=generator).to(like)
            sines = sines + noise * (voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE)
        return torch.tanh(self.m_source["l_linear"](sines.flatten(1, 2))).transpose(1, 2)

    def generate(
        self, log_mel: LogMels, source: Float[Tensor, "batch 1 n"], generator: torch.Generator | None = None
    ) -> Samples:
        """The network alone: ``frames * hop`` samples within -1 .. 1."""
        x = self.conv_pre(log_mel.transpose(1, 2))
        if self.settings.noise_sigma and generator is not None:
            x = x + self.settings.noise_sigma * torch.randn(x.shape, generator=generator).to(x)
        n = len(self.settings.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            if not self.settings.mini_nsf:
                x = x + self.noise_convs[i](source)
            elif i == 1:
                x = x + self.source_conv(source)
            total = self.resblocks[i * n](x)
            for block in self.resblocks[i * n + 1 : (i + 1) * n]:
                total = total + block(x)
            x = total / n
        return torch.tanh(self.conv_post(F.leaky_relu(x, 0.01)))[:, 0]

    @torch.no_grad()
    def render(
        self,
        log_mel: np.ndarray,
        f0_hz: np.ndarray,
        voiced: np.ndarray,
        seed: int = 0,
        chunk_frames: int = 172,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Synthesis:
        """The vocoder protocol: songs of any length, in chunks with a halo, under one source.

        Frames without pitch get noise for a source; ``mini_nsf``, which knows no voicing, gets the F0 around them
        and takes voicing from the mel. Chunks of 2 s at 44.1 kHz are the fastest on a CPU.
        """
        pitch = np.where(voiced, f0_hz, 0).astype(np.float32)
        if self.settings.mini_nsf:
            pitch = fill_unvoiced(pitch, np.asarray(voiced))
        tracks = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in (log_mel, pitch, voiced))
        log_mel, pitch, voiced = (x.to(self.conv_pre.weight.device) for x in tracks)
        following, phase = _next(pitch), self.frame_phase(pitch)
        generator = torch.Generator().manual_seed(seed)
        initial = torch.rand(N_SINES, generator=generator)
        initial[0] = 0.0
        n_frames, hop, out, made, pieces = pitch.shape[1], self.source_hop, self.settings.hop_size, 0, []
        known = log_mel.new_zeros(1, 1, 0)  # the source of the last frames, up to frame `made`
        for start, stop, low, high in layers.chunks(n_frames, max(1, chunk_frames), self.halo):
            raise_if_cancelled(cancelled)
            new = slice(made, high)
            if high > made:
                more = self.source(pitch[:, new], following[:, new], phase[:, new], initial, generator)
                known, made = torch.cat([known, more], dim=2), high
            known = known[:, :, -(high - low) * hop :]
            sound = self.generate(log_mel[:, low:high], known, generator)[0]
            pieces.append(sound[(start - low) * out : (stop - low) * out].cpu().numpy())
            if progress is not None:
                progress(stop / n_frames, "vocoder")
        audio = np.concatenate(pieces)
        return Synthesis(audio, audio, np.zeros_like(audio))


def _next(x: Tensor) -> Tensor:
    """Every frame's successor; the last one's is itself."""
    return torch.cat([x[:, 1:], x[:, -1:]], dim=1)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def plain_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without weight normalisation: ``g v / |v|``, the norm taken over all but the first axis.

    Both of torch's spellings are known: ``weight_g`` with ``weight_v``, and ``parametrizations.weight.original0 / 1``.
    """
    out = {name: value for name, value in tensors.items() if not name.endswith(NORMS[0] + NORMS[1])}
    for g, v in NORMS:
        for stem in (name[: -len(v)] for name in tensors if name.endswith(v)):
            if stem + g not in tensors:
                raise ModelError(f"the weights {(stem + v)[:80]!r} have no '{g}' beside them.")
            value = tensors[stem + v].double()
            length = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.ndim - 1))
            out[stem + "weight"] = (tensors[stem + g].double() * value / length).to(tensors[stem + v])
    return out


def load(path: str | Path) -> NsfHifigan:
    """Read a checkpoint and the ``config.json`` beside it: float32, eval mode, on the CPU, named like the file.

    A ModelError names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        with path.with_name("config.json").open("rb") as file:
            settings = NsfSettings.from_json(json.loads(file.read(MAX_CONFIG_BYTES)))
        _require_stored(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        tensors = tensors.get("generator") if isinstance(tensors, dict) else None
        if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
            raise ModelError("it has no 'generator' with tensors: it is no NSF-HiFiGAN checkpoint.")
        _require_own_numbers(tensors)
        with torch.device("meta"), layers.skip_init():
            expected = NsfHifigan(settings, path.stem).state_dict()
        plain = plain_weights(tensors)
        instrument_archive.require_shapes({name: list(tensor.shape) for name, tensor in plain.items()}, expected)
        instrument_archive.require_finite(plain)
        model = NsfHifigan(settings, path.stem)
        model.load_state_dict({k: v.float() for k, v in plain.items()})
    except OSError as error:
        raise ModelError(
            f"'{path}' needs to be a file with its config.json beside it ({type(error).__name__}); keep both together "
            "as they were published."
        ) from None
    except (ModelError, ConfigError) as error:
        raise ModelError(f"'{path.name}': {error}") from None
    except Exception as error:  # whatever a broken or foreign file provokes in json and torch
        why = printable(str(error).partition("\n")[0], 120)
        raise ModelError(
            f"'{path.name}' or its config.json is damaged, or it holds more than tensors, so it was not opened "
            f"({type(error).__name__}: {why})."
        ) from None
    return model.eval().requires_grad_(False)


def _require_stored(path: Path) -> None:
    """Refuse what torch would unpack to disk or to more than it holds; it never compresses what it saves."""
    try:
        with tarfile.open(path, "r:"):
            raise ModelError("it is a tar archive, which torch wrote before 2017; load it there and save it again.")
    except tarfile.TarError:
        pass
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise ModelError("it unpacks to more bytes than it has, as no checkpoint does.")


def _require_own_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that show few stored numbers as many: computing with them would fill the memory."""
    left = {}  # by storage; a few tensors may share one
    for name, tensor in tensors.items():
        if not isinstance(name, str) or tensor.layout != torch.strided:
            raise ModelError(f"the weights {str(name)[:80]!r} are not plain stored numbers.")
        storage = tensor.untyped_storage()
        left[storage._cdata] = left.get(storage._cdata, 4 * storage.nbytes()) - tensor.numel() * tensor.element_size()
        if left[storage._cdata] < 0:
            raise ModelError(f"the weights {name[:80]!r} are not numbers of their own.")
