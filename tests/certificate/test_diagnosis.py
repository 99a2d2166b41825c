"""The figures and the verdict of a language, from candidates made by hand."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xlr.certificate import precision, rightwrong, tokens
from xlr.certificate.diagnosis import Candidates, diagnose
from xlr.certificate.facts import RightWrong, Verdict
from xlr.certificate.verdict import Evidence, decide
from xlr.labelled.facts import PreferenceFacts
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
    section = PairConfig.model_validate({key: facts[key] for key in ("filters", "penalties") if key in facts})
    found = diagnose(section, candidates)
    own = facts.get("preferences", {}), facts.get("checked", {}), facts.get("precision")
    config = configured(facts.get("mode", "crosslingual"), section)
    return {
        **found,
        "verdict": decide(
            "es", "Spanish", config, Evidence(found["modes"], found["agreement"], *own, len(candidates.prompts))
        ),
    }


def configured(mode: str, pair: PairConfig) -> Config:
    """A configuration whose reward mode is this one."""
    models = {"initial": "a", "aligned": "b"}
    tree = {"run_dir": "run", "languages": ["en", "es"], "model": models, "prompts": {"path": "p"}}
    return Config.model_validate(tree | {"score": {"reward": mode}}).model_copy(update={"pair": pair})


def translated(text: str) -> dict[str, Any]:
    """The diagnosis for translate mode, if every translation is this text."""

    rows = [Score("q0", "es", i, f"hola {i}", "stop", text, float(i), 0.0, float(i), 1, 4, "es", 0.0) for i in range(5)]
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
    assert "order 100 % of pairs of responses alike (chance: 50 ± 12 %)" in found["verdict"]["remarks"][0]["text"]
    assert found["verdict"]["decision"] == "go"


def test_agreement_by_chance_and_contradiction_give_warnings() -> None:
    found = diagnosed(fair, shuffled)
    (by_chance,) = warnings(found)
    assert by_chance.endswith("no more than by chance")
    assert found["verdict"]["decision"] == "not clear"
    found = diagnosed(fair, lambda sample: -fair(sample))
    assert found["verdict"]["decision"] == "do not"
    (against,) = warnings(found)
    assert "order 0 % of pairs of responses alike" in against
    assert against.endswith("they contradict each other")


def test_a_reward_that_follows_length_gives_a_warning_in_both_directions() -> None:
    def chars(sample: int) -> int:
        return 10 + 3 * sample

    (long,) = warnings(diagnosed(lambda sample: sample**2, lambda sample: sample**2 + fair(sample) * 9, chars))
    assert long.startswith("the crosslingual reward follows mostly length (rank correlation +1.00): long responses win")
    short = warnings(diagnosed(lambda sample: -sample, lambda sample: -(sample**3), chars))
    assert [text.split(":")[0] for text in short] == [
        f"the {mode} reward follows mostly length (rank correlation -1.00)" for mode in ("crosslingual", "multilingual")
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
    expected = "best responses in another language: crosslingual 4 of 4, multilingual 4 of 4; of all responses 10 %"
    assert warnings(found) == [f"{expected}; pair.filters=[wrong_language] cures it"]
    assert (found["verdict"]["decision"], found["verdict"]["settings"]) == (
        "go with",
        ["pair.filters=[wrong_language]"],
    )


def test_translations_that_are_not_english_give_a_warning() -> None:
    expected = "5 of 5 translations are not English: the policy cannot translate, so do not use translate"
    assert warnings(translated("Para dormir mejor conviene cenar poco y apagar el teléfono.")) == [expected]
    assert warnings(translated("The translation failed.")) == [expected]  # as a marked one without its end mark
    assert not warnings(translated("To sleep better, eat little in the evening and turn off your phone."))


def test_equal_rewards_give_a_warning_and_no_agreement() -> None:
    found = diagnosed(fair, lambda _: 2.5)
    assert warnings(found) == ["the multilingual reward is the same for all responses to a prompt"]
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
        ({"preferences": preferred(0, 3)}, "go"),
        ({"preferences": preferred(1, 10)}, "do not"),
        ({"preferences": preferred(216, 400)}, "do not"),  # 54 %, 49 to 59
        ({"preferences": preferred(1050, 2000)}, "do not"),  # above chance, but clearly below 60 %
        ({"preferences": preferred(55, 100)}, "not clear"),
        ({"preferences": preferred(30, 100)}, "do not"),
        (
            {
                "checked": {
                    "crosslingual": RightWrong(answers=160, questions=40, right=0.4, accuracy=0.8, interval=(0.65, 0.9))
                }
            },
            "go",
        ),
        (
            {
                "checked": {
                    "crosslingual": RightWrong(answers=160, questions=0, right=0.0, accuracy=None, interval=None)
                }
            },
            "go",
        ),
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


def test_a_language_whose_responses_are_all_filtered_is_refused() -> None:
    found = diagnosed(fair, fair, language=lambda _: "en", filters=("wrong_language",))
    assert found["verdict"]["decision"] == "do not"
    assert any(text.startswith("0 of 4 prompts give a pair") for text in warnings(found))


def test_the_filters_of_the_run_stay_in_what_is_advised() -> None:
    english = {"language": lambda sample: "en" if sample == 1 else "es"}
    found = diagnosed(fair, fair, filters=("duplicate",), **english)
    assert found["verdict"]["settings"] == ["pair.filters=[duplicate,wrong_language]"]


def test_figures_are_those_of_the_rewards_that_pairs_are_chosen_by() -> None:
    """With a penalty on every response but one, that one is the best, and the spread grows."""
    english = {"language": lambda sample: "es" if sample == 4 else "en"}
    plain = diagnosed(fair, fair, **english)
    found = diagnosed(fair, fair, penalties={"wrong_language": 50.0}, **english)
    assert found["modes"]["crosslingual"]["reward_deviation"] > plain["modes"]["crosslingual"]["reward_deviation"] + 10
    best = [row["sample"] for row in found["prompts"][0]["candidates"] if row["chosen_by"]]
    assert best == [4]


def test_right_and_wrong_answers_are_compared_within_their_question() -> None:
    """Against a plain count: question a has 2 right and 1 wrong answer, b one of each, c only wrong ones."""
    answers = {
        (str(n),): own for n, own in enumerate([("a", True), ("a", False), ("a", True), ("b", False), ("b", True)])
    }
    answers |= {("5",): ("c", False), ("6",): ("c", False)}
    rewards = {("0",): 3.0, ("1",): 2.0, ("2",): 1.0, ("3",): 5.0, ("4",): 5.0, ("5",): 9.0, ("6",): 8.0}
    found = rightwrong.figures(answers, rewards)
    assert (found["answers"], found["questions"], found["right"]) == (7, 2, pytest.approx(3 / 7))
    assert found["accuracy"] == pytest.approx(((1 + 0) / 2 + 0.5) / 2)
    assert rightwrong.figures({("5",): ("c", False)}, rewards)["accuracy"] is None


def test_what_the_precision_changes_is_counted_for_each_prompt() -> None:
    rows = [Score("q0", "es", i, f"{i}" * 5, "stop", "", float(i), 0.0, float(i), 1, 5, "es", 0.0) for i in range(3)]
    rows += [replace(row, id="q1") for row in rows]
    other = [replace(row, reward=-row.reward if row.id == "q1" else row.reward) for row in rows]
    prompts = [Prompt(name, "es", "?") for name in ("q0", "q1")]
    own = precision.compare(("bfloat16", "float32"), PairConfig(length_control=False), rows, other[1:], prompts)["es"]
    assert (own["responses"], own["prompts"], own["changed"]) == (5, 2, 1)
    assert own["noise"] == pytest.approx(statistics.stdev([0.0, 0.0, 0.0, 2.0, 4.0]))


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


def test_no_token_is_lost_from_a_text_that_is_cut_within_a_character() -> None:
    cut = "a你".encode()[:-1]
    found = tokens._pieces(Bytes(), [*cut, 0], [0.5, -5.0, 2.0, 1.0])  # type: ignore[arg-type]
    assert found == [("a", 0.5), ("\ufffd", -3.0), (" ■", 1.0)]
    whole = tokens._pieces(Bytes(), [*"a你".encode(), 0], [0.5, -5.0, 2.0, 4.0, 1.0])  # type: ignore[arg-type]
    assert whole == [("a", 0.5), ("你", 1.0), (" ■", 1.0)]
