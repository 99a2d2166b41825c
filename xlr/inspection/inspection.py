"""`xlr inspect RUN --iteration t`: check that the implicit reward makes sense in a language before scoring everything.

Reads the responses of an iteration and the two models, and scores the responses to a few prompts in every reward mode.
Writes `RUN/iter{t}/inspect-{prompts}-{languages}/` with the scores, and beside it the same name with `.json`, which
holds everything that was found, and with `.md`, which is for reading.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from xlr.errors import UserError
from xlr.inspection import inspectionview
from xlr.inspection.diagnosis import Candidates, diagnose
from xlr.languages import ENGLISH
from xlr.leases import lease
from xlr.records import Prompt, Response, Score
from xlr.rewarding import responses, scores
from xlr.rewarding.facts import InspectFacts, Inspection
from xlr.run.artifact import Artifact
from xlr.run.context import Context, require
from xlr.run.dropped import Dropped
from xlr.run.files import atomic_path, write_json, write_text
from xlr.run.manifests import read_manifest, rows_of
from xlr.run.rows import write_rows
from xlr.settings.config import Config, Reward


def require_valid(config: Config, iteration: int, langs: Sequence[str]) -> None:
    """Check what is to be inspected, before anything is written.

    Raises:
        UserError: there is no such iteration or language.
    """
    if iteration not in config.trained_iterations:
        raise UserError(f"--iteration {iteration}: this run samples responses in iterations 1 to {config.iterations}")
    known = config.trained_languages
    for lang in langs:
        if lang not in known:
            raise UserError(f"--languages: {lang!r} is not a language of this run; choose from {', '.join(known)}")


def inspect(context: Context, iteration: int, count: int, langs: Sequence[str]) -> Inspection:
    """Score the candidates, unless that is done, and compare the reward modes.

    Args:
        count: the number of prompts, which are the same in every language.
        langs: the languages to inspect.

    Raises:
        UserError: the responses are not finished.
    """
    config, run = context.config.at(iteration), context.run
    target = artifact(context, iteration, count, langs)
    with lease.held(run.leases, [target.title]), contextlib.closing(context):
        require(responses.artifact(context, iteration), f"xlr generate {run.path} --iteration {iteration}")
        ids = choose_ids(context.prompts_of(iteration), langs, count)
        finished = target.manifest() is not None
        target.tidy(finished)
        if not finished:
            _make(context, target, iteration, ids)
        found: Inspection = {
            "iteration": iteration,
            "policy": context.model(iteration - 1),
            "reference": context.require_model(context.reward_reference(iteration)),
            "formula": scores.FORMULA,
            "reward": config.score.reward,
            "languages": {
                lang: diagnose(config.pair, candidates) for lang, candidates in _read(context, target, iteration, ids)
            },
        }
        write_json(target.folder.with_name(f"{target.folder.name}.json"), found)
        write_text(target.folder.with_name(f"{target.folder.name}.md"), inspectionview.markdown(found))
    return found


def artifact(context: Context, iteration: int, count: int, langs: Sequence[str]) -> Artifact:
    """The scores of the inspected candidates. They depend on what decides `scores`, except for score.reward."""
    of_all = scores.artifact(context, iteration)
    own = {key: value for key, value in of_all.settings.items() if key != "score.reward"}
    folder = context.run.iteration(iteration) / f"inspect-{count}-{'-'.join(langs)}"
    return replace(of_all, folder=folder, stage="inspect", settings=own | {"prompts": count, "languages": list(langs)})


def choose_ids(prompts: dict[str, list[Prompt]], langs: Sequence[str], count: int) -> list[str]:
    """Ids of at most `count` prompts that all languages have, evenly spaced in the English order.

    Raises:
        UserError: no prompt is in all languages.
    """
    in_all = set.intersection(*({prompt.id for prompt in prompts[lang]} for lang in langs))
    common = [prompt.id for prompt in prompts[ENGLISH] if prompt.id in in_all]
    if not common:
        raise UserError(f"--languages: no prompt is in all of {', '.join(langs)}; inspect fewer languages at once")
    count = min(count, len(common))
    return [common[(2 * i + 1) * len(common) // (2 * count)] for i in range(count)]


def modes(lang: str) -> tuple[Reward, ...]:
    """The reward modes of a language. In English all modes are the same, so there is one."""
    return ("crosslingual",) if lang == ENGLISH else get_args(Reward)


def _make(context: Context, target: Artifact, iteration: int, ids: Sequence[str]) -> None:
    """Score the candidates in every mode and finish the artefact."""
    langs = target.settings["languages"]
    rows = [
        row
        for row in rows_of(context.run.iteration(iteration) / "responses", Response)
        if row.lang in langs and row.id in ids
    ]
    scored: dict[Reward, list[Score]] = {}
    dropped: dict[Reward, Dropped] = {}
    # translate comes first: only it samples, so the workers change from the sampler to the scoring models once.
    for mode in reversed(get_args(Reward)):
        of_mode = [row for row in rows if mode in modes(row.lang)]
        if of_mode:
            dropped[mode] = Dropped()
            # Each mode keeps its pieces in folders of its own, which `target.remove_pieces` finds by their prefix.
            pieces = replace(target, folder=target.folder.with_name(f"{target.folder.name}.{mode}"))
            label = f"inspect iteration {iteration}: {mode}"
            scored[mode] = scores.score_rows(context, pieces, mode, of_mode, iteration, label, dropped[mode])
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        write_rows(folder / "responses.parquet", Response, rows)
        for mode, found in scored.items():
            write_rows(folder / f"{mode}.parquet", Score, found)
    facts: InspectFacts = {
        "prompts": list(ids),
        "dropped": {mode: own.counts() for mode, own in dropped.items()},
    }
    target.finish(len(rows), facts, context.clock)
    target.remove_pieces()


def _read(context: Context, target: Artifact, iteration: int, ids: Sequence[str]) -> Iterator[tuple[str, Candidates]]:
    """Each language with its candidates, and with the length penalty of the run's own pairs if these are made."""
    of_pairs, of_scores = (read_manifest(context.run.iteration(iteration) / name) for name in ("pairs", "scores"))
    pair_facts = of_pairs["facts"] if of_pairs else {}
    prompts = context.prompts_of(iteration)
    english = {prompt.id: prompt.instruction for prompt in prompts[ENGLISH]}
    for lang in target.settings["languages"]:
        sampled = rows_of(target.folder, Response, "responses.parquet")
        scored = {mode: rows_of(target.folder, Score, f"{mode}.parquet") for mode in modes(lang)}
        alphas = {of_scores["facts"]["reward"]: pair_facts[lang]["alpha"]} if of_scores and lang in pair_facts else {}
        yield (
            lang,
            Candidates(
                context.config.language_name(lang),
                [prompt for prompt in prompts[lang] if prompt.id in ids],
                english,
                [row for row in sampled if row.lang == lang],
                {mode: [row for row in rows if row.lang == lang] for mode, rows in scored.items()},
                alphas,
            ),
        )
