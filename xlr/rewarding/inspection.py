"""`xlr inspect RUN --iteration t`: does the implicit reward make sense in a language, before everything is scored?

Reads the iteration's responses and the two models, scores a few prompts' candidates under every reward mode; writes
`RUN/iter{t}/inspect-{prompts}-{languages}/`, and beside it the same name with .json (everything) and .md.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

from xlr.config import Reward
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.records import Prompt, Response, Score
from xlr.rewarding import inspectionview, responses, scores
from xlr.rewarding.diagnosis import Candidates, diagnose
from xlr.run import lease
from xlr.run.artifact import Artifact, manifest_path
from xlr.run.context import Context, require
from xlr.run.dropped import Dropped
from xlr.run.files import atomic_path, read_json, write_json, write_text
from xlr.run.rows import read_rows, write_rows


def inspect(context: Context, iteration: int, count: int, langs: Sequence[str]) -> dict[str, Any]:
    """Score the candidates, unless that is done, and say how the modes agree.

    Args:
        count: how many prompts, the same ones in every language.
        langs: languages of the run.

    Raises:
        UserError: there is no such iteration or language, or the responses are not finished.
    """
    config, run = context.config, context.run
    if not 1 <= iteration <= config.iterations:
        raise UserError(f"--iteration {iteration}: this run samples responses in iterations 1 to {config.iterations}")
    for lang in langs:
        if lang not in config.languages:
            raise UserError(f"--languages: {lang!r} is not one of this run's, which are {', '.join(config.languages)}")
    target = artifact(context, iteration, count, langs)
    with lease.held(run.leases, [target.title]), contextlib.closing(context):
        require(responses.artifact(context, iteration), f"xlr generate {run.path} --iteration {iteration}")
        ids = choose_ids(context.prompts, langs, count)
        finished = target.manifest() is not None
        target.tidy(finished)
        if not finished:
            _make(context, target, iteration, ids)
        found = {
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
    """The inspected candidates' scores and what decides them: as an iteration's scores, but for the mode."""
    of_all = scores.artifact(context, iteration)
    own = {key: value for key, value in of_all.settings.items() if key != "score.reward"}
    folder = context.run.iteration(iteration) / f"inspect-{count}-{'-'.join(langs)}"
    return replace(of_all, folder=folder, stage="inspect", settings=own | {"prompts": count, "languages": list(langs)})


def choose_ids(prompts: dict[str, list[Prompt]], langs: Sequence[str], count: int) -> list[str]:
    """Ids of at most `count` instructions that all languages have, evenly over the English order.

    Raises:
        UserError: no instruction is there in all of them.
    """
    there = set.intersection(*({prompt.id for prompt in prompts[lang]} for lang in langs))
    common = [prompt.id for prompt in prompts[ENGLISH] if prompt.id in there]
    if not common:
        raise UserError(f"--languages: no instruction is there in all of {', '.join(langs)}; inspect fewer at once")
    count = min(count, len(common))
    return [common[(2 * i + 1) * len(common) // (2 * count)] for i in range(count)]


def modes(lang: str) -> tuple[Reward, ...]:
    """The rewards that differ in a language: English is its own twin and needs no translation."""
    return ("crosslingual",) if lang == ENGLISH else get_args(Reward)


def _make(context: Context, target: Artifact, iteration: int, ids: Sequence[str]) -> None:
    langs = target.settings["languages"]
    rows = [
        row
        for row in read_rows(context.run.iteration(iteration) / "responses", Response)
        if row.lang in langs and row.id in ids
    ]
    scored: dict[Reward, list[Score]] = {}
    dropped: dict[Reward, Dropped] = {}
    for mode in reversed(get_args(Reward)):  # translate first, so that its sampler is replaced by the scorers only once
        of_mode = [row for row in rows if mode in modes(row.lang)]
        if of_mode:
            dropped[mode] = Dropped()
            # Each mode has its own pieces, in folders that begin with the artefact's name.
            pieces = replace(target, folder=target.folder.with_name(f"{target.folder.name}.{mode}"))
            label = f"inspect iteration {iteration}: {mode}"
            scored[mode] = scores.score_in_mode(context, pieces, mode, of_mode, iteration, label, dropped[mode])
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        write_rows(folder / "responses.parquet", Response, rows)
        for mode, found in scored.items():
            write_rows(folder / f"{mode}.parquet", Score, found)
    target.finish(
        len(rows),
        {"prompts": list(ids), "dropped": {mode: own.counts() for mode, own in dropped.items()}},
        context.clock,
    )
    target.remove_pieces()


def _read(context: Context, target: Artifact, iteration: int, ids: Sequence[str]) -> Iterator[tuple[str, Candidates]]:
    """Each language's candidates, with the length penalty of the run's own pairs where there are any."""
    of_pairs, of_scores = (manifest_path(context.run.iteration(iteration) / name) for name in ("pairs", "scores"))
    pair_facts = read_json(of_pairs)["facts"] if of_pairs.is_file() else {}
    english = {prompt.id: prompt.instruction for prompt in context.prompts[ENGLISH]}
    for lang in target.settings["languages"]:
        sampled = read_rows(target.folder / "responses.parquet", Response)
        scored = {mode: read_rows(target.folder / f"{mode}.parquet", Score) for mode in modes(lang)}
        alphas = {read_json(of_scores)["facts"]["reward"]: pair_facts[lang]["alpha"]} if lang in pair_facts else {}
        yield (
            lang,
            Candidates(
                [prompt for prompt in context.prompts[lang] if prompt.id in ids],
                english,
                [row for row in sampled if row.lang == lang],
                {mode: [row for row in rows if row.lang == lang] for mode, rows in scored.items()},
                alphas,
            ),
        )
