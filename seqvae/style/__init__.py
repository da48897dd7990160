"""Latent vectors of styles: fitted, moved, mixed and interpolated."""
