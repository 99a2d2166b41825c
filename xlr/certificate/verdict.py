"""Go on in a language, with which settings, or not? The rule:

- What is labelled decides first: held-out preferences, and right and wrong answers to one question. The reward is
  clearly right if the 95 % interval of its accuracy is above 50 %, from at least 10 cases. It is clearly not worth
  training on if the interval is below 60 %, from at least 30 cases, or below 50 %. A reward that is clearly right only
  with the help of length decides nothing.
- Where fewer than 30 cases decide nothing, or there are none, the two instructions do: go if their rewards clearly
  agree, do not if they clearly contradict each other. Clearly: chance explains it in fewer than 1 of 20 cases.
- Do not, in any case: the reward is the same for all responses to a prompt, no prompt gives a pair, or the policy
  cannot translate where the reward needs it.
- Else it is not clear.

With go stand the settings that cure flaws of the best responses, or choices that rounding turns around.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from xlr.certificate.facts import Agreement, Decision, ModeFacts, Precision, Remark, RightWrong, Verdict
from xlr.labelled.facts import PreferenceFacts
from xlr.languages import ENGLISH
from xlr.maths.shares import Z, share_interval
from xlr.settings.config import Config
from xlr.settings.pairconfig import Flaw
from xlr.settings.scoreconfig import IMPLICIT, Reward

_MOSTLY_LENGTH = 0.7  # from this rank correlation with length on, a reward is mostly length
_FOREIGN = 0.2  # above this share of texts in another language, a warning
_WIDE = 0.25  # if the 95 % interval of chance reaches further from one half, there are too few candidates to judge
_WORTH = 0.6  # a reward that is clearly less often right than this is not worth training on
_FEW, _MANY = 10, 30  # labelled cases: the fewest that can be a reason to go on, and to decide that there is none
_HALF = 0.5  # below this share of prompts that give a pair, a warning
_TURNED = 0.05  # above this share of choices that rounding changes, a warning

_FILTER = "pair.filters=["

# Flaw -> its wording in the verdict, and the share of chosen candidates above which it is a warning.
_FLAWS: dict[Flaw, tuple[str, float]] = {
    "wrong_language": ("in another language", _FOREIGN),
    "truncated": ("cut off at generate.max_new_tokens", 0.5),
    "repeated": ("that repeat themselves", 0.5),
}


@dataclass(frozen=True)
class Evidence:
    """What was measured in a language."""

    modes: Mapping[Reward, ModeFacts]
    agreement: Sequence[Agreement]
    preferences: dict[Reward, PreferenceFacts]
    checked: dict[Reward, RightWrong]
    precision: Precision | None
    prompts: int
    """Number of prompts that were asked."""


@dataclass(frozen=True)
class _Sign:
    """What one figure says."""

    text: str
    against: bool = False
    """Whether it is a reason not to go on."""
    good: bool = False
    """Whether it is a reason to go on."""
    caution: bool = False
    """Whether it is a problem that alone decides nothing."""
    setting: str = ""
    """KEY=VALUE that cures what the text warns of."""


def decide(lang: str, name: str, config: Config, evidence: Evidence) -> Verdict:
    """The verdict on the reward of the run's own mode.

    Args:
        config: the configuration of the certified iteration.
    """
    mode = decisive_mode(lang, config)
    labelled = [*_on_preferences(lang, mode, evidence.preferences), *_on_answers(mode, evidence.checked)]
    agreeing = [sign for own in evidence.agreement for sign in _on_agreement(mode, own)]
    others = [
        *(sign for own, facts in evidence.modes.items() for sign in _on_reward(own, facts, own == mode)),
        *_on_pairs(evidence.modes[mode]["chosen"]["rows"], evidence.prompts),
        *_on_flaws(mode, evidence.modes, config),
        *_on_precision(mode, evidence.precision),
    ]
    if lang == ENGLISH and mode == "crosslingual":
        others.append(
            _Sign(f"{name} is scored under the English instruction in every mode, so there is one implicit reward")
        )
    # What is labelled says more than that two instructions agree.
    decisive = [sign for sign in labelled if sign.good or sign.against]
    signs = [*labelled, *agreeing, *others]
    against = [sign for sign in ([*decisive, *others] if decisive else signs) if sign.against]
    unclear = any(sign.caution for sign in labelled)
    good = [sign for sign in decisive or ([] if unclear else agreeing) if sign.good]
    settings = _merged([sign.setting for sign in others if sign.setting], config.pair.filters)
    decision: Decision = "do not" if against else ("go with" if settings else "go") if good else "not clear"
    ordered = sorted(signs, key=lambda sign: not (sign.against or sign.good))
    return {
        "decision": decision,
        "settings": settings if decision == "go with" else [],
        "remarks": [_remark(sign) for sign in ordered]
        or [{"text": "no sign of a problem, and none that the reward is right", "warning": False}],
    }


def decisive_mode(lang: str, config: Config) -> Reward:
    """The reward that a language's verdict is on: the run's first. In English all implicit ones are crosslingual."""
    return "crosslingual" if lang == ENGLISH and config.score.first in IMPLICIT else config.score.first


def in_words(verdict: Verdict) -> str:
    """The decision, with the settings that it asks for."""
    return " ".join([verdict["decision"], *verdict["settings"]])


def _remark(sign: _Sign) -> Remark:
    cure = f"; {sign.setting} cures it" if sign.setting else ""
    return {"text": f"{sign.text}{cure}", "warning": sign.against or sign.caution}


def _merged(settings: Sequence[str], filters: Sequence[Flaw]) -> list[str]:
    """The settings, those of pair.filters joined with the filters that the run has."""
    flaws = [own.removeprefix(_FILTER).rstrip("]") for own in settings if own.startswith(_FILTER)]
    others = [own for own in settings if not own.startswith(_FILTER)]
    return [*([f"{_FILTER}{','.join([*filters, *flaws])}]"] if flaws else []), *others]


def _on_preferences(lang: str, mode: Reward, found: Mapping[Reward, PreferenceFacts]) -> Iterator[_Sign]:
    """How often the reward prefers the better of two held-out answers."""
    own = found.get("multilingual" if lang == ENGLISH and mode == "crosslingual" else mode)
    if own is None:
        return
    low, high = share_interval(own["accuracy"], own["pairs"])
    even_low, _ = share_interval(own["length_controlled_accuracy"], own["pairs"])
    text = (
        f"the {mode} reward prefers the better answer in {_percent(own['accuracy'])} of {own['pairs']} held-out pairs "
        f"({100 * low:.0f} to {100 * high:.0f} %), with length controlled in "
        f"{_percent(own['length_controlled_accuracy'])}; the longer answer is the better one in "
        f"{_percent(own['longer_accuracy'])}"
    )
    sign = _against_chance(text, low, high, own["pairs"])
    if sign.good and even_low <= 0.5:
        sign = _Sign(f"{text}: what is beyond length is not clear", caution=True)
    yield sign


def _against_chance(text: str, low: float, high: float, count: int) -> _Sign:
    """What the 95 % interval of an accuracy says, that of `count` cases."""
    if high < 0.5 or (high < _WORTH and count >= _MANY):
        return _Sign(f"{text}: {'less often than by chance' if high < 0.5 else 'too rarely'}", against=True)
    if low > 0.5 and count >= _FEW:
        return _Sign(text, good=True)
    return _Sign(f"{text}: not clearly better than chance" if count >= _MANY else text, caution=count >= _MANY)


def _on_answers(mode: Reward, found: Mapping[Reward, RightWrong]) -> Iterator[_Sign]:
    """How often the reward prefers a right answer to a wrong one."""
    own = found.get(mode)
    if own is None:
        return
    if own["accuracy"] is None or own["interval"] is None:
        yield _Sign(
            f"{_percent(own['right'])} of the answers to questions with known answers are right: no question has both "
            "right and wrong answers to compare"
        )
        return
    low, high = own["interval"]
    text = (
        f"the {mode} reward prefers a right answer to a wrong one in {_percent(own['accuracy'])} of the cases "
        f"({100 * low:.0f} to {100 * high:.0f} %, {own['questions']} questions)"
    )
    yield _against_chance(text, low, high, own["questions"])


def _on_agreement(mode: Reward, own: Agreement) -> Iterator[_Sign]:
    """Whether two modes order candidates alike. Only two implicit rewards decide, one of them the run's own."""
    decides = mode in own["modes"] and IMPLICIT.issuperset(own["modes"])
    names = " and ".join(own["modes"])
    share, deviation = own["same_order"], own["chance_deviation"]
    if own["spearman"] is None or share is None or deviation is None:
        yield _Sign(f"the {names} rewards cannot be compared: in no prompt do the responses differ in both")
        return
    within = Z * deviation
    text = (
        f"the {names} rewards order {_percent(share)} of pairs of responses alike (chance: 50 ± {100 * within:.0f} %) "
        f"and choose the same best response for {own['same_best']} of {own['prompts']} prompts"
    )
    if within > _WIDE:
        yield _Sign(f"{text}: too few responses to judge; raise --prompts or --samples")
    elif abs(share - 0.5) <= within:
        yield _Sign(f"{text}: no more than by chance", caution=True)
    elif share < 0.5:
        yield _Sign(f"{text}: they contradict each other", against=decides, caution=True)
    else:
        yield _Sign(text, good=decides)


