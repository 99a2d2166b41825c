"""Colours of tokens by their share of a reward."""

_STRONG, _WEAK = 1.0, 0.2  # nats of a token, from which on it is coloured strongly or weakly


def token_style(log_ratio: float) -> str:
    """The terminal style of a token: green if the model likes it more than the one that it is compared with."""
    colour = "green" if log_ratio > 0 else "red"
    if abs(log_ratio) < _WEAK:
        return ""
    return f"bold {colour}" if abs(log_ratio) >= _STRONG else colour


def token_background(log_ratio: float) -> str:
    """The background of a token on a page, as a colour of CSS, which fits light and dark pages."""
    strength = min(abs(log_ratio), 1.0)
    return f"rgba({'0,150,80' if log_ratio > 0 else '210,40,40'},{0.5 * strength:.2f})"
