"""What the rewards of a language's candidates under several modes say about each other, in figures and in words."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, isnan
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from xlr import languages
from xlr.config import Flaw, PairConfig, Reward
from xlr.data.quality import flaws
from xlr.languages import ENGLISH
from xlr.maths.agreement import chance_deviation, kendall, same_order, spearman, spearman_deviation
from xlr.records import Prompt, Response, Score
from xlr.rewarding.pairs import Choices, choose
from xlr.rewarding.scores import reward_facts

_MOSTLY_LENGTH = 0.7  # rank correlation
_FOREIGN = 0.2  # share of texts in another language
_TWO_SIDED = 1.96  # deviations that hold 95 % of what chance gives
_WIDE = 0.25  # where chance may give that much more than half, no agreement means much

# Of the best candidates: how a flaw is said, and the share that is a warning.
_FLAWS: dict[Flaw, tuple[str, float]] = {
    "wrong_language": ("in another language", _FOREIGN),
    "truncated": ("cut off at generate.max_new_tokens", 0.5),
    "repeated": ("that go round in circles", 0.5),
}


@dataclass(frozen=True)
class Candidates:
    """One language's sampled responses to a few prompts, scored under each mode that is defined for it."""

    prompts: list[Prompt]
    english: Mapping[str, str]
    """The English twins, by id."""
    responses: list[Response]
    scores: dict[Reward, list[Score]]
    alphas: dict[Reward, float]
    """Length penalties that are known; the others are found among these candidates."""


def diagnose(section: PairConfig, candidates: Candidates) -> dict[str, Any]:
    """All figures of a language, its candidates and a verdict, ready for JSON.

    Args:
        section: how pairs are chosen.
    """
    choices = {
        mode: choose(section, rows, candidates.prompts, candidates.alphas.get(mode))
        for mode, rows in candidates.scores.items()
    }
    modes = {
        mode: {
            **_mode_facts(candidates.scores[mode], own),
            "not_english": _not_english(candidates.scores[mode]) if mode == "translate" else 0,
            "alpha": own.alpha,
            "alpha_of": "pairs" if mode in candidates.alphas else "candidates",
        }
        for mode, own in choices.items()
    }
    agreement = [
        {
            "modes": list(both),
            **_agreement([candidates.scores[mode] for mode in both], [choices[mode] for mode in both]),
        }
        for both in combinations(choices, 2)
    ]
    return {
        "verdict": _verdict(candidates.prompts[0].lang, modes, agreement),
        "modes": modes,
        "agreement": agreement,
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


def _mode_facts(rows: Sequence[Score], choices: Choices) -> dict[str, Any]:
    """What is known of all candidates, the chosen and the rejected, and within prompts: how far rewards lie apart, in
    nats, and how they follow length, which chance alone makes them do within a deviation."""
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
    }


def _not_english(rows: Sequence[Score]) -> int:
    """How many translations are in another language than English, as far as that can be told."""
    detected = languages.detect((row.scored_text for row in rows), {ENGLISH, *(row.lang for row in rows)})
    return sum(language not in ("", ENGLISH) for language in detected)


def _agreement(scored: Sequence[Sequence[Score]], choices: Sequence[Choices]) -> dict[str, Any]:
    """How alike two modes order the candidates that both scored, and how often they choose the same texts."""
    first, second = scored
    of_second = {(row.id, row.sample): row for row in second}
    groups = [
        [(row, of_second[row.id, row.sample]) for row in group if (row.id, row.sample) in of_second]
        for group in _by_prompt(first).values()
    ]
    groups = [group for group in groups if len(group) > 1]
    sizes = [len(group) for group in groups]
    rewards = [tuple(_double(row.reward for row in own) for own in zip(*group, strict=True)) for group in groups]
    pairs = sum(comb(size, 2) for size in sizes)
    found: dict[str, Any] = {
        "candidate_pairs": pairs,
        "same_order": sum(same_order(*both) for both in rewards) / pairs if pairs else None,
        "chance_deviation": chance_deviation(sizes) / pairs if pairs else None,
        "spearman": _mean(spearman(*both) for both in rewards),
        "kendall": _mean(kendall(*both) for both in rewards),
    }
    best = [{prompt.id: chosen.response for prompt, chosen, _ in own.pairs} for own in choices]
    worst = [{prompt.id: rejected.response for prompt, _, rejected in own.pairs} for own in choices]
    common = [own for own in best[0] if own in best[1]]
    return found | {
        "prompts": len(common),
        "same_best": sum(best[0][own] == best[1][own] for own in common),
        "same_worst": sum(worst[0][own] == worst[1][own] for own in common),
    }


