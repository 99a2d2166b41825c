"""What is said of a language, from candidates made by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from xlr.config import PairConfig
from xlr.records import Prompt, Response, Score
from xlr.rewarding.diagnosis import Candidates, diagnose

PROMPTS, SAMPLES = 4, 10
Reward = Callable[[int], float]


def diagnosed(
    first: Reward,
    second: Reward,
    chars: Callable[[int], int] = lambda sample: 20 + 7 * sample % SAMPLES,
    prompts: int = PROMPTS,
    samples: int = SAMPLES,
    **facts: Any,
) -> dict[str, Any]:
    """Of two modes that give the same rewards, by sample, in every prompt."""

    def scored(reward: Reward) -> list[Score]:
        return [
            Score(
                f"q{prompt}",
                "es",
                sample,
                f"{sample:x}" * chars(sample),
                "stop",
                "",
                reward(sample),
                0.0,
                reward(sample),
                chars(sample),
                chars(sample),
                facts.get("language", lambda _: "es")(sample),
                0.0,
            )
            for prompt in range(prompts)
            for sample in range(samples)
        ]

    scores = {"crosslingual": scored(first), "multilingual": scored(second)}
    responses = [Response(row.id, row.lang, row.sample, row.response, [1], "stop") for row in scores["crosslingual"]]
    asked = [Prompt(f"q{prompt}", "es", "¿?") for prompt in range(prompts)]
    twins = {prompt.id: "?" for prompt in asked}
    return diagnose(PairConfig(), Candidates(asked, twins, responses, scores, facts.get("alphas", {})))


def translated(text: str) -> dict[str, Any]:
    """Of one mode, translate, which was given this text for every response."""

    rows = [Score("q0", "es", i, "hola", "stop", text, float(i), 0.0, float(i), 1, 4, "es", 0.0) for i in range(5)]
    responses = [Response(row.id, row.lang, row.sample, row.response, [1], "stop") for row in rows]
    candidates = Candidates([Prompt("q0", "es", "¿?")], {"q0": "?"}, responses, {"translate": rows}, {})
    return diagnose(PairConfig(), candidates)


def warnings(found: dict[str, Any]) -> list[str]:
    return [fact["text"] for fact in found["verdict"] if fact["warning"]]


def fair(sample: int) -> float:
    return float((4, 9, 2, 6, 0, 8, 1, 7, 5, 3)[sample])


def shuffled(sample: int) -> float:
    """Orders half of the pairs as `fair` does."""
    return float((7, 8, 6, 9, 5, 0, 2, 1, 3, 4)[sample])


def test_modes_that_agree_are_said_to() -> None:
    found = diagnosed(fair, lambda sample: fair(sample) ** 3 + 5)
    (own,) = found["agreement"]
    assert own["same_order"] == own["spearman"] == own["kendall"] == pytest.approx(1)
    assert own["candidate_pairs"] == PROMPTS * 45
    assert (own["same_best"], own["same_worst"], own["prompts"]) == (PROMPTS, PROMPTS, PROMPTS)
    assert own["chance_deviation"] == pytest.approx((4 * 10 * 9 * 25 / 18) ** 0.5 / 2 / 180)
    assert not warnings(found)
    assert "agree on 100 % of candidate orders (chance 50 ± 12 %)" in found["verdict"][0]["text"]
    assert found["verdict"][-1]["text"] == "nothing here speaks against the reward in Spanish"


def test_agreement_by_chance_and_contradiction_are_warned_of() -> None:
    (by_chance,) = warnings(diagnosed(fair, shuffled))
    assert by_chance.endswith("no more than by chance")
    (against,) = warnings(diagnosed(fair, lambda sample: -fair(sample)))
    assert "agree on 0 % of candidate orders" in against
    assert against.endswith("they contradict each other")


def test_a_reward_that_is_mostly_length_is_warned_of_whichever_way() -> None:
    def chars(sample: int) -> int:
        return 10 + 3 * sample

    (long,) = warnings(diagnosed(lambda sample: sample**2, lambda sample: sample**2 + fair(sample) * 9, chars))
    assert long.startswith("crosslingual is mostly length (rank correlation +1.00): long responses win")
    short = warnings(diagnosed(lambda sample: -sample, lambda sample: -(sample**3), chars))
    assert [text.split(":")[0] for text in short] == [
        f"{mode} is mostly length (rank correlation -1.00)" for mode in ("crosslingual", "multilingual")
    ]


def test_a_few_candidates_may_follow_length_by_chance() -> None:
    def chars(sample: int) -> int:
        return 10 + 3 * sample

    rising = diagnosed(float, float, chars, samples=2)
    assert rising["modes"]["crosslingual"]["length_correlation"] == pytest.approx(1)
    assert rising["modes"]["crosslingual"]["length_correlation_deviation"] == pytest.approx(0.5)
    assert len(warnings(rising)) == 2  # 1 is just above 1.96 times 0.5
    assert not warnings(diagnosed(float, float, chars, samples=2, prompts=3))


def test_best_candidates_in_another_language_are_warned_of() -> None:
    found = diagnosed(fair, fair, language=lambda sample: "en" if sample == 1 else "es")
    expected = "best candidates in another language: crosslingual 4 of 4, multilingual 4 of 4; of all candidates 10 %"
    assert warnings(found) == [expected]


def test_translations_that_are_none_are_warned_of() -> None:
    expected = "5 of 5 translations are not English: the policy does not translate, and translate says little"
    assert warnings(translated("Para dormir mejor conviene cenar poco y apagar el teléfono.")) == [expected]
    assert not warnings(translated("To sleep better, eat little in the evening and turn off your phone."))


def test_rewards_that_are_all_the_same_are_warned_of_and_compared_with_nothing() -> None:
    found = diagnosed(fair, lambda _: 2.5)
    assert warnings(found) == [
        "multilingual does not tell candidates apart: those of a prompt all have the same reward"
    ]
    assert "cannot be compared" in found["verdict"][0]["text"]
    assert found["agreement"][0]["spearman"] is None
    assert found["modes"]["multilingual"]["length_correlation"] is None


def test_the_known_length_penalty_chooses_and_others_are_found() -> None:
    def chars(sample: int) -> int:
        return 100 * (SAMPLES - sample)

    found = diagnosed(fair, fair, chars, alphas={"crosslingual": 0.5})
    by = {
        mode: [row["sample"] for row in found["prompts"][0]["candidates"] if mode in row["chosen_by"]]
        for mode in found["modes"]
    }
    best = max(range(SAMPLES), key=lambda sample: fair(sample) - 0.5 * chars(sample))
    assert by["crosslingual"] == [best]
    assert found["modes"]["crosslingual"]["alpha"] == 0.5
    assert found["modes"]["multilingual"]["alpha"] < 0.5
