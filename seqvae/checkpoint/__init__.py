"""Checkpoint folders: atomic writing, strict loading, and lookup by released name or Hub id."""

from seqvae._aliases import of_package

__getattr__ = of_package(__name__)
