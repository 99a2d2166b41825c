"""Implicit cross-lingual rewarding: preference alignment in languages without preference data.

From Python, `xlr.open(folder)` gives the tables and models of a run, and `xlr.Reward` the implicit reward. Both import
what they need when they are used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["Reward", "open"]

if TYPE_CHECKING:
    from xlr.api.reward import Reward
    from xlr.api.runs import open_run as open

_HOMES = {"open": ("xlr.api.runs", "open_run"), "Reward": ("xlr.api.reward", "Reward")}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
