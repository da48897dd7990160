"""A model's folder: written whole, loaded strictly, found by its released name or Hub id."""

from seqvae._aliases import of_package

__getattr__ = of_package(__name__)
