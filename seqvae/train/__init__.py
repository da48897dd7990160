"""Training runs: the loop, one step, validation, and the styles of a finished checkpoint."""
