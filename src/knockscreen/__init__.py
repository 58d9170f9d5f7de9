"""knockscreen: an in-silico perturbation screen for single-cell biology."""

__version__ = "0.1.0"
