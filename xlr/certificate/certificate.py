"""`xlr certify RUN`: may the implicit reward be trusted in each language? Evidence before anything dear is computed.

Samples a few responses to a few prompts, scores them in the reward modes, and measures the reward on preferences and
on questions with known answers, where the run has some. Writes the folder
`RUN/iter{t}/certify-{mode}-{prompts}-{samples}-{languages}/`, and beside it the same name with `.json`, which holds
everything that was found, and with `.md`, which is for reading.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import get_args

from xlr.certificate import certificateview, precision, rightwrong, tokens, verdict
from xlr.certificate.diagnosis import Candidates, diagnose
from xlr.certificate.extent import RESCORED, Extent
from xlr.certificate.facts import Certificate, CertifiedLanguage, CertifyFacts, prefix
from xlr.certificate.verdict import Evidence
from xlr.data.preferencerows import preference_sources
from xlr.errors import UserError
from xlr.evaluation import checked
from xlr.labelled import preferences
from xlr.labelled.facts import PreferenceFacts
from xlr.languages import ENGLISH
from xlr.leases import lease
from xlr.maths.batching import spaced
from xlr.records import Prompt, Response, Score
from xlr.rewarding import scores
from xlr.rewarding.modes import score_rows
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import atomic_path, write_json, write_text
from xlr.run.manifests import rows_of
from xlr.run.rows import write_rows
from xlr.sampling import responses
from xlr.sampling.samplingplan import Samples
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.settings.scoreconfig import Reward
from xlr.work.dropped import Dropped

_OTHERS = ("generate.num_samples",)  # settings of responses and scores that decide nothing here
_TWO = 2  # responses to a prompt that are shown token by token
_AGAIN = "other-precision.parquet"


def require_valid(config: Config, extent: Extent) -> None:
    """Check what is to be certified, before anything is written.

    Raises:
        UserError: there is no such iteration or language.
    """
    if config.pair.by == "translations":
        raise UserError("pair.by=translations: pairs are made without a reward, so there is none to certify")
    if extent.iteration not in config.trained_iterations:
        raise UserError(
            f"--iteration {extent.iteration}: this run samples responses in iterations 1 to {config.iterations}"
        )
    known = config.trained_languages
    for lang in extent.langs:
        if lang not in known:
            raise UserError(f"--languages: {lang!r} is not a language of this run; choose from {', '.join(known)}")


def certify(context: Context, extent: Extent) -> Certificate:
    """Compute what is missing, and say for each language whether to go on.

    Raises:
        UserError: the policy or the reference is not finished, or no prompt is in all languages.
    """
    target = artifact(context, extent)
    with lease.held(context.run.leases, [target.title]), contextlib.closing(context):
        manifest = target.manifest()
        target.tidy(manifest is not None)
        if manifest is None:
            _check(context)
            _make(context, target, extent)
        found = _read(context, target, extent)
        write_json(target.folder.with_name(f"{target.folder.name}.json"), found)
        write_text(target.folder.with_name(f"{target.folder.name}.md"), certificateview.markdown(found))
    return found


def _check(context: Context) -> None:
    """Check what is sampled and scored before anything is.

    Raises:
        UserError: see the checks of the stages.
    """
    section = context.config.evaluate
    responses.check(context)
    scores.check(context)
    if section.preferences:
        preferences.check(context, context.pinned(section.preferences))
    if section.checked:
        checked.check(context)


def artifact(context: Context, extent: Extent) -> Artifact:
    """What the certificate computes. It depends on what decides responses and scores."""
    sampled = responses.artifact(context, extent.iteration)
    scored = scores.artifact(context, extent.iteration)
    own = {key: value for key, value in (sampled.settings | scored.settings).items() if key not in _OTHERS}
    shape = {"prompts": extent.prompts, "samples": extent.samples, "languages": list(extent.langs)}
    reference = {"reference": context.model(context.reward_reference(extent.iteration))}
    both = {**reference, **scored.inputs, **sampled.inputs}
    inputs = {name: value for name, value in both.items() if name != "responses"}
    section = context.config.evaluate
    if section.preferences:
        inputs |= preferences.inputs(preference_sources(context.pinned(section.preferences)))
    if section.checked:
        inputs |= rightwrong.inputs(context, extent.langs)
        own |= deciding(section.checked, "evaluate.checked")
    name = f"{prefix(context.config.at(extent.iteration))}{extent.prompts}-{extent.samples}-{'-'.join(extent.langs)}"
    folder = context.run.iteration(extent.iteration) / name
    return replace(sampled, folder=folder, stage="certify", settings=own | shape, inputs=inputs, parts={})


def choose_ids(prompts: Mapping[str, Sequence[Prompt]], langs: Sequence[str], count: int) -> list[str]:
    """Ids of at most `count` prompts that all languages have, evenly spaced in the English order.

    Raises:
        UserError: no prompt is in all languages.
    """
    in_all = set.intersection(*({prompt.id for prompt in prompts[lang]} for lang in langs))
    common = [prompt.id for prompt in prompts[ENGLISH] if prompt.id in in_all]
    if not common:
        raise UserError(f"--languages: no prompt is in all of {', '.join(langs)}; certify fewer languages at once")
    return spaced(common, count)


def modes(lang: str, own: Collection[Reward]) -> tuple[Reward, ...]:
    """The rewards that are looked at in a language. Some are dear, or need a reward model: only if the run has them."""
    wanted = {"crosslingual", *own} if lang == ENGLISH else {"crosslingual", "multilingual", *own}
    other = {"multilingual", "translate"} if lang == ENGLISH else set()  # the same instruction in English
    return tuple(mode for mode in get_args(Reward) if mode in wanted - other)


def _make(context: Context, target: Artifact, extent: Extent) -> None:
    """Sample, score and measure, and finish the artefact."""
    config, iteration, langs = context.config.at(extent.iteration), extent.iteration, extent.langs
    prompts = context.prompts_of(iteration)
    ids = choose_ids(prompts, langs, extent.prompts)
    asked = [prompt for lang in langs for prompt in prompts[lang] if prompt.id in ids]
    rows = _sampled(context, target, asked, extent)
    scored, dropped = _scored(context, target, rows, extent)
    of_precision = spaced(ids, RESCORED)
    few = [row for row in rows if row.id in of_precision]
    again = precision.rescored(context, target, few, iteration)
    answered = rightwrong.measure(context, target, iteration, langs, extent.prompts, extent.samples)
    measured = _preferences(context, target, extent)
    whole = config.generate.num_samples * sum(len(prompts[lang]) for lang in langs)
    facts: CertifyFacts = {
        "prompts": ids,
        "dropped": {mode: found.counts() for mode, found in dropped.items()},
        "preferences": measured,
        "checked": answered,
        "precisions": precision.precisions(context),
        "tokens": tokens.maps(context, iteration, _extremes(rows, scored["crosslingual"], langs)),
        "cost": {
            "seconds": context.clock.total,
            "sampled": len(rows) / whole,
            "scored": (sum(map(len, scored.values())) + len(again)) / whole,
            "labelled": sum(2 * own["pairs"] for by_mode in measured.values() for own in by_mode.values())
            + sum(own["answers"] for by_mode in answered.values() for own in by_mode.values() if own["questions"]),
        },
    }
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        write_rows(folder / "responses.parquet", Response, rows)
        for mode, found in scored.items():
            write_rows(folder / f"{mode}.parquet", Score, found)
        write_rows(folder / _AGAIN, Score, again)
    target.finish(len(rows), facts, context.clock)
    target.remove_pieces()


def _sampled(context: Context, target: Artifact, asked: Sequence[Prompt], extent: Extent) -> list[Response]:
    """Responses with the seeds of the iteration's own first ones."""
    config = context.config.at(extent.iteration)
    policy = context.require_model(extent.iteration - 1)
    sampling = responses.Sampling(context, policy, config.generate, extent.iteration, context.encoder)
    shards = sampling.shards(Samples(asked, extent.samples), {})
    return sampling.compute(target, "responses", shards, f"certify iteration {extent.iteration}: sample").rows()


