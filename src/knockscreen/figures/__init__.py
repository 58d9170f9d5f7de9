"""Figures of a screen: tidy frames or arrays in, a matplotlib Figure out, no files.

Figures are built on ``matplotlib.figure.Figure`` directly, so there is no global state to close,
and :func:`~knockscreen.figures.style.render` gives the same bytes for the same input.
"""
