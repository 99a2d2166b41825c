"""Where in a response its reward comes from, token by token."""

from collections.abc import Mapping, Sequence

from xlr.certificate.facts import TokenMap
from xlr.chat.pieces import END, Pieces
from xlr.languages import ENGLISH
from xlr.records import Example, Score, ScoreTask, messages
from xlr.rewarding.candidates import scoring_conversation
from xlr.run.context import Context


def maps(context: Context, iteration: int, pairs: Mapping[str, Sequence[Score]]) -> dict[str, list[TokenMap]]:
    """Language -> the maps of its chosen and its rejected response, as they are scored under the English instruction.

    Args:
        pairs: language -> a chosen and a rejected response; none if there is no pair.
    """
    models = context.model(iteration - 1), context.model(context.reward_reference(iteration))
    english = {prompt.id: prompt for prompt in context.prompts_of(iteration)[ENGLISH]}
    tasks = {}
    for lang, rows in pairs.items():
        if rows:
            own = next(prompt for prompt in context.prompts_of(iteration)[lang] if prompt.id == rows[0].id)
            name = context.config.language_name(lang)
            asked = scoring_conversation("crosslingual", own, english[own.id], name)
            texts = context.encoder.responses([row.response for row in rows])
            example = Example(context.encoder.prompt_of(messages(asked)), tuple(texts))
            tasks[lang] = ScoreTask(models, (example,), context.config.scoring_dtype, by_token=True)
    found = dict(context.pool.map(tasks.items()))
    return {
        lang: [
            {"id": row.id, "sample": row.sample, "chosen": number == 0, "pieces": _pieces(context, response, logps)}
            for number, (row, response, logps) in enumerate(
                zip(pairs[lang], tasks[lang].examples[0].responses, found[lang][0].token_logps, strict=True)
            )
        ]
        for lang in tasks
    }


def _pieces(context: Context, response: Sequence[int], logps: tuple[list[float], ...]) -> list[tuple[str, float]]:
    """Each token's text and log-ratio. The last is that of the terminator."""
    ratios = [policy - reference for policy, reference in zip(*logps, strict=True)]
    texts = Pieces(context.encoder)
    added = [texts.add(token, ratio) for token, ratio in zip(response[:-1], ratios[:-1], strict=True)]
    return [*(piece for piece in added if piece), (END, ratios[-1])]
