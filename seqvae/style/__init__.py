"""Latent vectors of styles: fitted, moved, mixed and interpolated."""

from seqvae._aliases import of_package

__getattr__ = of_package(__name__)