def _on_reward(mode: Reward, own: ModeFacts, decides: bool) -> Iterator[_Sign]:
    """What is wrong with the rewards of one mode.

    Args:
        decides: whether it is the run's own mode.
    """
    rows, foreign = own["candidates"]["rows"], own["not_english"]
    if foreign > _FOREIGN * rows:
        yield _Sign(
            f"{foreign} of {rows} translations are not English: the policy cannot translate, so do not use {mode}",
            against=decides,
            caution=True,
        )
    if own["reward_deviation"] == 0:
        yield _Sign(f"the {mode} reward is the same for all responses to a prompt", against=decides, caution=True)
    correlation, deviation = own["length_correlation"] or 0.0, own["length_correlation_deviation"] or 0.0
    if abs(correlation) >= max(_MOSTLY_LENGTH, Z * deviation):
        winners = (
            "long responses win before length control"
            if correlation > 0
            else "short responses win, and length control only penalises long ones"
        )
        yield _Sign(
            f"the {mode} reward follows mostly length (rank correlation {correlation:+.2f}): {winners}", caution=True
        )


def _on_pairs(pairs: int, prompts: int) -> Iterator[_Sign]:
    """How many prompts give a pair."""
    if pairs < prompts:
        text = f"{pairs} of {prompts} prompts give a pair: the others have too few usable responses, or equal ones"
        yield _Sign(text, against=pairs == 0, caution=pairs < _HALF * prompts)


