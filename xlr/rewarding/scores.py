"""Stage 2: the implicit reward of every response, `log pi^(t-1)(y|G(x)) - log pi_ref(y|G(x))`.

Reads the responses and the two models; writes `RUN/iter{t}/scores/{lang}-*.parquet`. Command:
`xlr score RUN --iteration t`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from xlr.chat.encoding import load_tokenizer
from xlr.chat.format import chat_settings
from xlr.foreign.modelfiles import load_config
from xlr.judging import question
from xlr.languages import ENGLISH
from xlr.model.fused import require_usable
from xlr.records import INITIAL, Prompt, Score, messages
from xlr.rewarding import grades
from xlr.rewarding.candidates import scored_ids, scoring_conversation
from xlr.rewarding.ensemble import Combined
from xlr.rewarding.facts import ScoredProbe, ScoreFacts
from xlr.rewarding.modes import InMode, conversations_of, score_in_mode
from xlr.rewarding.scoretotals import ScoreTotals
from xlr.run.artifact import Artifact, Part, Source
from xlr.run.context import Context, require
from xlr.run.files import atomic_path, write_json
from xlr.run.languagenames import language_names
from xlr.run.manifests import part_of
from xlr.run.reuse import Kept
from xlr.run.rows import read_rows, records, write_shard
from xlr.sampling import responses, room, translations
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.settings.scoreconfig import IMPLICIT, Reward
from xlr.terminal.console import console
from xlr.work.dropped import Dropped

PROBES = "_probes.json"  # pandas and datasets read a folder without files whose names begin so
_PROBES = 4  # scored sequences that training compares with its own log-probabilities

_FORMULA = "log policy(y | x') - log reference(y | x'), summed over the response's tokens"


def iterations(config: Config) -> list[int]:
    """The iterations in which responses are scored: all but iteration 0, if pairs are made by rewards."""
    return config.trained_iterations if config.pair.by == "rewards" else []


def artifact(context: Context, iteration: int) -> Artifact:
    """The scores of one iteration, with the settings and inputs that decide them."""
    config, run, sampled = (
        context.config.at(iteration),
        context.run.path,
        context.run.iteration(iteration) / "responses",
    )
    models: dict[str, Source] = {}
    if implicit(config):
        models = {
            "policy": context.model(iteration - 1),
            "reference": context.model(context.reward_reference(iteration)),
        }
    if "model" in config.score.weights:
        models["reward model"] = context.reward_model
    judged = "judge" in config.score.weights
    if judged:
        models |= grades.inputs(context)
    langs = _scored_languages(config)
    return Artifact(
        run,
        context.run.iteration(iteration) / "scores",
        "score",
        deciding(config.score, "score")
        | {"model.dtype": config.model.dtype, **chat_settings(config.model)}
        | (grades.settings(config) if judged else {}),
        {"responses": sampled, **models, **language_names(config, langs)},
        {lang: {"responses": Part(run, sampled, lang), **models, **language_names(config, [lang])} for lang in langs},
    )


def check(context: Context) -> None:
    """Check early that policy and reference can be compared, and that the reward model can rate.

    Raises:
        UserError: pi^0 and pi_I do not share a tokenizer, pi_I or the reward model is not usable, or sequences can
            exceed their positions.
    """
    from xlr.model.checks import require_attention, require_model, require_reward_model  # imports torch

    config, initial = context.config, context.model(INITIAL)
    if "model" in config.score.weights:
        tokenizer = context.reward_encoder.tokenizer
        require_reward_model(context.reward_model, tokenizer, config.model.attn_implementation)
        for shape in {tuple(turn.role for turn in own.conversation): own for own in _trained(context)}.values():
            context.reward_encoder.prompt_of(messages(shape.conversation))  # its template may refuse a system message
    if "judge" in config.score.weights:
        grades.check(context, _trained(context))
    require_model(initial, load_tokenizer(initial))
    require_usable(config.model.fused_operations, load_config(initial))
    require_attention(initial, config.model.attn_implementation)
    if config.model.aligned:
        context.require_same_tokenizer(initial)
    prompts = _trained(context)
    for mode in implicit(config):
        require_scorable(context, mode, prompts, context.prompts[ENGLISH], config.generate.max_new_tokens)
    for lang in config.trained_languages if "translate" in config.score.weights else ():
        translations.require_room(context, lang, ENGLISH, "score.reward=translate", "score.reward")


def _trained(context: Context) -> list[Prompt]:
    return [prompt for lang in context.config.trained_languages for prompt in context.prompts[lang]]


def require_scorable(
    context: Context, mode: Reward, prompts: Iterable[Prompt], english: Iterable[Prompt], new_tokens: int
) -> None:
    """Check that prompts with responses fit the models' positions when they are scored, or are left out.

    Args:
        english: the same prompts in English.
        new_tokens: the longest response, in tokens.

    Raises:
        UserError: a longer sequence would be scored; names its prompt.
    """
    of_english, name = {prompt.id: prompt for prompt in english}, context.config.language_name
    asked = [
        (
            f"{prompt.lang} {prompt.id!r}",
            scoring_conversation(mode, prompt, of_english[prompt.id], name(prompt.lang)),
        )
        for prompt in prompts
    ]
    positions, length = room.positions_of_run(context), context.config.score.max_length
    room.require_max_length(context.encoder, asked, positions, new_tokens, "score.max_length", length)


def make(context: Context, iteration: int) -> ScoreFacts:
    """Score every response that is neither empty nor too long."""
    run, weights = context.run, context.config.score.weights
    require(responses.artifact(context, iteration), f"xlr generate {run.path} --iteration {iteration}")
    target = artifact(context, iteration)
    kept = Kept(target)
    langs = [lang for lang in _scored_languages(context.config) if lang not in kept.languages]
    shards = responses.shards_of(context, iteration, langs)
    scored = _in_every_mode(context, target, shards, iteration)
    dropped, of_all, failed = Dropped(), ScoreTotals(), Counter[str]()
    of_language = {lang: ScoreTotals() for lang in langs}
    middle = {file.stem: _middle(read_rows(file, Score)) for file in kept.files}
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        kept.link_into(folder)
        for name, keys, table in scored.by_shard(dropped):
            write_shard(folder / f"{name}.parquet", table, [key for key in keys if key not in dropped.keys])
            scores = records(table, Score)
            for totals in (of_all, of_language[part_of(name)]):
                totals.add(scores)
            middle[name] = _middle(scores)
            failed[part_of(name)] += scored.failed_translations(name)
        probed = [score for name in sorted(middle) for score in middle[name]]
        write_json(folder / PROBES, _probes(context, probed))
    warning = of_all.noise_warning() if list(weights) == implicit(context.config)[:1] else None
    if warning and context.pool.precision(context.config.scoring_dtype) == "bfloat16":
        console.print(f"  warning: {warning}")
    if failed.total():
        console.print(
            f"  warning: the translation of {failed.total():,} of {of_all.rows:,} responses failed: it did "
            "not end with its mark. They are scored as equal texts; see score.translation"
        )
    facts: ScoreFacts = {
        "formula": formula(context.config),
        "reward": list(weights),
        "dropped": dropped.counts(),
        "languages": {lang: totals.facts() for lang, totals in of_language.items()},
    }
    for lang, number in failed.items():
        if number:
            facts["languages"][lang]["failed_translations"] = number
    for lang in kept.languages:
        facts["languages"][lang] = kept.facts["languages"][lang]
        if lang in kept.facts["dropped"]:
            facts["dropped"][lang] = kept.facts["dropped"][lang]
    count = sum(own["rows"] for own in facts["languages"].values())
    target.finish(count, facts, context.clock, {"scored": of_all.tokens})
    target.remove_pieces()
    return facts


def _scored_languages(config: Config) -> list[str]:
    return [lang for lang in config.trained_languages if "translate" not in config.score.weights or lang != ENGLISH]


def implicit(config: Config) -> list[Reward]:
    """The implicit rewards among those of the run, in an order that does not depend on that of the settings."""
    return [mode for mode in get_args(Reward) if mode in config.score.weights and mode in IMPLICIT]


def formula(config: Config) -> str:
    """The run's reward as a formula."""
    weights = config.score.weights
    explicit: dict[Reward, str] = {
        "model": f"rating by {config.score.model}",
        "judge": f"grade from {question.LOWEST} to {question.HIGHEST} by {config.judge.model}",
    }
    implicit_one = f"{_FORMULA} and its terminator" if config.score.terminator else _FORMULA
    formulas = {mode: explicit.get(mode, implicit_one) for mode in weights}
    if len(weights) == 1:
        return formulas[config.score.first]
    parts = [f"{weight:g} x {mode} ({formulas[mode]})" for mode, weight in weights.items()]
    return f"weighted mean of {' and '.join(parts)}, each standardised in each language"


