"""Evaluation of models: the figures in model cards."""
