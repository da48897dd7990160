"""Which pieces are not normal: scores, p-values, detectors."""
