"""Settings by iteration: a list in place of one value."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from xlr.configfile import dump, load
from xlr.errors import UserError
from xlr.rewarding import pairs
from xlr.run.context import Context
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.settings.pairconfig import PairConfig
from xlr.settings.trainconfig import TrainConfig
from xlr.training.inputs import Training


def tree(folder: Path, **sections: Any) -> dict[str, Any]:
    return {
        "run_dir": str(folder / "run"),
        "languages": ["es"],
        "model": {"initial": "/initial", "aligned": "/aligned"},
        "prompts": {"path": "/prompts"},
        **sections,
    }


def test_each_iteration_has_its_value_and_the_last_holds_for_those_after(tmp_path: Path) -> None:
    config = Config.model_validate(
        tree(
            tmp_path,
            pair={"upper_bound": [None, 500.0]},
            score={"reference": ["initial", "previous"]},
            train={"learning_rate": [1e-6, 5e-7, 1e-7], "reference": ["start", "initial"]},
        )
    )
    assert [config.at(number).pair.upper_bound for number in range(5)] == [None, None, 500.0, 500.0, 500.0]
    assert [config.at(number).train.learning_rate for number in range(5)] == [1e-6, 1e-6, 5e-7, 1e-7, 1e-7]
    context = Context(config)
    assert [context.reward_reference(number) for number in (1, 2, 3)] == [-1, 0, 1]
    assert [Training(context, number).config.reference for number in (1, 2)] == ["start", "initial"]


def test_an_artefact_is_decided_by_the_value_of_its_iteration_alone(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    for lang in ("en", "es"):
        (tmp_path / "prompts" / f"{lang}.jsonl").write_text('{"id": 1, "instruction": "x"}\n')
    given = tree(tmp_path, prompts={"path": str(tmp_path / "prompts")})

    def settings(iteration: int, upper_bound: Any) -> Any:
        config = Config.model_validate(given | {"pair": {"upper_bound": upper_bound}})
        return pairs.artifact(Context(config), iteration).settings["pair.upper_bound"]

    assert settings(1, None) == settings(1, [None, 500.0]) == settings(1, [None]) is None
    assert settings(2, 500.0) == settings(2, [None, 500.0]) == settings(3, [None, 500.0]) == 500.0


def test_settings_that_were_added_later_are_recorded_where_they_are_not_the_default() -> None:
    """So that run directories of earlier versions, which do not record them, go on."""
    assert deciding(PairConfig(), "pair").keys() == {"pair.filters", "pair.length_control", "pair.upper_bound"}
    assert deciding(PairConfig(keep=0.5, rejected="median"), "pair").items() >= {"pair.keep": 0.5}.items()
    added = {"train.simpo_gamma", "train.discopop_tau", "train.router_aux_loss_coef"}
    assert not deciding(TrainConfig(), "train").keys() & added
    assert deciding(TrainConfig(loss_type="simpo", simpo_gamma=1.0), "train")["train.simpo_gamma"] == 1.0


def test_lists_are_kept_in_the_file_of_the_run(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "languages: [es]\nmodel: {initial: /a, aligned: /b}\n"
        "prompts: {path: /p, slice: ['0:3000', '3000:']}\npair: {upper_bound: [null, 500]}\n"
    )
    config = load(path, ["train.beta=[0.1, 0.2]"])
    assert config.prompts.slice == ("0:3000", "3000:")
    path.write_text(dump(config))
    assert load(path) == config
    assert config.train.beta == (0.1, 0.2)


def test_the_schema_for_editors_has_the_lists() -> None:
    bound = Config.model_json_schema()["$defs"]["PairConfig"]["properties"]["upper_bound"]
    *one, each = bound["anyOf"]
    assert each == {"type": "array", "items": {"anyOf": one}, "minItems": 1}
    assert [own["type"] for own in one] == ["number", "null"]


def test_the_schema_for_editors_has_automatic_iterations() -> None:
    number, word = Config.model_json_schema()["properties"]["iterations"]["anyOf"]
    assert number["type"] == "integer"
    assert word == {"const": "auto"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"align": {"preferences": "/p", "beta": [0.1, 0.2]}},
            r"align\.beta: is a list by iteration, but align has no",
        ),
        ({"evaluate": {"prompts": {"path": "/p", "slice": [":3", "3:"]}}}, r"evaluate\.prompts\.slice: is a list by"),
        ({"prompts": {"path": "/p", "limit": 3, "slice": "3:"}}, r"prompts: has a limit and a slice; write .*\":3\""),
        ({"pair": {"upper_bound": []}}, "is an empty list; give one value, or one for each iteration"),
        ({"pair": {"upper_bound": [1.0, True]}}, "valid number"),
        ({"prompts": {"path": "/p", "slice": "3"}}, "should match pattern"),
        ({"train": {"learning_rate": [1e-6, 2.0]}}, "less than or equal to 1"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        Config.model_validate(tree(tmp_path, **sections))
