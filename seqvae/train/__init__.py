"""Training: the loop, one step, validation, and the styles of a finished checkpoint."""

from seqvae._aliases import of_package

__getattr__ = of_package(__name__)
