"""The configuration tree: every field is described and marked, and settings that contradict each other are refused."""

import re
from typing import Any

import pytest

from xlr.errors import UserError
from xlr.settings.config import Config
from xlr.settings.deciding import settings
from xlr.settings.schema import Ignored, Location, marks, section_type, section_types
from xlr.training import reference

MINIMAL = {
    "run_dir": "r",
    "languages": ["en", "es"],
    "model": {"initial": "a", "aligned": "b"},
    "prompts": {"path": "p"},
}

FIELDS = {
    f"{prefix}{key}": field
    for prefix, section in section_types(Config)
    for key, field in section.model_fields.items()
    if section_type(field.annotation) is None
}


def changed(**sections: Any) -> Config:
    """The minimal configuration with other settings."""
    return Config.model_validate(MINIMAL | sections)


@pytest.mark.parametrize("dotted", FIELDS)
def test_every_field_is_described(dotted: str) -> None:
    assert (FIELDS[dotted].description or "").endswith(".")


@pytest.mark.parametrize("dotted", FIELDS)
def test_a_field_that_speaks_of_a_file_is_marked_as_one(dotted: str) -> None:
    field = FIELDS[dotted]
    speaks = re.search(r"\b(files?|folders?|paths?|director(y|ies))\b", f"{dotted} {field.description}", re.IGNORECASE)
    if speaks and "str" in str(field.annotation):
        assert marks(field, Location), f"{dotted} speaks of a {speaks[0]}: mark it with a Location, or say it otherwise"


IGNORED = {
    "align.reference": ("initial", {}),
    "align.replay": (0.5, {}),
    "align.replay_english": (0.5, {}),
    "align.label_smoothing": (0.1, {"align": {"loss_type": "ipo"}}),
    "train.label_smoothing": (0.1, {"train": {"loss_type": ["ipo", "hinge"]}}),
    **{f"{stage}.simpo_gamma": (0.7, {}) for stage in ("align", "train")},
    **{f"{stage}.discopop_tau": (0.1, {}) for stage in ("align", "train")},
    "pair.rejected_quantile": (0.5, {"pair": {"rejected": "median"}}),
    **{
        f"pair.{key}": (value, {"languages": ["en", "es"], "pair": {"by": "translations"}})
        for key, value in {
            "penalties": {"truncated": 1.0},
            "per_token": True,
            "length_control": False,
            "upper_bound": 5.0,
            "rejected": "median",
            "keep": 0.5,
            "keep_margins": "smallest",
            "weight": "margin",
        }.items()
    },
    "generate.tensor_parallel_size": (2, {}),
    "generate.gpu_memory_utilization": (0.5, {}),
    "generate.max_num_seqs": (8, {}),
    **{
        f"judge.{key}": (value, {"judge": {"backend": "transformers", "input_price": 1, "output_price": 1}})
        for key, value in {
            "base_url": "http://127.0.0.1/v1",
            "serve": "serve {port}",
            "api_key_variable": "KEY",
            "preference": "choice",
            "temperature": 0.5,
            "max_tokens": 5,
            "top_logprobs": 5,
            "extra_body": {"a": 1},
            "concurrency": 1,
            "timeout": 1,
            "max_retries": 1,
            "budget": 1,
            "cache": "folder",
        }.items()
    },
}


def test_every_ignored_setting_has_a_case() -> None:
    assert set(IGNORED) == {dotted for dotted, field in FIELDS.items() if marks(field, Ignored)}


@pytest.mark.parametrize("dotted", IGNORED)
def test_a_setting_that_would_be_ignored_is_refused_with_the_reason(dotted: str) -> None:
    value, others = IGNORED[dotted]
    section, key = dotted.split(".")
    with pytest.raises(UserError, match=rf"^{section}\.{key}: has no effect.*, because .*; remove it \(default .*\)"):
        changed(**{section: others.get(section, {}) | {key: value}})


@pytest.mark.parametrize("dotted", IGNORED)
def test_a_resolved_configuration_may_spell_out_defaults_that_are_ignored(dotted: str) -> None:
    _, others = IGNORED[dotted]
    resolved = changed(**others)
    assert Config.model_validate(resolved.model_dump(mode="json")) == resolved


def test_the_refusal_names_the_switch() -> None:
    with pytest.raises(UserError) as refused:
        changed(generate={"tensor_parallel_size": 2})
    assert str(refused.value) == (
        "generate.tensor_parallel_size: has no effect with generate.backend=transformers, because transformers samples "
        "on one GPU and takes the memory it needs; remove it (default 1), or set generate.backend=vllm"
    )


