"""NSF-HiFiGAN weights as people bring them along: a checkpoint with its ``config.json``, read as tensors and compared.

Nothing in a checkpoint can run, and no network is built before names and shapes of its weights are those that its
``config.json`` asks for.
"""

import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from svclib.models import layers
from svclib.models.vocoders.nsf_hifigan import NsfHifigan, NsfSettings
from svclib.utils.errors import ModelError

NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
MAX_CONFIG_BYTES = 1 << 20
SUFFIXES = (".ckpt", ".pt", ".pth", "")


def plain_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without weight normalisation: ``g v / |v|``, the norm taken over all but the first axis.

    Both of torch's spellings are known: ``weight_g`` with ``weight_v``, and ``parametrizations.weight.original0 / 1``.
    """
    out = {}
    for name, value in tensors.items():
        for g, v in NORMS:
            if name.endswith(v):
                length = value.double().flatten(1).norm(dim=1).view(-1, *[1] * (value.ndim - 1))
                stem = name[: -len(v)]
                if stem + g not in tensors:
                    raise ModelError(f"the weights {name[:80]!r} have no '{g}' beside them.")
                out[stem + "weight"] = (tensors[stem + g].double() * value.double() / length).to(value)
                break
            if name.endswith(g):
                break
        else:
            out[name] = value
    return out


def load(path: str | Path) -> NsfHifigan:
    """Read a checkpoint and the ``config.json`` beside it.

    Args:
        path: The checkpoint, or a folder with exactly one: ``.ckpt``, ``.pt`` or ``.pth``, else a file ``model``.

    Returns:
        The vocoder in eval mode on the CPU, float32, without gradients, named like the file.

    Raises:
        ModelError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file() and p.name[0] != ".")
        found = [p for p in found if p.suffix] or [p for p in found if p.name == "model"]
        if len(found) != 1:
            raise ModelError(f"'{path}' holds {len(found)} checkpoints ({', '.join(SUFFIXES[:3])}); name one.")
        path = found[0]
    try:
        with path.with_name("config.json").open("rb") as file:
            settings = NsfSettings.from_json(json.loads(file.read(MAX_CONFIG_BYTES)))
        _require_stored(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"'{path}' needs to be a file with its config.json beside it ({type(error).__name__}); keep both together "
            "as they were published."
        ) from None
    except ModelError as error:
        raise ModelError(f"'{path.name}': {error}") from None
    except ValueError as error:
        raise ModelError(f"'{path.name}': its config.json or weights cannot be read ({_first_line(error)}).") from None
    except Exception as error:  # whatever a broken or foreign archive provokes in torch
        raise ModelError(
            f"'{path.name}' is damaged or holds more than tensors, so it was not opened ({type(error).__name__})."
        ) from None
    tensors = tensors.get("generator") if isinstance(tensors, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ModelError(f"'{path.name}' has no 'generator' with tensors: it is no NSF-HiFiGAN checkpoint.")
    try:
        _require_own_numbers(tensors)
        with torch.device("meta"), layers.skip_init():
            expected = NsfHifigan(settings, path.stem).state_dict()
        plain = plain_weights(tensors)
        _compare(plain, expected)
        model = NsfHifigan(settings, path.stem)
        model.load_state_dict({k: v.float() for k, v in plain.items()})
    except ModelError as error:
        raise ModelError(f"'{path.name}': {error}") from None
    except (RuntimeError, ValueError, MemoryError, OverflowError) as error:  # settings that torch cannot build
        raise ModelError(f"'{path.name}': its config.json builds no network ({_first_line(error)}).") from None
    return model.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    """The beginning of an error's message, which may quote the file at length."""
    first = (str(error).splitlines() or [""])[0]
    return "".join(c if c.isprintable() else "?" for c in first[:120]) or type(error).__name__


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


def _compare(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    if odd := sorted(set(tensors) ^ set(expected)):
        raise ModelError(f"the weights {odd[0][:80]!r} are missing or too many for its config.json.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"the weights {name!r} have shape {list(tensor.shape)}, expected {list(expected[name].shape)}."
            )
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the weights {name!r} are not all finite numbers.")
