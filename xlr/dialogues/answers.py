"""Stage 5c: a model answers questions of several turns, each turn after its own earlier answers.

Reads pi^t (t = 0 is the start) or a model of `evaluate.models`, and the questions; writes `RUN/iter{t}/dialogues/`.
The number of a response's sample is that of its turn, from 0. Run alone with `xlr converse RUN --iteration t`.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from xlr.chat.encoding import ChatEncoder
from xlr.chat.format import chat_settings
from xlr.data.conversations import with_system
from xlr.data.turnrows import Dialogue, load_dialogues, sources
from xlr.dialogues.facts import ConverseFacts
from xlr.errors import UserError
from xlr.records import START, Message, ModelKey, Prompt, Response, messages, row_key, turns
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import atomic_path
from xlr.run.rows import require_each_once, write_shards
from xlr.sampling import room
from xlr.sampling.responses import Sampling
from xlr.settings.config import Config
from xlr.settings.dataconfig import TurnsConfig
from xlr.settings.deciding import deciding

OF_RATINGS = ("evaluate.turns.columns.reference", "evaluate.turns.judge_max_tokens")
"""Settings of the section that decide ratings, not answers."""
_SEED_ITERATION = -3  # of all models, so that their answers differ by the model alone


def iterations(config: Config) -> list[ModelKey]:
    """All models, if there are such questions."""
    return config.evaluated_models if config.evaluate.turns else []


def artifact(context: Context, model: ModelKey) -> Artifact:
    """The answers of a model and what decides them."""
    config, section, langs = context.config, questions_of(context), context.config.evaluated_languages
    return Artifact(
        context.run.path,
        context.run.iteration(model) / "dialogues",
        "converse",
        {key: value for key, value in deciding(section, "evaluate.turns").items() if key not in OF_RATINGS}
        | {
            "languages": list(langs),
            "seed": config.seed,
            "evaluate.temperature": config.evaluate.temperature,
            "evaluate.top_p": config.evaluate.top_p,
            "model.dtype": config.model.dtype,
            "generate.backend": config.generate.backend,
            "generate.tensor_parallel_size": config.generate.tensor_parallel_size,
            "generate.batch_size": config.generate.batch_size,
            "generate.max_num_seqs": config.generate.max_num_seqs,
            **chat_settings(config.model),
        },
        {"model": context.model(model), **sources(section, langs)},
    )


def questions_of(context: Context) -> TurnsConfig:
    """The settings of the questions."""
    found = context.pinned(context.config.evaluate.turns)
    assert found is not None  # else the run has no such stage
    return found


def load(context: Context) -> list[Dialogue]:
    """The questions in all languages."""
    section = questions_of(context)
    return [one for lang in context.config.evaluated_languages for one in load_dialogues(section, lang)]


def check(context: Context) -> None:
    """Check early that the questions can be read, and that their answers fit the models' positions.

    Raises:
        UserError: naming what is wrong.
    """
    dialogues = load(context)
    models: list[ModelKey] = [START, *context.config.evaluate.models]
    for model in models:
        _require_room(context, dialogues, model)


def _require_room(context: Context, dialogues: Sequence[Dialogue], model: ModelKey) -> None:
    """Check that all turns fit a model's positions, with an answer of full length to each.

    Raises:
        UserError: they may not.
    """
    encoder, positions = context.encoder_of(model), room.positions_of(context, model)
    longest = questions_of(context).max_new_tokens
    if positions is None:
        return
    for one in dialogues:
        answers = len(one.turns)
        last = prompt(context, one, [""] * (answers - 1), encoder)
        limit = positions - answers * longest
        if (tokens := encoder.tokens_beyond(messages(last.conversation), limit)) is not None:
            raise UserError(
                f"evaluate.turns.max_new_tokens={longest}: the turns of the question {one.lang} {one.id!r} have "
                f"{tokens:,} tokens, and with {answers} answers they can exceed the {positions:,} positions of "
                f"{encoder.name} (max_position_embeddings in its config.json); lower it, or remove the question"
            )


def prompt(context: Context, one: Dialogue, answers: Sequence[str], encoder: ChatEncoder) -> Prompt:
    """A question after the answers to its earlier turns, without what the model thought before them."""
    said: list[Message] = []
    for turn, answer in zip(one.turns, answers, strict=False):
        said.append({"role": "user", "content": turn})
        said.append({"role": "assistant", "content": without_thought(answer, encoder)})
    said.append({"role": "user", "content": one.turns[len(answers)]})
    *history, last = turns(with_system(said, context.config.model.system_prompt, one.lang))
    return Prompt(one.id, one.lang, last.content, tuple(history))


def without_thought(answer: str, encoder: ChatEncoder) -> str:
    """An answer without what the model thought before it.

    Chat templates take it out of earlier turns, also where the run's settings know nothing of thinking.
    """
    _, closed, rest = answer[len(encoder.thought(answer)) :].rpartition("</think>")
    return rest.lstrip() if closed else rest


def make(context: Context, model: ModelKey) -> ConverseFacts:
    """Have one model answer all turns."""
    context.require_model(model)
    target, dialogues = artifact(context, model), load(context)
    answers: dict[tuple[str, str], list[Response]] = {(one.lang, one.id): [] for one in dialogues}
    for number in range(max(len(one.turns) for one in dialogues)):
        asked = [one for one in dialogues if len(one.turns) > number]
        for row in _turn(context, target, model, asked, answers, number):
            answers[row.lang, row.id].append(row)
    facts: ConverseFacts = {}
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        for lang in context.config.evaluated_languages:
            own = [answers[lang, one.id] for one in dialogues if one.lang == lang]
            rows = [row for found in own for row in found]
            write_shards(folder, lang, Response, rows)
            complete = sum(row.finish_reason == "stop" for row in rows) / len(rows)
            facts[lang] = {"questions": len(own), "answers": len(rows), "complete": complete}
        wanted = [row_key(one.lang, one.id, number) for one in dialogues for number in range(len(one.turns))]
        require_each_once(folder, wanted)
    tokens = sum(len(row.token_ids) for found in answers.values() for row in found)
    target.finish(len(wanted), facts, context.clock, {"sampled": tokens})
    target.remove_pieces()
    return facts


def _turn(
    context: Context,
    target: Artifact,
    model: ModelKey,
    dialogues: Sequence[Dialogue],
    answers: dict[tuple[str, str], list[Response]],
    number: int,
) -> list[Response]:
    """The answers to one turn. Where the answers before it leave no room, the answer is empty and counts as cut off."""
    evaluate, encoder = context.config.evaluate, context.encoder_of(model)
    longest = questions_of(context).max_new_tokens
    given = {"temperature": evaluate.temperature, "top_p": evaluate.top_p, "top_k": 0, "max_new_tokens": longest}
    before = {key: [row.response for row in rows] for key, rows in answers.items()}
    prompts = [prompt(context, one, before[one.lang, one.id], encoder) for one in dialogues]
    # An answer may have more tokens when it is read than when it was sampled.
    positions = room.positions_of(context, model) or sys.maxsize
    full = {
        (own.lang, own.id)
        for own in prompts
        if encoder.tokens_beyond(messages(own.conversation), positions - longest) is not None
    }
    asked = [(own, number) for own in prompts if (own.lang, own.id) not in full]
    generate = context.config.generate.model_copy(update=given)
    sampling = Sampling(context, context.model(model), generate, _SEED_ITERATION, encoder)
    # A piece holds for the conversations that it continues, not only for the names of its rows.
    conversations = hashlib.sha256(json.dumps([own.conversation for own, _ in asked]).encode()).hexdigest()
    shards = [replace(shard, digest=f"{shard.digest} {conversations}") for shard in sampling.shards(asked, {})]
    rows = sampling.compute(target, f"turn-{number}", shards, f"converse {model}: turn {number + 1}").rows()
    return [*rows, *(Response(key, lang, number, "", (), "length") for lang, key in full)]
