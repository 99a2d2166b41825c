"""Replay: an iteration trains on its own pairs and on a share of those of earlier iterations."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import tiny_tree
from tests.inprocess import made, opened, with_settings
from xlr.data.subsets import replayed
from xlr.errors import UserError
from xlr.records import Pair
from xlr.run.manifests import manifest_path
from xlr.settings.config import Config
from xlr.shipped import RECIPES
from xlr.training import inputs, model, reference
from xlr.training.inputs import Training


def pairs(langs: str) -> list[Pair]:
    return [Pair(str(number), lang, [], [], [], 1.0, 0.0) for number, lang in enumerate(langs)]


@given(st.text("ef", max_size=40), st.floats(0, 1), st.text(max_size=3))
def test_a_share_of_each_language_is_kept_in_order(langs: str, share: float, seed: str) -> None:
    given_pairs = pairs(langs)
    kept = replayed(given_pairs, share, seed)
    assert [pair.id for pair in kept] == sorted((pair.id for pair in kept), key=int)
    assert Counter(pair.lang for pair in kept) == Counter(
        {lang: count for lang, own in Counter(langs).items() if (count := round(share * own))}
    )
    assert kept == replayed(given_pairs, share, seed)


def test_other_seeds_keep_other_pairs() -> None:
    given_pairs = pairs("e" * 40)
    assert len({tuple(pair.id for pair in replayed(given_pairs, 0.5, str(seed))) for seed in range(5)}) == 5


@pytest.fixture(scope="module")
def config(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    tree = tiny_tree.__wrapped__(tiny_models, tmp_path_factory.mktemp("replay"))  # type: ignore[attr-defined]
    tree["evaluate"] = {}
    return Config.model_validate(tree | {"iterations": 2})


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_second_iteration_trains_on_the_pairs_of_the_first_too(
    share: float, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pairs of the second iteration are those of the first under another name."""
    run = made(config, tmp_path / "run").run
    shutil.copytree(run.path / "iter1" / "pairs", run.path / "iter2" / "pairs")
    shutil.copy(manifest_path(run.path / "iter1" / "pairs"), manifest_path(run.path / "iter2" / "pairs"))
    monkeypatch.setattr(inputs, "require", lambda artifact, command: None)
    context = opened(with_settings(config, train={"replay": share}), run.path)
    first, second = Training(context, 1).pairs, Training(context, 2).pairs
    again = [pair for pair in second if pair.id.endswith(" of iteration 1")]
    assert [pair.id for pair in second if pair not in again] == [pair.id for pair in first]
    assert len(again) == round(share * 4) * 2  # of four pairs in each of two languages
    known: Any = {(pair.lang, pair.id): pair.example for pair in first}
    assert all(pair.example == known[pair.lang, pair.id.removesuffix(" of iteration 1")] for pair in again)
    holding_out = opened(with_settings(config, train={"replay": share, "eval_pairs": 1}), run.path)
    train, held_out = Training(holding_out, 2).split
    assert [pair.replayed for pair in held_out] == [False, False]
    prompts = {(pair.lang, pair.prompt) for pair in held_out}
    assert not prompts & {(pair.lang, pair.prompt) for pair in train}, "a held-out prompt is trained on"


def test_all_pairs_of_a_held_out_prompt_are_left_out(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt may have several pairs; each has a name of its own."""
    own: list[Any] = [[{"role": role, "content": "x"}] for role in ("user", "assistant", "assistant")]
    given = [Pair(f"p{number}", "es", *own, 1.0, 0.0, number=which) for number in range(5) for which in range(3)]
    monkeypatch.setattr(Training, "_pairs_of", lambda self, iteration: given)
    training = Training(opened(with_settings(config, train={"eval_pairs": 2}), tmp_path / "run"), 1)
    assert len({pair.id for pair in training.pairs}) == len(given)
    assert [pair.id for pair in training.pairs[:3]] == ["p0", "p0 #2", "p0 #3"]
    train, held_out = training.split
    assert len(held_out) == 2
    left = {pair.prompt for pair in train}
    assert not left & {pair.prompt for pair in held_out}
    assert len(train) == 3 * len(left)
    many = Training(opened(with_settings(config, train={"eval_pairs": 14}), tmp_path / "run"), 1)
    with pytest.raises(UserError, match="holding out 14 pairs in es leaves none of another prompt"):
        _ = many.split


def test_what_is_replayed_decides_the_model_and_not_that_of_the_first_iteration(config: Config, tmp_path: Path) -> None:
    plain = opened(config, tmp_path / "run")
    half, whole = (opened(with_settings(config, train={"replay": share}), tmp_path / "run") for share in (0.5, 1.0))
    assert model.artifact(plain, 1).settings == model.artifact(half, 1).settings == model.artifact(whole, 1).settings
    assert model.artifact(half, 2).settings != model.artifact(whole, 2).settings != model.artifact(plain, 2).settings
    assert reference.artifact(half, 2).settings != reference.artifact(whole, 2).settings
    assert "pairs of iteration 1" in model.artifact(half, 2).inputs
    assert "pairs of iteration 1" in reference.artifact(half, 2).inputs
    assert set(model.artifact(plain, 2).inputs) == set(model.artifact(plain, 1).inputs)


def test_english_preferences_are_trained_on_too(config: Config, tmp_path: Path) -> None:
    given = RECIPES / "quickstart" / "preferences.jsonl"
    run = made(config, tmp_path / "run").run
    sections: dict[str, Any] = {"align": {"preferences": str(given)}}
    plain = Training(opened(with_settings(config, **sections), run.path), 1)
    half = Training(opened(with_settings(config, **sections, train={"replay_english": 0.5}), run.path), 1)
    english = [pair for pair in half.pairs if pair.id.endswith(" of align")]
    assert [pair for pair in half.pairs if pair not in english] == plain.pairs
    assert len(english) == 32
    assert {pair.lang for pair in english} == {"en"}
    rows = map(json.loads, given.read_text(encoding="utf-8").splitlines())
    known = {one["prompt"][0]["content"] for one in rows}
    assert all(any(text in half.context.encoder.decode(pair.example.prompt) for text in known) for pair in english)
    assert "English preferences" in half.sources
    assert half.settings != plain.settings
    holding = Training(
        opened(with_settings(config, **sections, train={"replay_english": 1.0, "eval_pairs": 1}), run.path), 1
    )
    train, held_out = holding.split
    assert not any(pair.replayed for pair in held_out)
    assert sum(pair.replayed for pair in train) == 64


def test_english_preferences_that_are_not_given_are_refused(config: Config) -> None:
    with pytest.raises(UserError, match=r"train\.replay_english: there are no English preferences"):
        with_settings(config, train={"replay_english": 0.5})
