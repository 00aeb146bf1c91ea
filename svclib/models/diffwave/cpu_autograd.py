"""One gated layer of DiffWave for training on a CPU: forward and backward over tiles that stay in a core's cache.

The same arithmetic as ``layers.GatedResidualBlock``, with three matrix products forward and four backward per tile: the
three shifted inputs of the dilated convolution are stacked into one, ``tanh(a) = 2 sigmoid(2a) - 1`` makes the gate one
sigmoid over both halves, the condition is brought from frames to positions by a small matrix, the sum of skips grows in
place. Only the layer's input and the sigmoids are kept for the backward pass.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_ELEMENTS = 1 << 16  # channels times positions of a tile
ROOT = math.sqrt(0.5)


def tile_of(channels: int, frame_positions: int) -> int:
    """Positions of a tile: whole frames."""
    return max(1, TILE_ELEMENTS // channels // frame_positions) * frame_positions


def ramps(tile: int, frame_positions: int) -> Tensor:
    """``[tile / frame + 2, tile]``: shares of the frames around a tile, from the one before it on, in its positions."""
    place = (torch.arange(tile, dtype=torch.double) + 0.5) / frame_positions + 0.5
    rows = torch.arange(tile // frame_positions + 2, dtype=torch.double)[:, None]
    return (1 - (place - rows).abs()).clamp_min(0).float()


class GatedLayer(torch.autograd.Function):
    """``x, total -> x', total'``, where ``total`` is the sum of skips and is written in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        total: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        frames: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor,
        dilation: int,
        ramp: Tensor | None,
        tile: int,
        idle: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            ctx: Of torch; keeps what the backward pass needs.
            x: What comes in, ``[batch, channels, positions]``, contiguous.
            total: Sum of the skips so far, of the same shape; written in place.
            shift: What the step adds to the input, ``[batch, channels]``.
            weight: Of the dilated convolution, ``[2 channels, channels, 3]``.
            bias: Of the dilated convolution, for each signal, ``[batch, 2 channels]``.
            frames: Condition at frame rate, ``[batch, 2 channels, frames]``, or None.
            out_weight: Of the 1x1 convolution, ``[2 channels, channels, 1]``.
            out_bias: Of the half of it that goes on, ``[channels]``: that of the skip is one constant for all layers.
            dilation: Of the convolution, in positions.
            ramp: From :func:`ramps`; None without a condition.
            tile: Positions of a tile, from :func:`tile_of`.
            idle: Memory of steps that are over, to be written again: fresh memory costs as much time as filling it. It
                belongs to the network and goes with it.

        Returns:
            What goes on to the next layer, ``[batch, channels, positions]``, and ``total`` with this layer's skip.
        """
        (batch, c, n), twice = x.shape, _twice(x.shape[1])
        folded = weight.permute(0, 2, 1).reshape(2 * c, 3 * c) * twice
        start, out, out_bias = bias * twice[:, 0], out_weight[:, :, 0], out_bias[:, None]
        kept, after = _borrow((batch, -(-n // tile), 2 * c * tile), idle), torch.empty_like(x)
        stacked, z, residual = x.new_empty(3 * c, tile), x.new_empty(c, tile), (out[:c] * ROOT, out_bias * ROOT)
        if frames is not None:  # the shares of the frames add to 1 everywhere, so the bias may ride on them
            biased = frames * twice + start[:, :, None]
        for row in range(batch):
            for a in range(0, n, tile):
                b = min(a + tile, n)
                y, s = _tile(kept[row], a, b, tile), _stack(x[row], shift[row], dilation, a, b, stacked)
                torch.mm(folded, s, out=y)
                if frames is None:
                    y.add_(start[row][:, None])
                else:
                    edges = _edges(a, b, tile, ramp, frames)
                    y.addmm_(biased[row][:, edges], ramp[: len(edges), : b - a])
                y.sigmoid_()
                gated = torch.neg(y[:c], out=z[:, : b - a]).addcmul_(y[:c], y[c:], value=2.0)
                torch.add(residual[1], x[row, :, a:b], alpha=ROOT, out=after[row, :, a:b]).addmm_(residual[0], gated)
                total[row, :, a:b].addmm_(out[c:], gated)
        ctx.save_for_backward(x, shift, weight, frames, out_weight, ramp)
        ctx.dilation, ctx.tile, ctx.kept, ctx.idle = dilation, tile, kept, idle
        ctx.mark_dirty(total)
        return after, total

    @staticmethod
    @once_differentiable
    def backward(ctx, d_after, d_total):
        """Gradients of everything but ``dilation``, ``ramp``, ``tile`` and ``idle``."""
        x, shift, weight, frames, out_weight, ramp = ctx.saved_tensors
        kept = ctx.kept
        if kept is None:
            raise RuntimeError("A layer in tiles can be differentiated once; run it forward again.")
        (batch, c, n), twice, tile, dilation = x.shape, _twice(x.shape[1]), ctx.tile, ctx.dilation
        folded = weight.permute(0, 2, 1).reshape(2 * c, 3 * c) * twice
        back, out_back = folded.T.contiguous(), out_weight[:, :, 0].T.contiguous()
        d_x, d_shift = d_after * ROOT, torch.zeros_like(shift)
        d_folded, d_out = torch.zeros_like(folded), x.new_zeros(2 * c, c)
        d_bias, d_out_bias = x.new_zeros(batch, 2 * c), x.new_zeros(c)
        d_frames = None if frames is None else torch.zeros_like(frames)
        stacked, d_stacked = x.new_empty(3 * c, tile), x.new_empty(3 * c, tile)
        d_skips, d_gates, t, dz = (x.new_empty(k * c, tile) for k in (2, 2, 1, 1))
        for row in range(batch):
            for a in range(0, n, tile):
                b = min(a + tile, n)
                size, y = b - a, _tile(kept[row], a, b, tile)
                d, g, tanh, z = d_skips[:, :size], d_gates[:, :size], t[:, :size], dz[:, :size]
                torch.mul(d_after[row, :, a:b], ROOT, out=d[:c])
                d[c:] = d_total[row, :, a:b]
                torch.mul(y[c:], 2.0, out=tanh).sub_(1.0)
                d_out.addmm_(d, torch.mul(y[:c], tanh, out=z).T)
                d_out_bias += d[:c].sum(1)
                torch.mm(out_back, d, out=z)
                torch.addcmul(y, y, y, value=-1.0, out=g)  # of the sigmoids
                g[:c].mul_(tanh.mul_(z))
                g[c:].mul_(z.mul_(y[:c]).mul_(2.0))
                d_bias[row] += g.sum(1)
                if frames is not None:
                    edges = _edges(a, b, tile, ramp, frames)
                    d_frames[row].index_add_(1, edges, g @ ramp[: len(edges), :size].T)
                d_folded.addmm_(g, _stack(x[row], shift[row], dilation, a, b, stacked).T)
                rows = torch.mm(back, g, out=d_stacked[:, :size])
                for k, reach in enumerate((-dilation, 0, dilation)):
                    low, high = max(a + reach, 0), min(b + reach, n)
                    if high > low:
                        part = rows[k * c : (k + 1) * c, low - a - reach : high - a - reach]
                        d_x[row, :, low:high] += part
                        d_shift[row] += part.sum(1)
        del y
        ctx.kept = None
        ctx.idle.append(kept)
        d_weight = (d_folded * twice).view(2 * c, 3, c).permute(0, 2, 1).contiguous()
        d_frames = None if frames is None else d_frames * twice
        d_bias = d_bias * twice[:, 0]
        return d_x, d_total, d_shift, d_weight, d_bias, d_frames, d_out[:, :, None], d_out_bias, None, None, None, None


def _borrow(shape: tuple[int, ...], idle: list[Tensor]) -> Tensor:
    """Memory for a layer's sigmoids; a layer that is not differentiated keeps it until it is forgotten."""
    if idle and idle[-1].shape != shape:
        idle.clear()
    return idle.pop() if idle else torch.empty(shape)