def _by_prompt(rows: Iterable[Score]) -> dict[str, list[Score]]:
    groups: defaultdict[str, list[Score]] = defaultdict(list)
    for row in rows:
        groups[row.id].append(row)
    return groups


def _double(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _mean(values: Iterable[float]) -> float | None:
    """The mean over prompts where the figure is defined."""
    defined = [value for value in values if not isnan(value)]
    return mean(defined) if defined else None


def _describe(candidates: Candidates, choices: Mapping[Reward, Choices], prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt's candidates; those that no mode could score have no rewards."""
    scored = {
        mode: {row.sample: row for row in _by_prompt(rows)[prompt.id]} for mode, rows in candidates.scores.items()
    }
    sampled = [row for row in candidates.responses if row.id == prompt.id]
    some = {row.sample: own[row.sample] for row in sampled for own in scored.values() if row.sample in own}
    found = dict(zip(some, flaws(list(some.values())), strict=True))
    pair_of = {mode: next((pair for pair in own.pairs if pair[0] == prompt), None) for mode, own in choices.items()}
    translations = scored.get("translate", {})
    return [
        {
            "sample": row.sample,
            "response": row.response,
            "translation": translations[row.sample].scored_text if row.sample in translations else None,
            "chars": len(row.response),
            "tokens": len(row.token_ids),
            "language": some[row.sample].detected_lang if row.sample in some else "",
            "flaws": sorted(found.get(row.sample, ())),
            "rewards": {mode: own[row.sample].reward for mode, own in scored.items() if row.sample in own},
            "chosen_by": [mode for mode, pair in pair_of.items() if pair and pair[1].sample == row.sample],
            "rejected_by": [mode for mode, pair in pair_of.items() if pair and pair[2].sample == row.sample],
        }
        for row in sampled
    ]


def _verdict(lang: str, modes: Mapping[Reward, Any], agreement: Sequence[Any]) -> list[dict[str, Any]]:
    """Sentences, and which of them are warnings."""
    name = languages.name(lang)
    facts = [_on_agreement(own) for own in agreement]
    if lang == ENGLISH:
        facts.append((f"{name} is scored under its own instruction in every mode: one reward", False))
    facts += [(warning, True) for mode, own in modes.items() for warning in _on_reward(mode, own)]
    for flaw, (what, most) in _FLAWS.items():
        counts = {mode: (own["chosen"]["flaws"].get(flaw, 0), own["chosen"]["rows"]) for mode, own in modes.items()}
        above = [f"{mode} {count} of {rows}" for mode, (count, rows) in counts.items() if count > most * rows]
        if above:
            all_candidates = next(iter(modes.values()))["candidates"]
            share = 100 * all_candidates["flaws"].get(flaw, 0) / all_candidates["rows"]
            facts.append((f"best candidates {what}: {', '.join(above)}; of all candidates {share:.0f} %", True))
    if not any(warning for _, warning in facts):
        facts.append((f"nothing here speaks against the reward in {name}", False))
    return [{"text": text, "warning": warning} for text, warning in facts]


def _on_agreement(own: Mapping[str, Any]) -> tuple[str, bool]:
    names = " and ".join(own["modes"])
    if own["spearman"] is None:
        return f"{names} cannot be compared: no prompt has candidates that both tell apart", False
    share, deviation = own["same_order"], own["chance_deviation"]
    within = _TWO_SIDED * deviation
    text = (
        f"{names} agree on {100 * share:.0f} % of candidate orders (chance 50 ± {100 * within:.0f} %) and on the best "
        f"candidate of {own['same_best']} of {own['prompts']} prompts"
    )
    if within > _WIDE:
        return f"{text}: too few candidates to judge; raise --prompts", False
    if abs(share - 0.5) <= within:
        return f"{text}: no more than by chance", True
    return (f"{text}: they contradict each other", True) if share < 0.5 else (text, False)


def _on_reward(mode: str, own: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about one mode's rewards."""
    rows, foreign = own["candidates"]["rows"], own["not_english"]
    if foreign > _FOREIGN * rows:
        yield f"{foreign} of {rows} translations are not English: the policy does not translate, and {mode} says little"
    if not own["reward_deviation"]:
        yield f"{mode} does not tell candidates apart: those of a prompt all have the same reward"
    correlation, deviation = own["length_correlation"] or 0.0, own["length_correlation_deviation"] or 0.0
    if abs(correlation) >= max(_MOSTLY_LENGTH, _TWO_SIDED * deviation):
        who = (
            "long responses win before length control"
            if correlation > 0
            else "short responses win, and length control only penalises long ones"
        )
        yield f"{mode} is mostly length (rank correlation {correlation:+.2f}): {who}"
