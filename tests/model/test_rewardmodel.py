"""Ratings of reward models against transformers' own forward passes, one conversation at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests import tiny
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.errors import UserError
from xlr.model import rewardmodel
from xlr.model.checks import require_reward_model
from xlr.model.rewardmodel import require_sound_ratings
from xlr.model.worker import Worker
from xlr.records import Example, Message, ScoreTask
from xlr.settings.modelconfig import SHARED_PROMPT

PROMPTS = ["Hola", "Why do leaves fall in autumn, and where do they go?"]
ANSWERS = ["¡Hola!", "Because the days grow shorter.\n\nThey rot.", "No lo sé."]


def own_rating(model: Path, conversation: list[Message]) -> float:
    """The rating as a reward model's card computes it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model)
    ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return float(classifier(ids).logits[0, 0])


@pytest.mark.parametrize("attention", [SHARED_PROMPT, "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_ratings_equal_the_classifier_s_own(family: str, attention: str, tmp_path: Path) -> None:
    model = tiny.save_reward_model(tmp_path / "rm", seed=3, family=family)
    encoder = ChatEncoder(load_tokenizer(model), "rm")
    asked: list[list[Message]] = [[{"role": "user", "content": text}] for text in PROMPTS]
    examples = [Example(encoder.prompt_of(turns), tuple(encoder.turns(ANSWERS))) for turns in asked]
    worker = Worker(None, "float32", attention)
    scored = worker.compute(ScoreTask((str(model),), tuple(examples), "float32", rating=True))
    for turns, found in zip(asked, scored, strict=True):
        for answer, (rating,) in zip(ANSWERS, found.logps, strict=True):
            expected = own_rating(model, [*turns, {"role": "assistant", "content": answer}])
            assert rating == pytest.approx(expected, abs=1e-5)
    ratings = [rating for found in scored for (rating,) in found.logps]
    assert len(set(ratings)) == len(ratings)


def test_padding_at_the_end_is_not_rated(tmp_path: Path) -> None:
    """transformers takes the last token that is not padding, also where a template ends with that token."""
    model = tiny.save_reward_model(tmp_path / "rm", seed=3)
    classifier = AutoModelForSequenceClassification.from_pretrained(model)
    padding = classifier.config.pad_token_id
    prompt, response = tuple(range(20, 30)), (*range(40, 47), padding, padding)
    (rating,) = rewardmodel.batch_ratings(classifier, [Example(prompt, (response,))], SHARED_PROMPT)
    assert rating == pytest.approx(classifier(torch.tensor([[*prompt, *response]])).logits.item(), abs=1e-5)


def test_in_bfloat16_the_head_does_not_round(tmp_path: Path) -> None:
    """Responses whose ratings were equal after rounding would be chosen by their place."""
    model = tiny.save_reward_model(tmp_path / "rm", seed=3)
    examples = [Example((5, 6, 7), tuple((20 + n, 30 + n, 40 + n) for n in range(16)))]
    worker = Worker(None, "bfloat16", SHARED_PROMPT)
    exact, rounded = (worker.rate([str(model)], examples, dtype)[0] for dtype in ("float32", "bfloat16"))
    for (one,), (other,) in zip(exact, rounded, strict=True):
        assert other == pytest.approx(one, abs=0.05 * (1 + abs(one)))
    assert any(torch.tensor(other).bfloat16().item() != other for (other,) in rounded)


def config_of(model: Path, **changes: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_other_models_are_refused(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    two = tiny.save_reward_model(tmp_path / "two", seed=3, num_labels=2)
    for model, message in ((two, "2 outputs"), (tiny_models["aligned"], "names LlamaForCausalLM")):
        with pytest.raises(UserError, match=message):
            require_reward_model(model, load_tokenizer(model), SHARED_PROMPT)
    headless = tmp_path / "headless"
    tiny.save(headless, seed=3)
    config_of(headless, architectures=["LlamaForSequenceClassification"], num_labels=1)
    with pytest.raises(UserError, match=r"weights are missing .*score\.weight"):
        Worker(None, "float32", SHARED_PROMPT).rate([str(headless)], [Example((1, 2), ((3,),))])


def test_a_model_that_packing_would_rate_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.save_reward_model(tmp_path / "rm", seed=3)
    classifier = AutoModelForSequenceClassification.from_pretrained(model)
    require_sound_ratings(classifier, SHARED_PROMPT, "rm")
    with monkeypatch.context() as patch:
        patch.setattr(rewardmodel, "ratable", lambda examples, _: examples)  # the last token does not enter the model
        with pytest.raises(UserError, match="differ from the model's own"):
            require_sound_ratings(classifier, SHARED_PROMPT, "rm")
    classifier.score = nn.Sequential(classifier.score)
    with pytest.raises(UserError, match="no linear layer"):
        require_sound_ratings(classifier, SHARED_PROMPT, "rm")