def test_settings_of_the_judge_may_be_given_without_a_judge() -> None:
    assert changed(judge={"model": None, "concurrency": 3}).judge.concurrency == 3


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"languages": ["es", "es"]}, r"^languages: 'es' is a duplicate; remove it"),
        ({"evaluate": {"languages": ["es", "es"]}}, r"^evaluate\.languages: 'es' is a duplicate"),
        ({"model": {"initial": "a"}}, r"^model\.aligned: not set; .*align\.preferences"),
        ({"judge": {"model": "m"}}, r"^judge\.model: there are no answers to judge; set evaluate\.prompts"),
        ({"judge": {"baseline": 3}}, r"^judge\.baseline: there is no iteration 3; choose one from 0 to 2"),
        ({"judge": {"input_price": 1}}, r"^judge\.input_price and judge\.output_price: .*both or neither"),
        ({"judge": {"budget": 1}}, r"^judge\.budget: .*set judge\.input_price and judge\.output_price"),
        ({"judge": {"serve": "vllm serve m"}}, r"^judge\.serve: does not contain \{port\}"),
        ({"languages": ["en"], "score": {"reward": "translate"}}, r"^score\.reward: translate leaves English out"),
        (
            {"score": {"reward": {"crosslingual": 1, "multilingual": 2}}, "pair": {"per_token": [False, True]}},
            r"^pair\.per_token: only one implicit reward is a sum over tokens; remove it",
        ),
        ({"score": {"reward": "model"}}, r"^score\.model: not set; name the reward model"),
        ({"score": {"reward": {"crosslingual": 1, "model": 2}}}, r"^score\.model: not set"),
        ({"score": {"model": "rm"}}, r"^score\.model: has no effect; set score\.reward to model, or to weights"),
        (
            {"train": {"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0]}},
            r"^train\.loss_weights: has 1, but train\.loss_type names 2; give each loss one weight$",
        ),
        ({"align": {"loss_weights": [0.5, 0.5]}}, r"^align\.loss_weights: has 2, but align\.loss_type names 1;"),
        ({"train": {"loss_type": "exo_pair"}}, r"^train\.label_smoothing: is 0, where the loss exo_pair is infinite;"),
        (
            {"train": {"loss_type": ["ipo", "hinge"], "label_smoothing": 0.1}},
            r"with train\.loss_type=\[ipo, hinge\], .* or set train\.loss_type=sigmoid or robust or exo_pair$",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(**sections)


def test_a_loss_of_several_may_have_a_setting_of_its_own() -> None:
    several = {"loss_type": ["ipo", "robust"], "loss_weights": [1.0, 0.5], "label_smoothing": 0.1}
    train = changed(train=several).train
    assert train.losses == [("ipo", 1.0), ("robust", 0.5)]
    assert changed(train=several | {"loss_weights": None}).train.losses == [("ipo", 1.0), ("robust", 1.0)]
    assert changed().train.losses == [("sigmoid", 1.0)]


@pytest.mark.parametrize("mode", ["frozen", "cached"])
def test_only_simpo_alone_uses_no_reference(mode: str) -> None:
    for loss_type, used in (("simpo", None), (["simpo"], None), (["simpo", "ipo"], mode), ("sigmoid", mode)):
        config = changed(train={"loss_type": loss_type, "reference_mode": mode})
        assert config.train.used_reference == used
        assert reference.iterations(config) == ([1, 2] if used == "cached" else [])


@pytest.mark.parametrize(
    ("judge", "model"), [({}, 0), ({"baseline": 2}, 2), ({"baseline": "gpt"}, "gpt"), ({"baseline": "folder"}, None)]
)
def test_the_baseline_is_a_model_of_the_run_or_a_folder(judge: dict[str, Any], model: Any) -> None:
    assert changed(judge=judge, evaluate={"models": {"gpt": "folder"}}).baseline_model == model


def test_the_batch_size_suits_the_sampler() -> None:
    assert changed().generate.batch_size == 64
    assert changed(generate={"backend": "vllm"}).generate.batch_size == 1024
    assert changed(generate={"backend": "vllm", "batch_size": 7}).generate.batch_size == 7


def test_the_settings_that_decide_a_result_are_neither_places_nor_processes() -> None:
    run = changed(slurm={"jobs": {"train": {"nodes": 2}}})
    decisive = settings(run)
    assert decisive.items() >= settings(run.train, "train").items()
    assert (decisive["seed"], decisive["train.beta"], decisive["evaluate.prompts"]) == (42, 0.1, None)
    assert not {key for key in decisive if key.startswith(("slurm", "ray", "run_dir", "iterations"))}
    assert not {"train.processes", "train.save_steps"} & set(decisive)
