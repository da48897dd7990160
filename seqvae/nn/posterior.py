"""The latent distributions: a diagonal Gaussian posterior, a standard normal prior, and divergences between them.

Scope: means, log-variances, nats. Out of scope: tokens, networks, schedules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqvae.nn import noise

LOGVAR_RANGE = (-12.0, 4.0)  # exp of these stays finite and distinct from zero in bf16
FIRST_LOGVAR = -3.0  # sharp at first: a broad posterior would drown the sum of bound tokens


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mean, diag(exp(logvar))), both `(B, D)`, in fp32."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw per row by reparameterisation (Kingma and Welling 2014): `(B, D)`."""
        device = self.mean.device if generator is None else generator.device
        drawn = noise.normal(self.mean.shape, device, generator).to(self.mean.device)
        return self.mean + (0.5 * self.logvar).exp() * drawn

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) of each dimension, `(B, D)`, in nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)

    def kl_of_segments(self, shared: int = 0) -> Tensor:
        """The KL of each of the B segments of one piece in nats, `(B,)`; that of `shared` dimensions in equal parts."""
        kl = self.kl()
        return kl[:, :shared].sum(1) / max(1, len(kl)) + kl[:, shared:].sum(1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x) for `z (..., B, D)`: `(..., B)`, in nats."""
        return _log_normal(z, self.mean, self.logvar)


def first_logvar(layer: nn.Linear) -> None:
    """Initialise a layer that computes log-variances to the constant `FIRST_LOGVAR`."""
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, FIRST_LOGVAR)


def posterior_from(x: Tensor, mean: nn.Linear, logvar: nn.Linear) -> Posterior:
    """q(z|x) of features `x (B, F)` by two linear layers, its log-variances clamped to `LOGVAR_RANGE`."""
    return Posterior(mean(x).float(), logvar(x).float().clamp(*LOGVAR_RANGE))


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, I) for `z (..., D)`: `(...)`, in nats."""
    return _log_normal(z, torch.zeros_like(z), torch.zeros_like(z))


def _log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * ((z - mean).square() / logvar.exp() + logvar + math.log(2 * math.pi)).sum(-1)


def floored_kl(kl: Tensor, free_bits: float) -> Tensor:
    """sum_d max(mean over the batch of KL_d, free_bits), a scalar in nats (Kingma et al. 2016).

    The floor applies to the batch average, so that a dimension may serve some segments and not others.
    """
    return kl.mean(0).clamp(min=free_bits).sum()


def active_units(mean: Tensor, threshold: float = 0.01) -> int:
    """Number of dimensions whose posterior mean `(N, D)` has variance above `threshold` (Burda et al. 2016)."""
    return int((mean.var(0) > threshold).sum()) if len(mean) > 1 else 0


def mutual_information(posterior: Posterior, z: Tensor) -> float:
    """I(x; z) under q in nats, from N posteriors and one draw `z (N, D)` from each.

    mean_i [log q(z_i|x_i) - log 1/N sum_j q(z_i|x_j)] (Hoffman and Johnson 2016; He et al. 2019). The estimate cannot
    exceed log N and is clamped at 0, since only sampling noise makes it negative.
    """
    # log q(z_i|x_j) of every pair, (N, N), by matrix products: differences would need N x N x D numbers
    x, mean, logvar = z.double(), posterior.mean.double(), posterior.logvar.double()
    precision = (-logvar).exp()
    squares = x.square() @ precision.T - 2 * x @ (mean * precision).T + (mean.square() * precision).sum(1)
    pairs = -0.5 * (squares + (logvar + math.log(2 * math.pi)).sum(1))
    own = pairs.diagonal()
    mixture = pairs.logsumexp(1) - math.log(len(z))
    return max(0.0, float((own - mixture).mean()))
