"""The embedded CD4+ screen: a known regulatory network, real cells' statistics, and the truth.

:func:`write_screen` writes it in the file layout of the genome-scale CD4+ CRISPRi screen
(Zhu, Dann et al. 2025): one h5ad per donor and culture condition.
"""

from knockscreen.simulate.screen import write_screen

__all__ = ["write_screen"]