def _scored(
    context: Context, target: Artifact, rows: Sequence[Response], extent: Extent
) -> tuple[dict[Reward, list[Score]], dict[Reward, Dropped]]:
    """The scores in every mode, and what could not be scored."""
    scored: dict[Reward, list[Score]] = {}
    dropped: dict[Reward, Dropped] = {}
    # translate comes first: only it samples, so the workers change from the sampler to the scoring models once.
    for mode in reversed(get_args(Reward)):
        of_mode = [row for row in rows if mode in modes(row.lang, context.config.score.weights)]
        if of_mode:
            dropped[mode] = Dropped()
            # Each mode keeps its pieces in folders of its own, which `target.remove_pieces` finds by their prefix.
            pieces = replace(target, folder=target.folder.with_name(f"{target.folder.name}.{mode}"))
            label = f"certify iteration {extent.iteration}: {mode}"
            scored[mode] = score_rows(context, pieces, mode, of_mode, extent.iteration, label, dropped[mode])
    return scored, dropped


def _preferences(context: Context, target: Artifact, extent: Extent) -> dict[str, dict[Reward, PreferenceFacts]]:
    """Language -> reward mode -> held-out preferences; empty if the run has none."""
    given = context.config.evaluate.preferences
    if given is None:
        return {}
    pinned = context.pinned(given)
    others = preference_sources(pinned).keys() - set(extent.langs)
    reference = context.reward_reference(extent.iteration)
    return preferences.measure(context, target, pinned, extent.iteration - 1, (), others, reference)[1]


