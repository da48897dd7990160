"""The figures that model cards quote."""
