"""The figures and the verdict of a language, from candidates made by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from xlr.certificate.diagnosis import Candidates, diagnose
from xlr.certificate.facts import RightWrong, Verdict
from xlr.certificate.verdict import Evidence, decide
from xlr.evaluation.facts import PreferenceFacts
from xlr.records import Prompt, Response, Score
from xlr.settings.config import Config
from xlr.settings.pairconfig import PairConfig

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
    """The diagnosis for two modes; the reward of a candidate depends only on its sample number."""

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
    return certified(Candidates("Spanish", asked, twins, responses, scores), **facts)


def certified(candidates: Candidates, **facts: Any) -> dict[str, Any]:
    """The figures with their verdict."""
    found = diagnose(PairConfig(), candidates)
    own = facts.get("preferences", {}), facts.get("checked", {}), facts.get("precision")
    config = configured(facts.get("mode", "crosslingual"))
    return {**found, "verdict": decide("es", "Spanish", config, Evidence(found["modes"], found["agreement"], *own))}


def configured(mode: str) -> Config:
    """A configuration whose reward mode is this one."""
    models = {"initial": "a", "aligned": "b"}
    tree = {"run_dir": "run", "languages": ["en", "es"], "model": models, "prompts": {"path": "p"}}
    return Config.model_validate(tree | {"score": {"reward": mode}})


def translated(text: str) -> dict[str, Any]:
    """The diagnosis for translate mode, if every translation is this text."""

    rows = [Score("q0", "es", i, "hola", "stop", text, float(i), 0.0, float(i), 1, 4, "es", 0.0) for i in range(5)]
    responses = [Response(row.id, row.lang, row.sample, row.response, [1], "stop") for row in rows]
    candidates = Candidates("Spanish", [Prompt("q0", "es", "¿?")], {"q0": "?"}, responses, {"translate": rows})
    return certified(candidates, mode="translate")


def warnings(found: dict[str, Any]) -> list[str]:
    return [remark["text"] for remark in found["verdict"]["remarks"] if remark["warning"]]


def fair(sample: int) -> float:
    return float((4, 9, 2, 6, 0, 8, 1, 7, 5, 3)[sample])


def shuffled(sample: int) -> float:
    """Orders half of the pairs like `fair`."""
    return float((7, 8, 6, 9, 5, 0, 2, 1, 3, 4)[sample])


def test_modes_that_agree_give_no_warning() -> None:
    found = diagnosed(fair, lambda sample: fair(sample) ** 3 + 5)
    (own,) = found["agreement"]
    assert own["same_order"] == own["spearman"] == own["kendall"] == pytest.approx(1)
    assert own["candidate_pairs"] == PROMPTS * 45
    assert (own["same_best"], own["same_worst"], own["prompts"]) == (PROMPTS, PROMPTS, PROMPTS)
    assert own["chance_deviation"] == pytest.approx((4 * 10 * 9 * 25 / 18) ** 0.5 / 2 / 180)
    assert not warnings(found)
    assert "order 100 % of candidate pairs alike (chance: 50 ± 12 %)" in found["verdict"]["remarks"][0]["text"]
    assert found["verdict"]["decision"] == "go"


def test_agreement_by_chance_and_contradiction_give_warnings() -> None:
    found = diagnosed(fair, shuffled)
    (by_chance,) = warnings(found)
    assert by_chance.endswith("no more than by chance")
    assert found["verdict"]["decision"] == "not clear"
    found = diagnosed(fair, lambda sample: -fair(sample))
    assert found["verdict"]["decision"] == "do not"
    (against,) = warnings(found)
    assert "order 0 % of candidate pairs alike" in against
    assert against.endswith("they contradict each other")


def test_a_reward_that_follows_length_gives_a_warning_in_both_directions() -> None:
    def chars(sample: int) -> int:
        return 10 + 3 * sample

    (long,) = warnings(diagnosed(lambda sample: sample**2, lambda sample: sample**2 + fair(sample) * 9, chars))
    assert long.startswith("crosslingual follows mostly length (rank correlation +1.00): long responses win")
    short = warnings(diagnosed(lambda sample: -sample, lambda sample: -(sample**3), chars))
    assert [text.split(":")[0] for text in short] == [
        f"{mode} follows mostly length (rank correlation -1.00)" for mode in ("crosslingual", "multilingual")
    ]


def test_few_candidates_may_follow_length_by_chance() -> None:
    def chars(sample: int) -> int:
        return 10 + 3 * sample

    rising = diagnosed(float, float, chars, samples=2)
    assert rising["modes"]["crosslingual"]["length_correlation"] == pytest.approx(1)
    assert rising["modes"]["crosslingual"]["length_correlation_deviation"] == pytest.approx(0.5)
    assert len(warnings(rising)) == 2  # 1 is just above 1.96 times 0.5
    assert not warnings(diagnosed(float, float, chars, samples=2, prompts=3))


def test_best_candidates_in_another_language_give_a_warning() -> None:
    found = diagnosed(fair, fair, language=lambda sample: "en" if sample == 1 else "es")
    expected = "best candidates in another language: crosslingual 4 of 4, multilingual 4 of 4; of all candidates 10 %"
    assert warnings(found) == [f"{expected}; set pair.filters=[wrong_language]"]
    assert (found["verdict"]["decision"], found["verdict"]["settings"]) == (
        "go with",
        ["pair.filters=[wrong_language]"],
    )


def test_translations_that_are_not_english_give_a_warning() -> None:
    expected = "5 of 5 translations are not English: the policy cannot translate, so do not use translate"
    assert warnings(translated("Para dormir mejor conviene cenar poco y apagar el teléfono.")) == [expected]
    assert not warnings(translated("To sleep better, eat little in the evening and turn off your phone."))


def test_equal_rewards_give_a_warning_and_no_agreement() -> None:
    found = diagnosed(fair, lambda _: 2.5)
    assert warnings(found) == ["multilingual gives all candidates of a prompt the same reward"]
    assert "cannot be compared" in " ".join(remark["text"] for remark in found["verdict"]["remarks"])
    assert found["verdict"]["decision"] == "not clear"
    assert found["agreement"][0]["spearman"] is None
    assert found["modes"]["multilingual"]["length_correlation"] is None


def preferred(right: int, pairs: int, controlled: int | None = None, longer: float = 0.5) -> dict[str, PreferenceFacts]:
    """The reward prefers the better answer in so many pairs, and with length controlled in so many."""
    share = (right if controlled is None else controlled) / pairs
    return {
        "crosslingual": {
            "pairs": pairs,
            "accuracy": right / pairs,
            "margin": 1.0,
            "alpha": 0.0,
            "length_controlled_accuracy": share,
            "longer_accuracy": longer,
        }
    }


@pytest.mark.parametrize(
    ("facts", "decision"),
    [
        ({"preferences": preferred(80, 100)}, "go"),
        ({"preferences": preferred(80, 100, 52, 0.9)}, "not clear"),  # only length
        ({"preferences": preferred(50, 100)}, "do not"),  # with 100 pairs, 60 % would have been seen
        ({"preferences": preferred(5, 10)}, "go"),  # too few to say anything: agreement decides
        ({"preferences": preferred(55, 100)}, "not clear"),
        ({"preferences": preferred(30, 100)}, "do not"),
        ({"checked": {"crosslingual": RightWrong(questions=40, right=0.4, accuracy=0.8, interval=(0.65, 0.9))}}, "go"),
        ({"checked": {"crosslingual": RightWrong(questions=0, right=0.0, accuracy=None, interval=None)}}, "go"),
        (
            {
                "precision": {
                    "precisions": ("bfloat16", "float32"),
                    "responses": 9,
                    "noise": 0.5,
                    "prompts": 9,
                    "changed": 3,
                }
            },
            "go with",
        ),
        (
            {
                "precision": {
                    "precisions": ("float32", "bfloat16"),
                    "responses": 9,
                    "noise": 0.5,
                    "prompts": 9,
                    "changed": 3,
                }
            },
            "go",
        ),
    ],
)
def test_what_is_labelled_decides_before_agreement(facts: dict[str, Any], decision: str) -> None:
    """The two modes agree; where the labels are too few to say anything, that decides."""
    verdict: Verdict = diagnosed(fair, fair, **facts)["verdict"]
    assert verdict["decision"] == decision
    assert verdict["settings"] == (["score.dtype=float32"] if decision == "go with" else [])


def test_preferences_decide_where_the_modes_contradict_each_other() -> None:
    found = diagnosed(fair, lambda sample: -fair(sample), preferences=preferred(80, 100))
    assert found["verdict"]["decision"] == "go"
    assert any("contradict" in text for text in warnings(found))
