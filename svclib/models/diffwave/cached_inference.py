"""Cached inference of DiffWave: conditions are computed once per run, layers in place and in cache-sized tiles.

:class:`CachedDenoiser` binds a network to its conditions. On a CPU the layers run over tiles small
enough to stay in the cache of a core, as three matrix products and two element-wise passes each: the shifted inputs of
a dilated convolution are stacked into one product, ``tanh(a) = 2 sigmoid(2a) - 1`` turns the gate into one sigmoid
over both halves, and the constants (the 2, the sign, 1/sqrt(2), 1/sqrt(layers), all biases) are folded into the weights
beforehand. Elsewhere the network itself runs, with its conditions computed ahead.
"""

import copy
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from svclib.models import layers
from svclib.models.diffwave.network import DiffWaveNet
from svclib.utils.errors import ModelError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TILE_ELEMENTS = 1 << 16  # channels times samples of a tile: with its stacked inputs it fills a core's second cache


class Folded:
    """A network's weights in the form the tiles are computed with: see the module's text for what is folded.

    The residual signal is kept without the biases its layers add to it; their sum so far (``offset``) joins the step
    vector, which is added to the input of the dilated convolution anyway.
    """

    def __init__(self, net: DiffWaveNet, dtype: torch.dtype):
        c, n = net.channels, len(net.stack.blocks)
        self.channels, self.dtype, self.n_layers = c, dtype, n
        twice = torch.cat([torch.ones(c), torch.full((c,), 2.0)]).double()[:, None]  # tanh as a sigmoid
        self.twice = twice
        offset, skipped = torch.zeros(c, dtype=torch.double), torch.zeros(c, dtype=torch.double)
        self.dilations, self.dilated, self.residual, self.skips = [], [], [], []
        biases, steps, shifts = [], [], []
        for block in net.stack.blocks:
            weight, bias = (p.detach().double() for p in (block.out.weight[:, :, 0], block.out.bias))
            stacked = block.dilated.weight.detach().double().permute(0, 2, 1).reshape(2 * c, -1)
            self.dilations.append(block.dilated.dilation[0])
            self.dilated.append((stacked * twice).to(dtype).contiguous())
            self.residual.append((weight[:c] * -math.sqrt(0.5)).to(dtype).contiguous())
            self.skips.append((weight[c:] * (-1.0 / math.sqrt(n))).to(dtype).contiguous())
            biases.append(block.dilated.bias.detach().double()[:, None] * twice)
            steps.append(block.step.weight.detach())
            shifts.append(block.step.bias.detach().double() + offset)
            offset = (offset + bias[:c]) * math.sqrt(0.5)
            skipped = skipped + bias[c:] / math.sqrt(n)
        self.biases, self.steps, self.shifts = biases, torch.cat(steps), torch.cat(shifts).float()
        self.first = (net.input.weight.detach()[:, :, 0], net.input.bias.detach()[:, None])
        last, bias = net.skip.weight.detach().double()[:, :, 0], net.skip.bias.detach().double()
        self.last = last.to(dtype), (bias + last @ skipped)[:, None].to(dtype)
        self.output = net.output.weight.detach()[:, :, 0].to(dtype), net.output.bias.detach()[:, None].to(dtype)

    def step_shifts(self, step: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch layers channels 1"]:
        """The step vectors that are added to the input of every layer."""
        made = torch.addmm(self.shifts, step, self.steps.T)
        return made.view(len(step), self.n_layers, self.channels, 1).to(self.dtype)

    def run(
        self,
        x: Float[Tensor, "inputs positions"],
        shifts: Float[Tensor, "layers channels 1"],
        fill: Callable[[int, int, int, Tensor], None],
        tile: int,
        out: Float[Tensor, "squeeze positions"],
    ) -> None:
        """Predict the noise in one signal; ``fill(layer, start, stop, y)`` writes bias and condition of a tile to y."""
        c, n, dtype = self.channels, x.shape[1], self.dtype
        tiles = [(a, min(a + tile, n)) for a in range(0, n, tile)]
        tile = min(tile, n)
        now, after, total = torch.empty(c, n, dtype=dtype), torch.empty(c, n, dtype=dtype), torch.zeros(c, n)
        stacked, gates = torch.empty(3 * c, tile, dtype=dtype), torch.empty(2 * c, tile, dtype=dtype)
        gated, added = torch.empty(c, tile, dtype=dtype), torch.empty(c, tile, dtype=dtype)
        weight, bias = self.first
        for a, b in tiles:
            now[:, a:b] = torch.addmm(bias, weight, x[:, a:b]).relu_()
        for i, d in enumerate(self.dilations):
            for a, b in tiles:
                size = b - a
                for k, shift in enumerate((-d, 0, d)):
                    low, high = max(a + shift, 0), min(b + shift, n)
                    rows, at = stacked[k * c : (k + 1) * c, :size], low - a - shift
                    if high <= low:
                        rows.zero_()
                        continue
                    if high - low < size:
                        rows[:, :at].zero_()
                        rows[:, at + high - low :].zero_()
                    torch.add(now[:, low:high], shifts[i], out=rows[:, at : at + high - low])
                y, z = gates[:, :size], gated[:, :size]
                fill(i, a, b, y)
                y.addmm_(self.dilated[i], stacked[:, :size]).sigmoid_()
                torch.addcmul(y[:c], y[:c], y[c:], value=-2.0, out=z)  # minus the gated signal
                if i + 1 < self.n_layers:
                    torch.addmm(now[:, a:b], self.residual[i], z, beta=math.sqrt(0.5), out=after[:, a:b])
                if dtype == torch.float32:
                    total[:, a:b].addmm_(self.skips[i], z)
                else:  # the sum of all layers keeps its precision
                    total[:, a:b].add_(torch.mm(self.skips[i], z, out=added[:, :size]))
            now, after = after, now
        for a, b in tiles:
            hidden = torch.addmm(self.last[1], self.last[0], total[:, a:b].to(dtype)).relu_()
            out[:, a:b] = torch.addmm(self.output[1], self.output[0], hidden)


class CachedDenoiser:
    """A network bound to its conditions: ``step(x_t, t) -> eps``, in pieces with a halo so that memory is bounded.

    Args:
        net: The network.
        mel: As the network takes it, or None.
        label: One number per signal, or None.
        n_samples: Length of the signals; follows from ``mel`` where there is one.
        batch: Number of signals, where it follows neither from ``mel`` nor ``label``.
        source: The harmonic source signal, or None.
        unit: Scale of every sample, where that is not 1: signals and source are divided by it, the predicted noise is
            multiplied by it.
        precision: ``fp32``, or ``bf16`` (``x_t`` and the result stay float32).
        chunk_samples: Samples computed at once, besides the halo.
        cache_bytes: Most bytes of conditions at sample rate to keep (``samples`` conditioner only; BASE needs 340 MB
            for a second in fp32). Beyond it, they are computed again at every step.
        tiled: Whether to compute in tiles; by default on a CPU.
    """

    def __init__(
        self,
        net: DiffWaveNet,
        mel: Float[Tensor, "batch mels frames"] | None = None,
        label: Int[Tensor, " batch"] | None = None,
        n_samples: int | None = None,
        batch: int = 1,
        source: Float[Tensor, "batch samples"] | None = None,
        unit: Float[Tensor, "batch samples"] | None = None,
        precision: str = "fp32",
        chunk_samples: int = 1 << 17,
        cache_bytes: int = 10**9,
        tiled: bool | None = None,
    ):
        if precision not in PRECISIONS:
            raise ModelError(f"There is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}.")
        if n_samples is None:
            if mel is None:
                raise ModelError("Without a mel, n_samples is needed.")
            n_samples = mel.shape[-1] * net.hop_samples
        net.check(mel, label, n_samples, source)
        self.net, self.dtype, self.n_samples = net, PRECISIONS[precision], n_samples
        self.batch = next((len(v) for v in (mel, label) if v is not None), batch)
        device = net.input.weight.device
        self.tiled = device.type == "cpu" if tiled is None else tiled
        self.unit = net.frame_positions if mel is not None else 1  # in positions of the stack: see squeeze
        self.mel, self.one, self.steps = mel, unit, {}
        self.source = source if source is None or unit is None else source / unit
        self.prior_std: Tensor | None = None  # of the initial noise, where the prior follows the mel
        n_units, halo = n_samples // net.squeeze // self.unit, -(-net.halo // self.unit) + (3 if mel is not None else 0)
        self.chunks = list(layers.chunks(n_units, max(1, chunk_samples // net.squeeze // self.unit), halo))
        seen = sum(high - low for _, _, low, high in self.chunks) * self.unit
        size = self.batch * 2 * net.channels * len(net.stack.blocks) * seen * self.dtype.itemsize
        self.cached = net.conditioner == "samples" and size <= cache_bytes
        with torch.inference_mode():
            fixed = None if label is None else net.label_gates(label)
            self.fixed = None if fixed is None else fixed.view(self.batch, len(net.stack.blocks), 2 * net.channels, 1)
            self.encoded = net.encode(mel) if net.conditioner == "frames" else None
            if self.tiled:
                self.folded = Folded(net, self.dtype)
                wanted = max(1, TILE_ELEMENTS // net.channels // self.unit)
                self.tile = wanted * self.unit
                self._fold_conditions(wanted)
            else:
                self.cast = net if self.dtype == torch.float32 else copy.deepcopy(net).to(self.dtype)
            self.kept = [self._conditions(p) for p in self.chunks] if self.cached else None

    def __call__(self, x_t: Float[Tensor, "batch samples"], t: int | float) -> Float[Tensor, "batch samples"]:
        """As :meth:`step`: what samplers call."""
        return self.step(x_t, t)

    def step(
        self, x_t: Float[Tensor, "batch samples"], t: int | float | Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch samples"]:
        """The predicted noise.

        Args:
            x_t: The noisy signals, as many and as long as was prepared for.
            t: Diffusion time counted from 0, whole or not; one for all signals or one for each.

        Returns:
            The noise, in the unit, type and place of ``x_t``.

        Raises:
            ModelError: for signals of another size than was prepared for.
        """
        if tuple(x_t.shape) != (self.batch, self.n_samples):
            raise ModelError(
                f"{tuple(x_t.shape)} samples arrived; this was prepared for {(self.batch, self.n_samples)}."
            )
        eps = torch.empty_like(x_t)  # outside: an ordinary tensor, whatever is done with it later
        with torch.inference_mode():
            x_t = x_t if self.one is None else x_t / self.one
            x, out_view = self.net.inputs(x_t, self.source), self.net.squeezed(eps)
            shifts = self._step(t)
            for i, piece in enumerate(self.chunks):
                conditions = self.kept[i] if self.cached else self._conditions(piece)
                start, stop, low, high = (edge * self.unit for edge in piece)
                out = self._run(x[:, :, low:high].float(), shifts, conditions)
                out_view[:, :, start:stop] = out[:, :, start - low : stop - low]
        return eps if self.one is None else eps.mul_(self.one)

    def _step(self, t) -> Tensor:
        """The vectors of a diffusion time, cached for the next run."""
        key = tuple(t.tolist()) if isinstance(t, Tensor) else float(t)
        if key not in self.steps:
            times = torch.tensor(key if isinstance(t, Tensor) else [key] * self.batch)
            step = self.net.step(times.to(self.net.input.weight.device))
            self.steps[key] = self.folded.step_shifts(step) if self.tiled else step.to(self.dtype)
        return self.steps[key]

    def _run(self, x: Tensor, steps: Tensor, conditions) -> Tensor:
        if not self.tiled:
            return self._run_layers(x, steps, conditions)
        out = x.new_empty(len(x), self.net.squeeze, x.shape[2])
        for row in range(self.batch):
            self.folded.run(x[row], steps[row], lambda *a, row=row: conditions(row, *a), self.tile, out[row])
        return out

    def _run_layers(self, x: Tensor, step: Tensor, conditions) -> Tensor:
        net, total = self.cast, None
        h = torch.relu(net.input(x.to(self.dtype)))
        for i, block in enumerate(net.stack.blocks):
            h, skip = block(h, step, conditions(i))
            total = skip if total is None else total.add_(skip)
        total = total * (1.0 / math.sqrt(len(net.stack.blocks)))
        return net.output(torch.relu(net.skip(total))).float()

    # Conditions ---------------------------------------------------------------------------------------------------

    def _fold_conditions(self, tile_frames: int) -> None:
        """Biases, labels and frame-rate conditions of all layers as the tiles need them."""
        net, n, folded = self.net, len(self.net.stack.blocks), self.folded
        biases = torch.stack(folded.biases)[None].expand(self.batch, -1, -1, -1)
        self.bias = biases if self.fixed is None else biases + self.fixed.double() * folded.twice
        if net.conditioner == "none":
            self.bias = self.bias.to(self.dtype)
        if net.conditioner == "frames":
            projected = net.stack.conditions(self.encoded).view(self.batch, n, 2 * net.channels, -1)
            self.frames = (projected.double() * folded.twice + self.bias).to(self.dtype)
            samples = torch.arange(tile_frames * self.unit, dtype=torch.double)
            place = (samples + 0.5) / self.unit + 0.5  # in frame centres, the frame before the tile being 0
            rows = torch.arange(tile_frames + 2, dtype=torch.double)[:, None]
            self.ramps = (1 - (place - rows).abs()).clamp_min(0).to(self.dtype)

    def _conditions(self, piece: tuple[int, int, int, int]):
        """The gate conditions of a chunk, as a function that returns or writes them."""
        _, _, low, high = piece
        if self.tiled:
            return self._tiled_conditions(low, high)
        net, fixed = self.cast, self.fixed
        if net.conditioner == "none":
            return lambda i: None if fixed is None else fixed[:, i].to(self.dtype)
        ready = self.encoded is not None
        encoded = (self.encoded[:, :, low:high] if ready else self.net.encode(self.mel[:, :, low:high])).to(self.dtype)

        def made(i):
            condition = net.layer_condition(i, encoded)
            return condition if fixed is None else condition.add_(fixed[:, i].to(self.dtype))

        return [made(i) for i in range(len(net.stack.blocks))].__getitem__ if self.cached else made

    def _tiled_conditions(self, low: int, high: int):
        net, unit = self.net, self.unit
        if net.conditioner == "none":

            def fill(row, i, a, b, y):
                y.copy_(self.bias[row, i].expand_as(y))

        elif net.conditioner == "frames":
            edges = torch.arange(low - 1, high + 1).clamp(low, high - 1)
            frames = self.frames[..., edges]

            def fill(row, i, a, b, y):
                first, last = a // unit, b // unit
                torch.mm(frames[row, i, :, first : last + 2], self.ramps[: last - first + 2, : b - a], out=y)

        else:
            up = net.encode(self.mel[:, :, low:high])
            gates, conv = 2 * net.channels, net.stack.conditions
            weight = conv.weight[:, :, 0].double().view(-1, gates, net.n_mels) * self.folded.twice
            bias = self.bias + conv.bias.double().view(1, -1, gates, 1) * self.folded.twice
            up, weight, bias = up.to(self.dtype), weight.to(self.dtype), bias.to(self.dtype)
            if self.cached:
                kept = [[torch.addmm(bias[r, i], weight[i], up[r]) for i in range(len(weight))] for r in range(len(up))]

                def fill(row, i, a, b, y):
                    y.copy_(kept[row][i][:, a:b])

            else:

                def fill(row, i, a, b, y):
                    torch.addmm(bias[row, i], weight[i], up[row][:, a:b], out=y)

        return fill
