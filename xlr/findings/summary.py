"""A run in a few facts: languages, models, reward, loss, sampling, judge."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from xlr.findings.found import Found, by_translations, models, rewards
from xlr.settings.scoreconfig import Reward

_REWARD_TEXTS: dict[Reward, tuple[str, str]] = {
    "crosslingual": ("y | G(x)", "G(x): the instruction in English, with the request to answer in x's language"),
    "multilingual": ("y | x", "x: the instruction in its own language"),
    "translate": ("y′ | x′", "y′ and x′: response and instruction in English"),
}


def summary(found: Found) -> list[tuple[str, str]]:
    """Name and value of each fact."""
    own = found["settings"]
    aligned = _model_name(own["model.aligned"] or "") or "π_I, aligned on English preferences by this run"
    control = "r − α · characters; α makes chosen and rejected equally long on average, in each language"
    facts = [
        ("Languages", _languages(found, found["languages"])),
        *([("Answers in", _languages(found, found["evaluated"]))] * (found["evaluated"] != found["languages"])),
        ("π_I", _model_name(own["model.initial"])),
        ("π0", aligned),
        *(
            [("Pairs", "by translations from English and into it; nothing is scored")]
            if by_translations(found)
            else [
                ("Reward r", reward_formula(found)),
                ("Length control", _each(own["pair.length_control"], {True: control, False: "none"}.__getitem__)),
            ]
        ),
        ("Loss", _loss(found)),
        ("Sampling", _sampling(found)),
        ("Seed", str(own["seed"])),
    ]
    if judges := _judges(found):
        facts.append(("Judge", judges))
    if found["finished"]:
        facts.append(("Last stage finished", f"{datetime.fromisoformat(found['finished']):%Y-%m-%d %H:%M} UTC"))
    return facts


def reward_formula(found: Found) -> str:
    """The reward as this run computes it."""
    weights = rewards(found)
    if len(weights) == 1:
        return f"r = {_formula(found, next(iter(weights)))}"
    parts = " + ".join(f"{weight:g} × [{_formula(found, mode)}]" for mode, weight in weights.items())
    return f"r = weighted mean of rewards, each standardised in each language: {parts}"


def reward_unit(found: Found) -> str:
    """What the reward is measured in."""
    first, *others = rewards(found)
    if others:
        return "standard deviations"
    return {"model": "points of the reward model", "judge": "grades from 1 to 9"}.get(first, "nats")


def _formula(found: Found, mode: Reward) -> str:
    own = found["settings"]
    if mode == "model":
        return f"rating of y after x by {_model_name(own['score.model'])}"
    if mode == "judge":
        return f"grade of y from 1 to 9 by {_model_name(own['judge.model'])}"
    text, meaning = _REWARD_TEXTS[mode]
    reference = _each(own["score.reference"], {"initial": "π_I", "previous": "πᵗ⁻²"}.__getitem__)
    return f"log πᵗ⁻¹({text}) − log {reference}({text}), in nats; {meaning}"


def _each(value: Any, shown: Callable[[Any], str] = "{:g}".format) -> str:
    """A setting in words; the values of a list by iteration one after the other."""
    return ", then ".join(map(shown, value)) if isinstance(value, list | tuple) else shown(value)


def _languages(found: Found, codes: list[str]) -> str:
    return ", ".join(f"{found['names'][lang]} ({lang})" for lang in codes)


def _model_name(model: str) -> str:
    """A hub name, or the last part of a path. The table of settings has the whole path."""
    return model.rstrip("/").split("/")[-1] if model.startswith("/") else model


def _loss(found: Found) -> str:
    own = found["settings"]
    named = {"start": "the model that the iteration starts from", "initial": "π_I"}
    given = own["train.loss_type"]
    names = (given,) if isinstance(given, str) else given
    weights = own["train.loss_weights"] or [1] * len(names)
    losses = " + ".join(
        name if weight == 1 else f"{weight:g} · {name}" for name, weight in zip(names, weights, strict=True)
    )
    return (
        f"{losses} (β = {_each(own['train.beta'])}) + {_each(own['train.nll_weight'])} · NLL of chosen; "
        f"reference: {'none' if set(names) == {'simpo'} else _each(own['train.reference'], named.__getitem__)}"
    )


def _sampling(found: Found) -> str:
    own = found["settings"]
    return (
        f"{_each(own['generate.num_samples'])} responses per prompt, temperature "
        f"{_each(own['generate.temperature'])}, "
        f"top_p {own['generate.top_p']:g}, at most {own['generate.max_new_tokens']:,} tokens"
    )


def _judges(found: Found) -> str:
    """Every judge with its baseline and length control, usually one."""
    judged = (model["judgements"] for _, model in models(found))
    texts = (
        f"{own['judge']}, baseline {own['baseline']}, length control {own['length_control']}" for own in judged if own
    )
    return "; ".join(dict.fromkeys(texts))