def _extremes(rows: Sequence[Response], scored: Sequence[Score], langs: Sequence[str]) -> dict[str, list[Response]]:
    """Language -> the responses of the highest and the lowest reward to the first prompt that has two."""
    of_key = {row.key: row for row in rows}
    found: dict[str, list[Response]] = {lang: [] for lang in langs}
    for _, group in groupby(scored, lambda row: (row.lang, row.id)):
        ordered = sorted(group, key=lambda row: row.reward)
        if not found[ordered[0].lang] and len(ordered) >= _TWO:
            found[ordered[0].lang] = [of_key[row.key] for row in (ordered[-1], ordered[0])]
    return found


def _read(context: Context, target: Artifact, extent: Extent) -> Certificate:
    """The certificate, from the finished artefact."""
    config, iteration = context.config.at(extent.iteration), extent.iteration
    manifest = target.manifest()
    assert manifest is not None
    facts: CertifyFacts = manifest["facts"]
    prompts = context.prompts_of(iteration)
    english = {prompt.id: prompt.instruction for prompt in prompts[ENGLISH]}
    sampled = rows_of(target.folder, Response, "responses.parquet")
    scored = {
        mode: rows_of(target.folder, Score, f"{mode}.parquet")
        for mode in get_args(Reward)
        if (target.folder / f"{mode}.parquet").is_file()
    }

    rounded = precision.compare(
        facts["precisions"],
        config.pair,
        [row for mode, own in scored.items() for row in own if mode == verdict.decisive_mode(row.lang, config)],
        rows_of(target.folder, Score, _AGAIN),
        [prompt for lang in extent.langs for prompt in prompts[lang]],
    )

    def certified(lang: str) -> CertifiedLanguage:
        candidates = Candidates(
            context.config.language_name(lang),
            [prompt for prompt in prompts[lang] if prompt.id in facts["prompts"]],
            english,
            [row for row in sampled if row.lang == lang],
            {mode: [row for row in scored[mode] if row.lang == lang] for mode in modes(lang, config.score.weights)},
        )
        found = diagnose(config.pair, candidates)
        evidence = Evidence(
            found["modes"],
            found["agreement"],
            facts["preferences"].get(lang, {}),
            facts["checked"].get(lang, {}),
            rounded.get(lang),
            len(candidates.prompts),
        )
        return {
            "name": candidates.name,
            "verdict": verdict.decide(lang, candidates.name, config, evidence),
            **found,
            "preferences": evidence.preferences,
            "checked": evidence.checked,
            "precision": evidence.precision,
            "tokens": facts["tokens"].get(lang, []),
        }

    return {
        "iteration": iteration,
        "policy": context.model(iteration - 1),
        "reference": context.model(context.reward_reference(iteration)),
        "formula": scores.formula(config),
        "reward": config.score.first,
        "cost": facts["cost"],
        "languages": {lang: certified(lang) for lang in extent.langs},
    }