def _tile(kept: Tensor, a: int, b: int, tile: int) -> Tensor:
    """A tile's sigmoids ``[2 channels, b - a]``, which lie together in memory."""
    flat = kept[a // tile]
    return flat[: flat.numel() // tile * (b - a)].view(-1, b - a)


def _twice(channels: int) -> Tensor:
    """1 for the gate's rows, 2 for the signal's: tanh as a sigmoid."""
    return torch.cat([torch.ones(channels, 1), torch.full((channels, 1), 2.0)])


def _edges(a: int, b: int, tile: int, ramp: Tensor, frames: Tensor) -> Tensor:
    """The frames a tile lies between; at the ends the first and the last are held."""
    frame = tile // (ramp.shape[0] - 2)
    return torch.arange(a // frame - 1, b // frame + 1).clamp_(0, frames.shape[2] - 1)


def _stack(x: Tensor, shift: Tensor, dilation: int, a: int, b: int, stacked: Tensor) -> Tensor:
    """``x + shift`` at three places, ``[3 channels, b - a]``, zeros beyond the ends."""
    (c, n), size = x.shape, b - a
    for k, reach in enumerate((-dilation, 0, dilation)):
        rows, low, high = stacked[k * c : (k + 1) * c, :size], max(a + reach, 0), min(b + reach, n)
        if high - low < size:
            rows.zero_()
        if high > low:
            at = low - a - reach
            torch.add(x[:, low:high], shift[:, None], out=rows[:, at : at + high - low])
    return stacked[:, :size]
