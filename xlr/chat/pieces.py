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
