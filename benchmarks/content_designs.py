"""Other designs of the content code, to be measured by ``content.py --design``; none of them is part of svclib.

Each takes the place of ``content.Bottleneck`` while an experiment runs:

``vq``         the code is quantised: two groups of 64 vectors that follow the codes as running means
               (van den Oord et al. 2017, appendix A.1), straight-through gradient, commitment weight 0.25.
``adversary``  a small classifier names the singer from the code and its gradient is reversed (Ganin et al. 2016);
               wants a dataset of several singers.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from svclib.models.content import bottleneck
from svclib.models.content.base import CONTENT_ENCODERS
from svclib.models.diffusion import model as diffusion

GROUPS, VECTORS, FOLLOW, COMMIT = 2, 64, 0.99, 0.25
REVERSED = 0.1


class Beside(torch.autograd.Function):
    """The first argument as it is; the second, a loss, is learnt from beside whatever is made of the first."""

    @staticmethod
    def forward(ctx, value, loss):
        """See the class."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        """See the class."""
        return gradient, torch.ones((), device=gradient.device)


class Reversal(torch.autograd.Function):
    """The value as it is, its gradient turned round."""

    @staticmethod
    def forward(ctx, value):
        """See the class."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        """See the class."""
        return -REVERSED * gradient


class Quantised(bottleneck.Bottleneck):
    """``vq``."""

    def __init__(self, contract, code_dims=16, **settings):
        super().__init__(contract, code_dims, **settings)
        self.register_buffer("book", 0.3 * torch.randn(GROUPS, VECTORS, code_dims // GROUPS))
        self.register_buffer("count", torch.ones(GROUPS, VECTORS))
        self.register_buffer("total", self.book.clone())

    def forward(self, inputs, generator=None):
        """As ``content.Bottleneck``, quantised."""
        noise, self.code_noise = self.code_noise, 0.0  # noise comes after the quantiser
        code = super().forward(inputs, generator)
        self.code_noise = noise
        code = self.quantised(code, learning=self.training and torch.is_grad_enabled())
        if generator is not None and noise:
            code = code + noise * torch.randn(code.shape, generator=generator).to(code)
        return code

    def encode(self, inputs, chunk_frames):
        """As ``content.Bottleneck``, quantised."""
        return self.quantised(super().encode(inputs, chunk_frames), learning=False)

    def quantised(self, code, learning):
        """The nearest vector of each group in place of the code."""
        batch, frames, dims = code.shape
        wanted = code.reshape(batch * frames, GROUPS, dims // GROUPS).transpose(0, 1).float()
        index = torch.cdist(wanted, self.book).argmin(-1)
        found = torch.stack([book[i] for book, i in zip(self.book, index, strict=True)])
        if not learning:
            return found.transpose(0, 1).reshape(code.shape).to(code)
        with torch.no_grad():
            for group, (i, x) in enumerate(zip(index, wanted.detach(), strict=True)):
                n = torch.bincount(i, minlength=VECTORS).float()
                self.count[group].mul_(FOLLOW).add_(n, alpha=1 - FOLLOW)
                self.total[group].mul_(FOLLOW).add_(
                    torch.zeros_like(self.total[group]).index_add_(0, i, x), alpha=1 - FOLLOW
                )
                unused = self.count[group] < 0.03 * len(i) / VECTORS  # begins anew at a code that came by
                if unused.any():
                    places = torch.linspace(0, len(i) - 1, int(unused.sum())).long()
                    self.count[group][unused] = len(i) / VECTORS
                    self.total[group][unused] = x[places] * len(i) / VECTORS
                self.book[group] = self.total[group] / self.count[group][:, None].clamp_min(1e-3)
        straight = (wanted + (found - wanted).detach()).transpose(0, 1).reshape(code.shape)
        return Beside.apply(straight.to(code), COMMIT * (wanted - found).square().mean())


class Adversarial(bottleneck.Bottleneck):
    """``adversary``."""

    n_singers = 3
    singer = None  # of the batch that is learnt from, see ``told``

    def __init__(self, contract, code_dims=16, **settings):
        super().__init__(contract, code_dims, **settings)
        self.judge = nn.Sequential(
            nn.Conv1d(code_dims, 128, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(128, 128, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(128, self.n_singers, 1),
        )

    def forward(self, inputs, generator=None):
        """As ``content.Bottleneck``; in training the classifier learns, and is learnt against, beside it."""
        code = super().forward(inputs, generator)
        if not (self.training and torch.is_grad_enabled()):
            return code
        said = self.judge(Reversal.apply(code).transpose(1, 2))
        truth = Adversarial.singer.to(code.device)[:, None].expand(-1, said.shape[-1])
        return Beside.apply(code, F.cross_entropy(said.float(), truth))


DESIGNS = {"vq": Quantised, "adversary": Adversarial}


@contextlib.contextmanager
def used(design: str | None):
    """While this lasts, diffusion models are built with the design."""
    if design is None:
        yield
        return
    plain, loss = bottleneck.Bottleneck, diffusion.DiffusionModel._loss

    def told(self, batch, *arguments):
        Adversarial.singer = batch["singer"].long()
        return loss(self, batch, *arguments)

    CONTENT_ENCODERS["bottleneck"], diffusion.DiffusionModel._loss = DESIGNS[design], told
    try:
        yield
    finally:
        CONTENT_ENCODERS["bottleneck"], diffusion.DiffusionModel._loss = plain, loss
