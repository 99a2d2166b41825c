"""Checks before anything is computed that prompts and responses fit the positions of the models."""

from collections.abc import Iterable, Sequence

from xlr.chat.encoding import ChatEncoder
from xlr.data.preferences import Preference
from xlr.errors import UserError
from xlr.records import INITIAL, Conversation, ModelKey, Prompt, messages
from xlr.run.context import Context

Named = tuple[str, Conversation]
"""How messages name a prompt, and its turns."""


def positions_of_run(context: Context) -> int | None:
    """The positions of the models of the iterations: the fewer of pi_0's and pi_I's; None without a limit."""
    from xlr.model.checks import positions  # imports torch

    folders = {context.model(INITIAL), context.encoder.name}
    return min((found for folder in folders if (found := positions(folder))), default=None)


def positions_of(context: Context, model: ModelKey) -> int | None:
    """The positions of a model: those of the run's models for an iteration, its own for one of `evaluate.models`."""
    from xlr.model.checks import positions  # imports torch

    return positions_of_run(context) if isinstance(model, int) else positions(context.model(model))


def named(prompts: Iterable[Prompt]) -> list[Named]:
    """Prompts by language and id."""
    return [(f"{prompt.lang} {prompt.id!r}", prompt.conversation) for prompt in prompts]


def require_room(
    encoder: ChatEncoder, prompts: Sequence[Named], positions: int | None, new_tokens: int, setting: str
) -> None:
    """Check that every prompt leaves room for a response.

    Args:
        positions: those of the model; None sets no limit.
        new_tokens: the longest response, in tokens.
        setting: the key that sets it.

    Raises:
        UserError: a prompt does not; names the first one.
    """
    if positions is None:
        return
    limit = _limit(encoder, positions)
    if new_tokens >= positions:
        raise UserError(f"{setting}={new_tokens}: leaves no room for a prompt in {limit}; lower it")
    beyond = _beyond(encoder, prompts, positions - new_tokens)
    if not beyond:
        return
    where, tokens = beyond[0]
    longest = max(tokens for _, tokens in beyond)
    if tokens >= positions:
        raise UserError(
            f"the prompt {where} has {tokens:,} tokens, which exceed {limit}; shorten or remove it in every language"
        )
    remedy = f"set it to {positions - longest} or less, or remove" if longest < positions else "remove"
    raise UserError(
        f"{setting}={new_tokens}: with the {tokens:,} tokens of the prompt {where}, a response can exceed {limit}; "
        f"{remedy} such prompts"
    )


def require_max_length(
    encoder: ChatEncoder, prompts: Sequence[Named], positions: int | None, new_tokens: int, setting: str, length: int
) -> None:
    """Check that prompts with a response fit the positions, or that a maximum length leaves the longer ones out.

    Args:
        new_tokens: the longest response, in tokens, without its terminator.
        setting: the key of the maximum length.
        length: the maximum length.

    Raises:
        UserError: a longer sequence would be computed; names the first such prompt.
    """
    if positions is None or length <= positions:
        return
    for where, tokens in _beyond(encoder, prompts, max(positions - new_tokens - 1, 0))[:1]:
        raise UserError(
            f"{setting}={length}: the {tokens:,} tokens of the prompt {where} and a response of {new_tokens:,} exceed "
            f"{_limit(encoder, positions)}; {_leave_out(setting, positions)}"
        )


def require_preferences(
    encoder: ChatEncoder,
    path: str,
    preferences: Sequence[Preference],
    positions: int | None,
    setting: str,
    length: int | None = None,
) -> None:
    """Check that preferences fit the positions, or that a maximum length leaves the longer ones out.

    Raises:
        UserError: one does not; names it.
    """
    if positions is None or (length is not None and length <= positions):
        return
    for one in preferences:
        texts = [*(message["content"] for message in one.prompt), max(one.chosen, one.rejected, key=len)]
        if not encoder.may_exceed(texts, positions):
            continue
        tokens = len(encoder.prompt_of(one.prompt)) + max(map(len, encoder.responses([one.chosen, one.rejected])))
        if positions < tokens <= (length or tokens):
            remedy = "shorten or remove it" if length is None else _leave_out(setting, positions)
            raise UserError(
                f"{path}: the preference {one.id!r} has {tokens:,} tokens, which exceed {_limit(encoder, positions)}; "
                f"{remedy}"
            )


def require_sequences(context: Context, sequences: Iterable[tuple[str, int]], setting: str) -> None:
    """Check that sequences fit the positions of the run's models.

    Args:
        sequences: the name and the tokens of each.
        setting: the key of the maximum length that let them pass.

    Raises:
        UserError: one does not; names it.
    """
    positions = positions_of_run(context)
    for where, tokens in sequences:
        if positions is not None and tokens > positions:
            raise UserError(
                f"{where} has {tokens:,} tokens, which exceed {_limit(context.encoder, positions)}; "
                f"{_leave_out(setting, positions)}"
            )


def _limit(encoder: ChatEncoder, positions: int) -> str:
    return f"the {positions:,} positions of {encoder.name} (max_position_embeddings in its config.json)"


def _leave_out(setting: str, positions: int) -> str:
    return f"set {setting} to {positions} or less: what is longer is then left out and counted"


def _beyond(encoder: ChatEncoder, prompts: Sequence[Named], limit: int) -> list[tuple[str, int]]:
    """The prompts that are longer than a limit, and their tokens."""
    found = ((where, encoder.tokens_beyond(messages(asked), limit)) for where, asked in prompts)
    return [(where, tokens) for where, tokens in found if tokens is not None]