def _in_every_mode(
    context: Context, target: Artifact, shards: Sequence[responses.ResponseShard], iteration: int
) -> InMode | Combined:
    """The responses with the run's reward."""
    weights, label = context.config.score.weights, f"score iteration {iteration}"
    if len(weights) == 1:
        return score_in_mode(context, target, context.config.score.first, shards, iteration, label)
    # translate comes first: only it samples, so the workers change from the sampler to the scoring models once.
    order = [mode for mode in reversed(get_args(Reward)) if mode in weights]
    found = {
        mode: score_in_mode(context, target, mode, shards, iteration, f"{label}, {mode}", pieces=f"parts-{mode}")
        for mode in order
    }
    base = next(iter(implicit(context.config)), context.config.score.first)
    return Combined({mode: found[mode] for mode in (base, *(own for own in weights if own != base))}, weights)


def _middle(scores: Sequence[Score]) -> list[Score]:
    """A few scores of middle length."""
    by_length = sorted(scores, key=lambda score: score.num_tokens)
    start = max(0, (len(by_length) - _PROBES) // 2)
    return by_length[start : start + _PROBES]


def _probes(context: Context, scores: Sequence[Score]) -> list[ScoredProbe]:
    """A few of these scores, evenly spaced, as token ids: training compares its own log-probabilities with them."""
    modes = implicit(context.config)
    if not modes:
        return []
    chosen = [scores[len(scores) * number // _PROBES] for number in range(_PROBES)] if scores else []
    conversation = conversations_of(context, modes[0])
    return [
        {
            "prompt": list(context.encoder.prompt_of(messages(conversation(score)))),
            "response": list(scored_ids(context.encoder, [score.scored_text], context.config.score.terminator)[0]),
            "logp_policy": score.logps[0],
        }
        for score in dict.fromkeys(chosen)
    ]
