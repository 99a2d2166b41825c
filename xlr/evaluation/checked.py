"""Stage 5b: answers that can be checked without a judge, such as numbers or choices.

Reads pi^t (t = 0 is the start) and the questions with their right answers; writes `RUN/iter{t}/checked/`. The models
answer greedily. Run alone with `xlr check RUN --iteration t`.
"""

from xlr.chat.format import chat_settings
from xlr.data.expected import ExpectedAnswers, load_expected
from xlr.data.prompts import load_held_out, sources
from xlr.evaluation.facts import CheckFacts
from xlr.evaluation.finalanswers import is_right
from xlr.records import CheckedAnswer, ModelKey, Prompt
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import atomic_path
from xlr.run.rows import require_each_once, write_shards
from xlr.sampling import room
from xlr.sampling.responses import Sampling
from xlr.settings.config import Config
from xlr.settings.dataconfig import CheckedConfig
from xlr.settings.deciding import deciding

_SEED_ITERATION = -2  # nothing is drawn; names the responses apart from those of other stages


def iterations(config: Config) -> list[ModelKey]:
    """All models, if there are questions with right answers."""
    return config.evaluated_models if config.evaluate.checked else []


def artifact(context: Context, model: ModelKey) -> Artifact:
    """The checked answers of a model and what decides them."""
    config, section = context.config, _section(context)
    langs = config.evaluated_languages
    return Artifact(
        context.run.path,
        context.run.iteration(model) / "checked",
        "check",
        deciding(section, "evaluate.checked")
        | {
            "languages": list(langs),
            "model.dtype": config.model.dtype,
            "generate.backend": config.generate.backend,
            "generate.tensor_parallel_size": config.generate.tensor_parallel_size,
            "generate.batch_size": config.generate.batch_size,
            **chat_settings(config.model),
        },
        {
            "model": context.model(model),
            **sources(section, langs),
            **{f"answers {lang}": ExpectedAnswers(section, lang) for lang in langs},
        },
    )


def _section(context: Context) -> CheckedConfig:
    found = context.pinned(context.config.evaluate.checked)
    assert found is not None  # else the run has no such stage
    return found


def _questions(context: Context) -> list[Prompt]:
    langs = context.config.evaluated_languages
    found = load_held_out(_section(context), langs, context.config.model.system_prompt)
    return [prompt for lang in langs for prompt in found[lang]]


def check(context: Context) -> None:
    """Check early that every question has a right answer, and that answers fit the models' positions.

    Raises:
        UserError: naming what is wrong.
    """
    section = _section(context)
    for lang in context.config.evaluated_languages:
        load_expected(section, lang)
    limit, prompts = room.positions_of_run(context), room.named(_questions(context))
    room.require_room(context.encoder, prompts, limit, section.max_new_tokens, "evaluate.checked.max_new_tokens")


def make(context: Context, model: ModelKey) -> CheckFacts:
    """Ask one model, and check its answers."""
    context.require_model(model)
    target, section, config = artifact(context, model), _section(context), context.config
    asked = [(prompt, 0) for prompt in _questions(context)]
    greedy = config.generate.model_copy(
        update={"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": section.max_new_tokens}
    )
    sampling = Sampling(context, context.model(model), greedy, _SEED_ITERATION, context.encoder_of(model))
    answers = sampling.compute(target, "answers", sampling.shards(asked, {}), f"check {model}: answer").rows()
    expected = {lang: load_expected(section, lang) for lang in config.evaluated_languages}
    rows = [
        CheckedAnswer(row.id, row.lang, row.response, expected[row.lang][row.id], right)
        for row in answers
        for right in [is_right(expected[row.lang][row.id], row.response)]
    ]
    facts: CheckFacts = {
        lang: {"rows": len(own), "right": sum(row.right for row in own) / len(own)}
        for lang in config.evaluated_languages
        if (own := [row for row in rows if row.lang == lang])
    }
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        for lang in facts:
            write_shards(folder, lang, CheckedAnswer, [row for row in rows if row.lang == lang])
        require_each_once(folder, [(prompt.lang, prompt.id) for prompt, _ in asked], ("lang", "id"))
    target.finish(len(rows), facts, context.clock, {"sampled": sum(len(row.token_ids) for row in answers)})
    target.remove_pieces()
    return facts
