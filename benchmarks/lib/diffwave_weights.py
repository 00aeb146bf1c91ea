"""Weights of the public ``diffwave`` package (0.1.7) in this project's network: the same sound from faster code.

A checkpoint of that package is a pickle, which is never opened here: give the tensors, or a safetensors file of them,
made where they come from with ``safetensors.torch.save_file`` of the checkpoint's entry ``model``.
The result takes that package's own spectrograms (80 bands, scaled to 0 .. 1), not this project's mel.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from svclib.models import layers
from svclib.models.diffwave.network import DiffWaveNet
from svclib.utils.errors import ModelError

_NAMES = {
    "input_projection": "input",
    "diffusion_embedding.projection1": "embedding.layers.0",
    "diffusion_embedding.projection2": "embedding.layers.2",
    "spectrogram_upsampler.conv1": "upsampler.stages.0",
    "spectrogram_upsampler.conv2": "upsampler.stages.1",
    "skip_projection": "skip",
    "output_projection": "output",
}
_LAYER = {"dilated_conv": "dilated", "diffusion_projection": "step", "output_projection": "out"}


def load(path: str | Path, dilation_cycle: int = 10, step_rule: str = "table", n_steps: int = 50) -> DiffWaveNet:
    """:func:`convert` of a safetensors file; raises ModelError too if the file cannot be read."""
    import safetensors.torch

    try:
        weights = safetensors.torch.load(Path(path).read_bytes())
    except Exception as error:  # SafetensorError is a bare Exception
        raise ModelError(f"'{path}' is no safetensors file of weights ({str(error)[:120]}).") from None
    return convert(weights, dilation_cycle, step_rule, n_steps)


def convert(
    weights: Mapping[str, Tensor], dilation_cycle: int = 10, step_rule: str = "table", n_steps: int = 50
) -> DiffWaveNet:
    """Bring the public package's weights into this project's network; its sizes follow from their shapes.

    Args:
        weights: The package's ``model.state_dict()``, names and tensors.
        dilation_cycle: Layers after which dilations start again at 1; the weights do not define it.
        step_rule: ``table`` gives that package's output at fractional steps too; ``exact`` evaluates the sinusoids.
        n_steps: Length of the package's training schedule, which is the length of its table.

    Returns:
        The network in float32 and eval mode.

    Raises:
        ModelError: naming the tensor that is missing, too much or of another shape.
    """
    made, gates = {}, {}
    for name, tensor in weights.items():
        owner, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"residual_layers\.(\d{1,3})\.(\w+)", owner)
        if owner in _NAMES and kind in ("weight", "bias"):
            made[f"{_NAMES[owner]}.{kind}"] = tensor
        elif layer and layer[2] == "conditioner_projection":
            gates[int(layer[1]), kind] = tensor
        elif layer and layer[2] in _LAYER:
            made[f"stack.blocks.{int(layer[1])}.{_LAYER[layer[2]]}.{kind}"] = tensor
        elif name != "diffusion_embedding.embedding":  # a table, made again from the number of steps
            raise ModelError(f"'{name[:80]}' is no weight of the public diffwave package 0.1.7.")
    n_layers = len({int(m[1]) for n in made if (m := re.match(r"stack\.blocks\.(\d+)\.", n))})
    if "input.weight" not in made or not n_layers or made["input.weight"].ndim != 3:
        raise ModelError("These weights have no input or no layers; give a whole model of the diffwave package.")
    n_mels = 0
    if gates:
        try:
            for kind in ("weight", "bias"):
                made[f"stack.conditions.{kind}"] = torch.cat([gates[i, kind] for i in range(n_layers)])
            n_mels = made["stack.conditions.weight"].shape[1]
        except (KeyError, RuntimeError, IndexError):
            raise ModelError("The conditioner of one layer is missing or has another shape than the rest.") from None
    sizes = (made["input.weight"].shape[0], n_layers, dilation_cycle, n_mels, 256, "samples")
    build = functools.partial(DiffWaveNet, *sizes, step_rule=step_rule, n_steps=n_steps)
    with torch.device("meta"), layers.skip_init():  # shapes are compared before their memory is asked for
        wanted = build().state_dict()
    for name in sorted(set(wanted) | set(made)):
        if name not in made or name not in wanted:
            raise ModelError(f"The tensor for '{name}' is {'missing' if name in wanted else 'too much'}.")
        if made[name].shape != wanted[name].shape:
            raise ModelError(
                f"The tensor for '{name}' has shape {tuple(made[name].shape)}, expected {tuple(wanted[name].shape)}."
            )
    with torch.random.fork_rng(devices=[]):  # the first weights are replaced
        net = build()
    net.load_state_dict({k: v.detach().float() for k, v in made.items()})
    return net.eval()