def _on_flaws(mode: Reward, modes: Mapping[Reward, ModeFacts], config: Config) -> Iterator[_Sign]:
    """Flaws that many chosen candidates have."""
    candidates = next(iter(modes.values()))["candidates"]
    for flaw, (wording, most) in _FLAWS.items():
        counts = {own: (facts["chosen"]["flaws"].get(flaw, 0), facts["chosen"]["rows"]) for own, facts in modes.items()}
        above = [own for own, (count, rows) in counts.items() if count > most * rows]
        if above:
            named = ", ".join(f"{own} {counts[own][0]} of {counts[own][1]}" for own in above)
            share = candidates["flaws"].get(flaw, 0) / max(candidates["rows"], 1)
            setting = _cure(flaw, share, config) if mode in above else ""
            yield _Sign(
                f"best responses {wording}: {named}; of all responses {_percent(share)}",
                caution=True,
                setting=setting,
            )


def _cure(flaw: Flaw, share: float, config: Config) -> str:
    """The setting that keeps a flaw out of the pairs, if there is one.

    Args:
        share: that of the candidates that have it. Where most have it, a filter would leave too few.
    """
    if share <= 0.5:
        return "" if flaw in config.pair.filters else f"{_FILTER}{flaw}]"
    return f"generate.max_new_tokens={2 * config.generate.max_new_tokens}" if flaw == "truncated" else ""


def _on_precision(mode: Reward, own: Precision | None) -> Iterator[_Sign]:
    """How many choices the precision changes."""
    if own is None or not own["prompts"]:
        return
    ours, other = own["precisions"]
    turned = ours == "bfloat16" and own["changed"] > _TURNED * own["prompts"]
    yield _Sign(
        f"scored in {other} instead of {ours}, rewards differ by {own['noise']:.2g} "
        f"{'points' if mode == 'model' else 'nats'} (standard deviation), and "
        f"{own['changed']} of {own['prompts']} prompts get another pair",
        caution=turned,
        setting="score.dtype=float32" if turned else "",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
