"""Do the reward modes make sense in a language? Figures and a verdict in words, from a few scored candidates."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, isnan
from statistics import mean

import torch
from torch import Tensor

from xlr import detection
from xlr.data.quality import flaws
from xlr.languages import ENGLISH
from xlr.maths.agreement import chance_deviation, kendall, same_order, spearman, spearman_deviation
from xlr.records import Prompt, Response, Score
from xlr.rewarding.facts import Agreement, InspectedCandidate, InspectedLanguage, ModeFacts, Remark
from xlr.rewarding.pairs import Choices, choose
from xlr.rewarding.scoretotals import reward_facts
from xlr.settings.config import Flaw, PairConfig, Reward

_MOSTLY_LENGTH = 0.7  # from this rank correlation with length on, a reward is mostly length
_FOREIGN = 0.2  # above this share of texts in another language, a warning
_TWO_SIDED = 1.96  # standard deviations around the mean that hold 95 % of a normal distribution
_WIDE = 0.25  # if the 95 % interval of chance reaches further from one half, there are too few candidates to judge

# Flaw -> its wording in the verdict, and the share of chosen candidates above which it is a warning.
_FLAWS: dict[Flaw, tuple[str, float]] = {
    "wrong_language": ("in another language", _FOREIGN),
    "truncated": ("cut off at generate.max_new_tokens", 0.5),
    "repeated": ("that repeat themselves", 0.5),
}


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
    alphas: dict[Reward, float]
    """Reward mode -> length penalty of the run's own pairs. For other modes it is fitted on these candidates."""


def diagnose(section: PairConfig, candidates: Candidates) -> InspectedLanguage:
    """All figures of one language, its candidates and a verdict.

    Args:
        section: the settings by which pairs are chosen.
    """
    # Of all prompts, whatever is trained on, the best and the worst candidate.
    plain = section.model_copy(update={"rejected": "worst", "keep": 1.0})
    choices = {
        mode: choose(plain, rows, candidates.prompts, candidates.alphas.get(mode))
        for mode, rows in candidates.scores.items()
    }
    modes = {mode: _mode_facts(candidates, mode, own) for mode, own in choices.items()}
    agreement = [_agreement(both, candidates, choices) for both in combinations(choices, 2)]
    return {
        "name": candidates.name,
        "verdict": _verdict(candidates.prompts[0].lang, candidates.name, modes, agreement),
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
        "alpha_of": "pairs" if mode in candidates.alphas else "candidates",
    }


def _not_english(rows: Sequence[Score]) -> int:
    """Number of translations that are in another language than English. Texts of unknown language do not count."""
    detected = detection.detect(((ENGLISH, row.scored_text) for row in rows), {ENGLISH, *(row.lang for row in rows)})
    return sum(language not in ("", ENGLISH) for language in detected)


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


def _describe(candidates: Candidates, choices: Mapping[Reward, Choices], prompt: Prompt) -> list[InspectedCandidate]:
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


def _verdict(lang: str, name: str, modes: Mapping[Reward, ModeFacts], agreement: Sequence[Agreement]) -> list[Remark]:
    """What the figures say, in sentences."""
    remarks = [_on_agreement(own) for own in agreement]
    if lang == ENGLISH:
        remarks.append(_remark(f"{name} is scored under the English instruction in every mode, so there is one reward"))
    remarks += [_warning(text) for mode, own in modes.items() for text in _on_reward(mode, own)]
    remarks += [_warning(text) for text in _on_flaws(modes)]
    if not any(remark["warning"] for remark in remarks):
        remarks.append(_remark(f"no sign of a problem with the reward in {name}"))
    return remarks


def _remark(text: str) -> Remark:
    return {"text": text, "warning": False}


def _warning(text: str) -> Remark:
    return {"text": text, "warning": True}


def _on_agreement(own: Agreement) -> Remark:
    names = " and ".join(own["modes"])
    share, deviation = own["same_order"], own["chance_deviation"]
    if own["spearman"] is None or share is None or deviation is None:
        return _remark(f"{names} cannot be compared: for no prompt do both give its candidates different rewards")
    within = _TWO_SIDED * deviation
    text = (
        f"{names} order {100 * share:.0f} % of candidate pairs alike (chance: 50 ± {100 * within:.0f} %) and choose "
        f"the same best candidate for {own['same_best']} of {own['prompts']} prompts"
    )
    if within > _WIDE:
        return _remark(f"{text}: too few candidates to judge; raise --prompts")
    if abs(share - 0.5) <= within:
        return _warning(f"{text}: no more than by chance")
    return _warning(f"{text}: they contradict each other") if share < 0.5 else _remark(text)


def _on_reward(mode: str, own: ModeFacts) -> Iterator[str]:
    """Warnings about the rewards of one mode."""
    rows, foreign = own["candidates"]["rows"], own["not_english"]
    if foreign > _FOREIGN * rows:
        yield f"{foreign} of {rows} translations are not English: the policy cannot translate, so do not use {mode}"
    if not own["reward_deviation"]:
        yield f"{mode} gives all candidates of a prompt the same reward"
    correlation, deviation = own["length_correlation"] or 0.0, own["length_correlation_deviation"] or 0.0
    if abs(correlation) >= max(_MOSTLY_LENGTH, _TWO_SIDED * deviation):
        winners = (
            "long responses win before length control"
            if correlation > 0
            else "short responses win, and length control only penalises long ones"
        )
        yield f"{mode} follows mostly length (rank correlation {correlation:+.2f}): {winners}"


def _on_flaws(modes: Mapping[Reward, ModeFacts]) -> Iterator[str]:
    """Warnings about flaws that many chosen candidates have."""
    candidates = next(iter(modes.values()))["candidates"]
    for flaw, (wording, most) in _FLAWS.items():
        counts = {mode: (own["chosen"]["flaws"].get(flaw, 0), own["chosen"]["rows"]) for mode, own in modes.items()}
        above = [f"{mode} {count} of {rows}" for mode, (count, rows) in counts.items() if count > most * rows]
        if above:
            share = 100 * candidates["flaws"].get(flaw, 0) / candidates["rows"]
            yield f"best candidates {wording}: {', '.join(above)}; of all candidates {share:.0f} %"
