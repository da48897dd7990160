"""Anomaly detection: scores, conformal p-values, detectors."""

from seqvae._aliases import of_package

__getattr__ = of_package(__name__)
