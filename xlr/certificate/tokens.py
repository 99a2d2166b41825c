"""Where in a response its reward comes from, token by token."""

from collections.abc import Mapping, Sequence

from xlr.certificate.facts import TokenMap
from xlr.chat.encoding import ChatEncoder
from xlr.chat.pieces import END, Pieces
from xlr.records import Example, Response, ScoreTask, messages
from xlr.rewarding.candidates import Candidate, candidate, conversations
from xlr.run.context import Context


def maps(context: Context, iteration: int, pairs: Mapping[str, Sequence[Response]]) -> dict[str, list[TokenMap]]:
    """Language -> the maps of two responses to a prompt, the better one first, as they are scored in English.

    Args:
        pairs: language -> a response of higher and one of lower reward; none if there are no such two.
    """
    models = context.model(iteration - 1), context.model(context.reward_reference(iteration))
    prompts = (prompt for own in context.prompts_of(iteration).values() for prompt in own)
    asked = conversations(prompts, "crosslingual", context.config.language_name)
    encoder, thinking = context.encoder, context.config.model.thinking
    found = {
        lang: [candidate(row, asked(row), encoder, thinking) for row in rows] for lang, rows in pairs.items() if rows
    }
    examples = {lang: tuple(_example(context, one) for one in own) for lang, own in found.items()}
    # One model after the other, so that a worker that holds one of them loads each once.
    tasks = (
        ((model, lang), ScoreTask((model,), own, context.config.scoring_dtype, by_token=True))
        for model in models
        for lang, own in examples.items()
    )
    logps = {key: [scored.token_logps[0][0] for scored in result] for key, result in context.pool.map(tasks)}
    maps: dict[str, list[TokenMap]] = {}
    for lang, own in found.items():
        for number, one in enumerate(own):
            ratios = [
                policy - reference
                for policy, reference in zip(*(logps[model, lang][number] for model in models), strict=True)
            ]
            pieces = _pieces(context.encoder, examples[lang][number].responses[0], ratios)
            shown: TokenMap = {"id": one.row.id, "sample": one.row.sample, "chosen": number == 0, "pieces": pieces}
            maps.setdefault(lang, []).append(shown)
    return maps


def _example(context: Context, one: Candidate) -> Example:
    prompt = context.encoder.prompt_of(messages(one.asked)) + context.encoder.beginning(one.thought)
    return Example(prompt, (context.encoder.response(one.text),))


def _pieces(encoder: ChatEncoder, response: Sequence[int], ratios: Sequence[float]) -> list[tuple[str, float]]:
    """Each token's text and log-ratio. The last is that of the terminator."""
    texts = Pieces(encoder)
    added = [texts.add(token, ratio) for token, ratio in zip(response[:-1], ratios[:-1], strict=True)]
    return [*(piece for piece in added if piece), *texts.rest(), (END, ratios[-1])]
