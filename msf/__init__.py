"""MedSymmFlow: one velocity field that generates medical images and classifies them, with uncertainty."""

__version__ = "0.1.0"
