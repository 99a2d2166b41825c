"""Translations of responses by the policy itself, and the stage that makes them for `pair.by: translations`.

Every English response is translated into each other language, and every other response into English. Reads the
responses and the model; writes `RUN/iter{t}/translations/{lang}-*.parquet`. Command: `xlr translate RUN --iteration t`.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial

from xlr.chat.format import chat_settings
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.maths.rewards import MARKED_INSTRUCTION, PRIMER, TRANSLATE_INSTRUCTION, marked_translation
from xlr.records import Prompt, Response, row_key
from xlr.run.artifact import Artifact, Part
from xlr.run.context import Context, require
from xlr.run.files import atomic_path
from xlr.run.languagenames import language_names
from xlr.run.reuse import Kept
from xlr.run.rows import write_shard
from xlr.sampling import responses, room
from xlr.sampling.facts import GenerateFacts
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.work.pieces import Finished
from xlr.work.shards import Shard

_JOINTS = 64  # tokens that a text may have more of where it meets its marks, or is cut
_MARKED_TOKENS = 8192  # of a translation, as in the code of arXiv 2503.04647
Wanted = tuple[Prompt, int]
"""The request for a translation: a prompt in the language that it is for, and the number of its sample."""


def iterations(config: Config) -> list[int]:
    """The iterations whose pairs are made by translations."""
    return config.trained_iterations if config.pair.by == "translations" else []


def artifact(context: Context, iteration: int) -> Artifact:
    """The translations of one iteration, with the settings and inputs that decide them."""
    config, run = context.config.at(iteration), context.run.path
    sampled, model = context.run.iteration(iteration) / "responses", context.model(iteration - 1)
    langs = list(config.trained_languages)
    return Artifact(
        run,
        context.run.iteration(iteration) / "translations",
        "translate",
        deciding(config.generate, "generate")
        | {"languages": langs, "model.dtype": config.model.dtype, **chat_settings(config.model)},
        {"policy": model, "responses": sampled, **language_names(config, langs)},
        {
            lang: {
                "policy": model,
                **{f"responses in {own}": Part(run, sampled, own) for own in sources(config, lang)},
                **language_names(config, [lang, *sources(config, lang)]),
            }
            for lang in langs
        },
    )


def sources(config: Config, lang: str) -> list[str]:
    """The languages whose responses are translated into a language."""
    return [own for own in config.trained_languages if own != ENGLISH] if lang == ENGLISH else [ENGLISH]


def check(context: Context) -> None:
    """Check early that a response and its translation fit the policy's positions.

    Raises:
        UserError: they may not.
    """
    for lang in context.config.trained_languages:
        for source in sources(context.config, lang):
            require_room(context, source, lang, "pair.by=translations", "pair.by")


def require_room(context: Context, source: str, lang: str, given: str, key: str) -> None:
    """Check that a response and its translation fit the policy's positions.

    Args:
        source: the language of the response.
        lang: that of the translation.
        given: the setting that asks for translations.
        key: its key.

    Raises:
        UserError: they may not.
    """
    positions, longest = room.positions_of_run(context), context.config.generate.max_new_tokens
    tokens = _tokens_beside(context, source, lang)
    if positions is not None and tokens + 2 * longest > positions:
        raise UserError(
            f"generate.max_new_tokens={longest}: with {given}, a response and its translation can exceed the "
            f"{positions:,} positions of {context.encoder.name} (max_position_embeddings in its config.json); set it "
            f"to {max((positions - tokens) // 2, 1)} or less, or choose another {key}"
        )


def make(context: Context, iteration: int) -> GenerateFacts:
    """Translate every response that is not empty."""
    config, target = context.config.at(iteration), artifact(context, iteration)
    require(responses.artifact(context, iteration), f"xlr generate {context.run.path} --iteration {iteration}")
    policy, kept = context.require_model(iteration - 1), Kept(target)
    shards = [
        shard
        for lang in config.trained_languages
        if lang not in kept.languages
        for shard in _into(context, iteration, lang)
    ]
    finished = translate(context, target, policy, shards, iteration, "parts")
    counts: dict[str, Counter[str]] = {
        lang: Counter() for lang in config.trained_languages if lang not in kept.languages
    }
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        kept.link_into(folder)
        for shard in shards:
            table = finished.table(shard.name)
            wanted = [row_key(prompt.lang, prompt.id, sample) for prompt, sample in shard.plan()]
            write_shard(folder / f"{shard.name}.parquet", table, wanted)
            (lang,) = shard.totals
            counts[lang] += responses.count(table)
    made = {lang: responses.facts_of(counted) for lang, counted in counts.items()}
    facts: GenerateFacts = {lang: made[lang] if lang in made else kept.facts[lang] for lang in config.trained_languages}
    tokens = {"sampled": sum(own["tokens"] for own in made.values())}
    target.finish(sum(own["rows"] for own in facts.values()), facts, context.clock, tokens)
    target.remove_pieces()
    return facts


def _into(context: Context, iteration: int, lang: str) -> list[Shard[Sequence[Wanted]]]:
    """The requests for translations into one language, in shards.

    Several languages are translated into English; each has numbers of its own for its samples.
    """
    config = context.config.at(iteration)
    found: list[Shard[Sequence[Wanted]]] = []
    for number, source in enumerate(sources(config, lang)):
        wanted = partial(_wanted, config, lang, number * config.generate.num_samples)
        for shard in responses.shards_of(context, iteration, [source]):
            totals = Counter({lang: shard.totals[source]})
            own = Shard(f"{lang}-{len(found):05d}", f"{shard.digest} {lang}", totals, shard.plan)
            found.append(own.replanned(wanted))
    return found


def _wanted(config: Config, lang: str, first: int, rows: Sequence[Response]) -> list[Wanted]:
    return [
        (Prompt(row.id, lang, instruction(config, row.response, row.lang, lang)), first + row.sample)
        for row in rows
        if row.response.strip()
    ]


def _tokens_beside(context: Context, source: str, lang: str) -> int:
    """The tokens of a request for a translation beside the text."""
    marked = context.config.score.translation == "marked"
    prompt = context.encoder.prompt(instruction(context.config, "", source, lang))
    return len(prompt) + len(context.encoder.beginning(PRIMER if marked else ""))


def instruction(config: Config, text: str, source: str, lang: str) -> str:
    """The instruction to translate a text from one language to another."""
    names = config.language_name(source), config.language_name(lang)
    wording = MARKED_INSTRUCTION if config.score.translation == "marked" else TRANSLATE_INSTRUCTION
    return wording.format(source=names[0], target=names[1], text=text)


def translated_text(config: Config, answer: str) -> str:
    """The translation in an answer to `instruction`."""
    return marked_translation(answer) if config.score.translation == "marked" else answer


def translate(
    context: Context,
    target: Artifact,
    policy: str,
    shards: Sequence[Shard[Sequence[Wanted]]],
    iteration: int,
    pieces: str,
) -> Finished[Response]:
    """Translations by a model at temperature 0.

    Args:
        pieces: name of the folder of pieces beside the artefact.
    """
    config, given = context.config, {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    marked = config.score.translation == "marked"
    if marked:
        positions = room.positions_of_run(context) or sys.maxsize
        beside = max(_tokens_beside(context, lang, ENGLISH) for lang in config.trained_languages if lang != ENGLISH)
        longest = config.generate.max_new_tokens
        given["max_new_tokens"] = max(longest, min(_MARKED_TOKENS, positions - beside - longest - _JOINTS))
    greedy = config.generate.model_copy(update=given)
    sampling = responses.Sampling(context, policy, greedy, iteration, context.encoder, PRIMER if marked else "")
    return sampling.compute(target, pieces, [shard.replanned(sampling.work) for shard in shards], "translate")
