"""Do the reward modes make sense in a language? Figures of a few scored candidates."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb, isnan
from statistics import mean

import torch
from torch import Tensor
from typing_extensions import TypedDict

from xlr import detection
from xlr.certificate.facts import Agreement, ModeFacts, ShownCandidate, ShownPrompt
from xlr.data.quality import flaws
from xlr.languages import ENGLISH
from xlr.maths.agreement import chance_deviation, kendall, same_order, spearman, spearman_deviation
from xlr.maths.rewards import FAILED_TRANSLATION
from xlr.records import Prompt, Response, Score
from xlr.rewarding.pairs import Choices, alpha_unit, choose, rewarded
from xlr.rewarding.scoretotals import reward_facts
from xlr.settings.pairconfig import PairConfig
from xlr.settings.scoreconfig import Reward


@dataclass(frozen=True)
class Candidates:
    """The responses to a few prompts of one language, scored in every mode that the language has."""

    name: str
    """The English name of the language."""
    prompts: list[Prompt]
    english: Mapping[str, str]
    """Prompt id -> the same instruction in English."""
    responses: list[Response]
    scores: dict[Reward, list[Score]]


class Figures(TypedDict):
    """What a language's candidates show."""

    modes: dict[Reward, ModeFacts]
    agreement: list[Agreement]
    prompts: list[ShownPrompt]


def plain(section: PairConfig) -> PairConfig:
    """The settings of pairs that take the best and the worst candidate of every prompt, whatever is trained on."""
    return section.model_copy(update={"rejected": "worst", "per_prompt": 1, "keep": 1.0})


def diagnose(section: PairConfig, candidates: Candidates) -> Figures:
    """All figures of one language, and its candidates.

    Args:
        section: the settings by which pairs are chosen.
    """
    choices = {
        mode: choose(plain(section), rows, candidates.prompts, alpha_unit([mode], rows))
        for mode, rows in candidates.scores.items()
    }
    # Those that the pairs are chosen by, before length control.
    own_rewards = {mode: rewarded(section, rows) for mode, rows in candidates.scores.items()}
    candidates = replace(candidates, scores=own_rewards)
    return {
        "modes": {mode: _mode_facts(candidates, mode, own) for mode, own in choices.items()},
        "agreement": [_agreement(both, candidates, choices) for both in combinations(choices, 2)],
        "prompts": [
            {
                "id": prompt.id,
                "instruction": prompt.instruction,
                "english": candidates.english[prompt.id],
                "candidates": _describe(candidates, choices, prompt),
            }
            for prompt in candidates.prompts
        ],
    }


def _mode_facts(candidates: Candidates, mode: Reward, choices: Choices) -> ModeFacts:
    """Figures of one mode: within prompts, and over all candidates, the chosen and the rejected."""
    rows = candidates.scores[mode]
    groups = list(_by_prompt(rows).values())
    rewards = [_double(row.reward for row in group) for group in groups]
    lengths = [_double(row.num_chars for row in group) for group in groups]
    correlations = list(map(spearman, rewards, lengths))
    sizes = [len(group) for group, correlation in zip(groups, correlations, strict=True) if not isnan(correlation)]
    return {
        "reward_deviation": _mean(rewards_N.std(correction=0).item() for rewards_N in rewards),
        "length_correlation": _mean(correlations),
        "length_correlation_deviation": spearman_deviation(sizes) / len(sizes) if sizes else None,
        "candidates": reward_facts(rows),
        "chosen": reward_facts([chosen for _, chosen, _ in choices.pairs]),
        "rejected": reward_facts([rejected for _, _, rejected in choices.pairs]),
        "not_english": _not_english(rows) if mode == "translate" else 0,
        "alpha": choices.alpha,
    }


