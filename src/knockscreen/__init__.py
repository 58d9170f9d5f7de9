"""knockscreen: an in-silico perturbation screen for single-cell biology.

``knockscreen.open("results/demo")`` opens a finished screen; its methods are the questions of the
command line.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knockscreen.store.screen import Screen
    from knockscreen.store.screen import open_screen as open

__all__ = ["Screen", "__version__", "open"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the API when it is first used, so that the import stays light."""
    if name in {"Screen", "open"}:
        from knockscreen.store import screen

        return screen.Screen if name == "Screen" else screen.open_screen
    msg = f"module 'knockscreen' has no attribute '{name}'"
    raise AttributeError(msg)
