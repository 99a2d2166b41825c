"""Held-out preferences by language: rewards and their figures equal a plain computation, one sequence at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import inprocess, tiny
from tests.conftest import Cli, assert_refused
from tests.model.test_rewardmodel import own_rating
from xlr.evaluation import answers
from xlr.labelled import preferences
from xlr.maths.rewards import TRANSLATE_INSTRUCTION
from xlr.records import Message, PreferenceLogps
from xlr.report import report
from xlr.run.manifests import read_manifest, rows_of
from xlr.settings.config import Config

PREFIX = (
    "Please answer the following instruction using only Spanish, unless explicitly instructed to respond in a "
    "different language.\n\n"
)


def plain_logp(folder: str, prompt: str, answer: str) -> float:
    """log p(answer and its terminator | prompt) of a model, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    turn = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    after = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    logps_TV = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum(logps_TV[len(before) - 1 + index, token].item() for index, token in enumerate(after))


def test_rewards_equal_a_plain_computation_under_each_instruction(tiny_tree: dict[str, Any], tmp_path: Path) -> None:
    tiny_tree["evaluate"]["prompts"] = None
    context = inprocess.opened(Config.model_validate(tiny_tree), tmp_path / "run")
    facts = answers.make(context, 0)["preferences"]
    assert {lang: list(modes) for lang, modes in facts.items()} == {
        "en": ["multilingual"],
        "es": ["crosslingual", "multilingual"],
    }
    folder = Path(tiny_tree["evaluate"]["preferences"])
    given = {
        lang: [json.loads(line) for line in (folder / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines()]
        for lang in ("en", "es")
    }
    english = {row["id"]: row["prompt"] for row in given["en"]}
    rewards = {
        (row.lang, row.mode, row.id): (
            row.chosen_policy - row.chosen_reference,
            row.rejected_policy - row.rejected_reference,
        )
        for row in rows_of(tmp_path / "run" / "iter0" / "eval", PreferenceLogps, "preferences*")
    }
    assert len(rewards) == 12
    for (lang, mode, key), found in rewards.items():
        row = next(row for row in given[lang] if row["id"] == key)
        prompt = PREFIX + english[key] if mode == "crosslingual" else row["prompt"]
        models = tiny_tree["model"]["aligned"], tiny_tree["model"]["initial"]
        for side, reward in zip(("chosen", "rejected"), found, strict=True):
            policy, reference = (plain_logp(model, prompt, row[side]) for model in models)
            assert reward == pytest.approx(policy - reference, abs=2e-4)
    for lang, modes in facts.items():
        for mode, own in modes.items():
            pairs = [(*found, key) for (one, kind, key), found in rewards.items() if (one, kind) == (lang, mode)]
            rows = {row["id"]: row for row in given[lang]}
            assert own["pairs"] == len(pairs) == 4
            assert own["accuracy"] == sum(a > b for a, b, _ in pairs) / 4
            assert own["margin"] == pytest.approx(sum(a - b for a, b, _ in pairs) / 4)
            assert own["longer_accuracy"] == sum(len(row["chosen"]) > len(row["rejected"]) for row in rows.values()) / 4
            penalised = [
                a - own["alpha"] * len(rows[key]["chosen"]) > b - own["alpha"] * len(rows[key]["rejected"])
                for a, b, key in pairs
            ]
            assert own["length_controlled_accuracy"] == sum(penalised) / 4
    assert "preferences es" in (read_manifest(tmp_path / "run" / "iter0" / "eval") or {})["inputs"]


def plain_translation(folder: str, text: str, longest: int) -> str:
    """The most likely translation of a Spanish text into English, one token after the other, in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    asked = TRANSLATE_INSTRUCTION.format(source="Spanish", target="English", text=text)
    turn = [{"role": "user", "content": asked}]
    tokens = list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))
    before = len(tokens)
    while len(tokens) < before + longest:
        token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
    return str(tokenizer.decode(tokens[before:], skip_special_tokens=True))


@pytest.mark.parametrize("iteration", [0, 1])
def test_translated_answers_are_scored_in_english(tiny_tree: dict[str, Any], tmp_path: Path, iteration: int) -> None:
    """The model that is measured translates them; also where the others come from the first evaluation."""
    tiny_tree["evaluate"]["prompts"], tiny_tree["score"]["reward"] = None, "translate"
    context = inprocess.opened(Config.model_validate(tiny_tree), tmp_path / "run")
    policies = [tiny_tree["model"]["aligned"], str(tiny.save(context.run.iteration(1) / "model", seed=4))]
    path, rows = tiny_tree["evaluate"]["preferences"], list[PreferenceLogps]()
    for number in range(iteration + 1):
        rows, facts = preferences.measure(context, answers.artifact(context, number), path, number, rows)
        assert {lang: list(modes) for lang, modes in facts.items()} == {
            "en": ["multilingual"],
            "es": ["crosslingual", "multilingual", "translate"],
        }
    policy, folder = policies[iteration], Path(path)
    given = [json.loads(line) for line in (folder / "es.jsonl").read_text(encoding="utf-8").splitlines()]
    english = [json.loads(line) for line in (folder / "en.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = {row["id"]: row["prompt"] for row in english}
    found = {row.id: row for row in rows if row.mode == "translate"}
    assert found.keys() == {row["id"] for row in given}
    longest = tiny_tree["generate"]["max_new_tokens"]
    for row in given[:2]:
        own = found[row["id"]]
        for side, logps in (
            ("chosen", (own.chosen_policy, own.chosen_reference)),
            ("rejected", (own.rejected_policy, own.rejected_reference)),
        ):
            text = plain_translation(policy, row[side], longest)
            expected = [plain_logp(one, prompts[row["id"]], text) for one in (policy, tiny_tree["model"]["initial"])]
            assert list(logps) == pytest.approx(expected, abs=2e-4)


def test_log_probabilities_under_the_reference_are_those_of_the_first_evaluation(
    tiny_tree: dict[str, Any], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """pi_I scores the pairs once a run. pi^1 is a copy of pi_I here, so that its rewards must be 0."""
    tiny_tree["evaluate"]["prompts"] = None
    context = inprocess.opened(Config.model_validate(tiny_tree), tmp_path / "run")
    shutil.copytree(tiny_models["initial"], context.run.iteration(1) / "model")
    first, second = list[PreferenceLogps](), list[PreferenceLogps]()
    for iteration, rows in enumerate((first, second)):
        target, path = answers.artifact(context, iteration), context.config.evaluate.preferences or ""
        rows.extend(preferences.measure(context, target, path, iteration, first)[0])
    assert [row.key for row in first] == [row.key for row in second]
    assert [row.chosen_reference for row in first] == [row.chosen_reference for row in second]
    assert [(row.chosen_policy, row.rejected_policy) for row in second] == [
        (row.chosen_reference, row.rejected_reference) for row in first
    ]


def test_a_single_file_is_english(tiny_tree: dict[str, Any], tmp_path: Path) -> None:
    tiny_tree["evaluate"] |= {
        "prompts": None,
        "preferences": str(Path(tiny_tree["evaluate"]["preferences"]) / "en.jsonl"),
    }
    facts = answers.make(inprocess.opened(Config.model_validate(tiny_tree), tmp_path / "run"), 0)
    assert list(facts["preferences"]) == ["en"]


def test_a_missing_english_prompt_is_refused_before_anything_runs(
    cli: Cli, tiny_tree: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    folder = Path(tiny_tree["evaluate"]["preferences"])
    lines = (folder / "en.jsonl").read_text(encoding="utf-8").splitlines(True)
    (folder / "en.jsonl").write_text("".join(lines[1:]), encoding="utf-8")
    result = cli("run", write_config(tiny_tree))
    assert_refused(result, "es.jsonl: the preference 'q25' has no English prompt")
    assert not Path(tiny_tree["run_dir"]).joinpath("iter1").exists()


def test_a_reward_model_rates_the_pairs_once_and_categories_are_told_apart(
    tiny_tree: dict[str, Any], tmp_path: Path
) -> None:
    """The columns are those of RewardBench."""
    folder, model = Path(tiny_tree["evaluate"]["preferences"]), tiny.save_reward_model(tmp_path / "rm", 3, "llama3")
    given = [json.loads(line) for line in (folder / "en.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(given):
        row["subset"] = "Chat" if number % 2 else "Safety"
    (folder / "en.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    tiny_tree["evaluate"]["prompts"] = None
    tiny_tree["score"] |= {"reward": {"crosslingual": 1, "model": 1}, "model": str(model)}
    context = inprocess.opened(Config.model_validate(tiny_tree), tmp_path / "run")
    answers.check(context)
    facts = answers.make(context, 0)["preferences"]
    assert {lang: list(modes) for lang, modes in facts.items()} == {
        "en": ["multilingual", "model"],
        "es": ["crosslingual", "multilingual", "model"],
    }
    rated: dict[str, list[bool]] = {"Chat": [], "Safety": []}
    for row in given:
        asked: list[Message] = [{"role": "user", "content": row["prompt"]}]
        chosen, rejected = (
            own_rating(model, [*asked, {"role": "assistant", "content": row[side]}]) for side in ("chosen", "rejected")
        )
        rated[row["subset"]].append(chosen > rejected)
    own = facts["en"]["model"]
    assert own["accuracy"] == sum(map(sum, rated.values())) / 4
    assert own["categories"] == {name: {"pairs": 2, "accuracy": sum(won) / 2} for name, won in rated.items()}
    assert "categories" not in facts["es"]["model"]
    assert "reward model" in (read_manifest(tmp_path / "run" / "iter0" / "eval") or {})["inputs"]
    report.make([context.config], tmp_path)
    assert "rated by the reward model" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "model, Safety" in (tmp_path / "report.md").read_text(encoding="utf-8")
    shutil.copytree(tiny_tree["model"]["initial"], context.run.iteration(1) / "model")
    before = rows_of(tmp_path / "run" / "iter0" / "eval", PreferenceLogps, "preferences/*")
    target, path = answers.artifact(context, 1), str(folder)
    assert list(preferences.measure(context, target, path, 1, before)[1]["en"]) == ["multilingual"]
