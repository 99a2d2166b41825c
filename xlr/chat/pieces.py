"""The text of tokens as they come."""

from xlr.chat.encoding import ChatEncoder

END = " ■"
"""Stands for the terminator."""


class Pieces:
    """Joins tokens to pieces of text, each with the sum of its tokens' values."""

    def __init__(self, encoder: ChatEncoder):
        self._encoder = encoder
        self._tokens: list[int] = []
        self._said, self._waiting = "", 0.0

    def add(self, token: int, value: float) -> tuple[str, float] | None:
        """The text that a token adds, with its value; None while a character is not complete yet."""
        self._tokens.append(token)
        self._waiting += value
        text = self._encoder.decode(self._tokens)
        if text.endswith("\ufffd") or not text.startswith(self._said):
            return None
        piece = text[len(self._said) :], self._waiting
        self._said, self._waiting = text, 0.0
        return piece

    def rest(self) -> list[tuple[str, float]]:
        """What is left at the end: the text of a character that was cut off, with its value; nothing otherwise."""
        text = self._encoder.decode(self._tokens)
        left = text[len(self._said) :] if text.startswith(self._said) else ""
        return [(left, self._waiting)] if left or self._waiting else []
