"""Styles in the latent space: fitting, moving, sampling, interpolation."""

from seqvae._aliases import of_package

__getattr__ = of_package(__name__)