def _not_english(rows: Sequence[Score]) -> int:
    """Number of translations that failed, or are in another language than English; unknown languages do not count."""
    detected = detection.detect(((ENGLISH, row.scored_text) for row in rows), {ENGLISH, *(row.lang for row in rows)})
    failed = (row.scored_text == FAILED_TRANSLATION for row in rows)
    return sum(lost or language not in ("", ENGLISH) for lost, language in zip(failed, detected, strict=True))


def _agreement(modes: tuple[Reward, Reward], candidates: Candidates, choices: Mapping[Reward, Choices]) -> Agreement:
    """How alike two modes order the candidates that both scored, and how often they choose the same texts."""
    first, second = (candidates.scores[mode] for mode in modes)
    of_second = {(row.id, row.sample): row for row in second}
    groups = [
        [(row, of_second[row.id, row.sample]) for row in group if (row.id, row.sample) in of_second]
        for group in _by_prompt(first).values()
    ]
    groups = [group for group in groups if len(group) > 1]
    sizes = [len(group) for group in groups]
    rewards = [tuple(_double(row.reward for row in own) for own in zip(*group, strict=True)) for group in groups]
    pairs = sum(comb(size, 2) for size in sizes)
    best = [{prompt.id: chosen.response for prompt, chosen, _ in choices[mode].pairs} for mode in modes]
    worst = [{prompt.id: rejected.response for prompt, _, rejected in choices[mode].pairs} for mode in modes]
    common = [prompt_id for prompt_id in best[0] if prompt_id in best[1]]
    return {
        "modes": list(modes),
        "candidate_pairs": pairs,
        "same_order": sum(same_order(*both) for both in rewards) / pairs if pairs else None,
        "chance_deviation": chance_deviation(sizes) / pairs if pairs else None,
        "spearman": _mean(spearman(*both) for both in rewards),
        "kendall": _mean(kendall(*both) for both in rewards),
        "prompts": len(common),
        "same_best": sum(best[0][prompt_id] == best[1][prompt_id] for prompt_id in common),
        "same_worst": sum(worst[0][prompt_id] == worst[1][prompt_id] for prompt_id in common),
    }


def _by_prompt(rows: Iterable[Score]) -> dict[str, list[Score]]:
    groups: defaultdict[str, list[Score]] = defaultdict(list)
    for row in rows:
        groups[row.id].append(row)
    return groups


def _double(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _mean(values: Iterable[float]) -> float | None:
    """The mean over the prompts that define the figure; None if there is none."""
    defined = [value for value in values if not isnan(value)]
    return mean(defined) if defined else None


def _describe(candidates: Candidates, choices: Mapping[Reward, Choices], prompt: Prompt) -> list[ShownCandidate]:
    """The candidates of one prompt. A candidate that no mode could score has no rewards."""
    scored = {
        mode: {row.sample: row for row in _by_prompt(rows)[prompt.id]} for mode, rows in candidates.scores.items()
    }
    sampled = [row for row in candidates.responses if row.id == prompt.id]
    # Language and flaws of a response are the same in every mode.
    any_score = {row.sample: own[row.sample] for row in sampled for own in scored.values() if row.sample in own}
    flaws_of = dict(zip(any_score, flaws(list(any_score.values())), strict=True))
    pair_of = {mode: next((pair for pair in own.pairs if pair[0] == prompt), None) for mode, own in choices.items()}
    translations = scored.get("translate", {})
    return [
        {
            "sample": row.sample,
            "response": row.response,
            "translation": translations[row.sample].scored_text if row.sample in translations else None,
            "chars": len(row.response),
            "tokens": len(row.token_ids),
            "language": any_score[row.sample].detected_lang if row.sample in any_score else "",
            "flaws": sorted(flaws_of.get(row.sample, ())),
            "rewards": {mode: own[row.sample].reward for mode, own in scored.items() if row.sample in own},
            "chosen_by": [mode for mode, pair in pair_of.items() if pair and pair[1].sample == row.sample],
            "rejected_by": [mode for mode, pair in pair_of.items() if pair and pair[2].sample == row.sample],
        }
        for row in sampled
    ]
