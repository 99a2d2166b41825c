"""Runs and rewards from Python: the same numbers as the stages, and a reward function that TRL's trainer takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

import xlr
from tests import inprocess
from tests.conftest import tiny_tree
from tests.rows import read_rows
from xlr import configfile
from xlr.errors import UserError
from xlr.pipeline import Stage
from xlr.records import Pair, Score
from xlr.run.files import write_text
from xlr.settings.config import Config

NOTEBOOK = Path(__file__).parents[2] / "docs" / "reward.ipynb"


@pytest.fixture(scope="module")
def run(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with scores of both languages, and its pairs."""
    folder = tmp_path_factory.mktemp("api")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    context = inprocess.opened(Config.model_validate(tree), folder / "run")
    context.run.create()
    write_text(folder / "run" / "config.yaml", configfile.dump(context.config))
    for stage in (Stage("generate", 1), Stage("score", 1), Stage("pair", 1)):
        stage.module.make(inprocess.opened(context.config, folder / "run"), 1)
    return folder / "run"


def test_tables_of_a_run(run: Path) -> None:
    opened = xlr.open(run)
    rows = read_rows(run / "iter1" / "scores", Score)
    table = opened.scores(1)
    assert len(table) == len(rows)
    assert list(table.to_pandas()["reward"]) == [row.reward for row in rows]
    assert table.to_dataset()["id"][:] == [row.id for row in rows]
    assert opened.pairs(1).to_arrow()["chosen"].to_pylist() == [
        pair.chosen for pair in read_rows(run / "iter1" / "pairs", Pair)
    ]
    assert opened.iterations == [1]
    assert opened.facts(1, "pairs")["es"]["pairs"] > 0
    assert Path(opened.model(0)).is_dir()
    assert repr(opened) == f"xlr.open({str(run)!r})"


def test_what_is_not_finished_or_damaged_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config"):
        xlr.open(tmp_path)
    opened = xlr.open(run)
    with pytest.raises(UserError, match="not finished"):
        opened.model(1)
    with pytest.raises(UserError, match="not finished"):
        opened.answers(1).to_pandas()
    with pytest.raises(UserError, match="not finished"):
        opened.facts(2, "scores")


# Runs the cells of a notebook in order.
EXECUTE = """
import json, pathlib, sys
names = {}
for number, cell in enumerate(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
print(json.dumps([len(names["scores"]), names["spanish"]["lang"].unique().tolist(), names["rewards"], names["called"]]))
"""


def test_the_notebook_runs(run: Path, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run)
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows, langs, rewards, called = json.loads(result.stdout.splitlines()[-1])
    assert (rows, langs) == (len(read_rows(run / "iter1" / "scores", Score)), ["es"])
    reward = xlr.Reward(str(tiny_models["aligned"]), str(tiny_models["initial"]), "es", device="cpu")
    answers = ["Por la dispersión de la luz en el aire.", "No lo sé."]
    assert called == rewards == pytest.approx(reward.score(["Why is the sky blue?"] * 2, answers), abs=1e-5)


def test_the_notebook_is_saved_without_output() -> None:
    """Outputs would show one machine's paths and numbers, and change with every version."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(cells)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.parametrize("batch_tokens", [64, 16384])
@pytest.mark.parametrize("lang", ["en", "es"])
def test_a_reward_equals_that_of_the_score_stage(
    run: Path, tiny_models: dict[str, Path], lang: str, batch_tokens: int
) -> None:
    context = inprocess.opened(xlr.open(run).config, run)
    english = {prompt.id: prompt.instruction for prompt in context.prompts["en"]}
    rows = [row for row in read_rows(run / "iter1" / "scores", Score) if row.lang == lang]
    reward = xlr.Reward(
        str(tiny_models["aligned"]), str(tiny_models["initial"]), lang, device="cpu", batch_tokens=batch_tokens
    )
    found = reward.score([english[row.id] for row in rows], [row.response for row in rows])
    assert found == pytest.approx([row.reward for row in rows], abs=1e-5)
    asked = [[{"role": "user", "content": "?"}]] * len(rows)
    answers = [[{"role": "assistant", "content": row.response}] for row in rows]
    called = reward(asked, answers, english=[english[row.id] for row in rows], completion_ids=[[1]] * len(rows))
    assert called == pytest.approx(found)


def test_other_instructions_give_other_rewards(tiny_models: dict[str, Path]) -> None:
    models = str(tiny_models["aligned"]), str(tiny_models["initial"])
    crosslingual, multilingual = (
        xlr.Reward(*models, "es", mode, device="cpu") for mode in ("crosslingual", "multilingual")
    )
    assert crosslingual.score(["Why?"], ["Porque sí."]) != multilingual.score(["Why?"], ["Porque sí."])
    assert multilingual(["Why?"], ["Porque sí."]) == multilingual.score(["Why?"], ["Porque sí."])
    assert crosslingual.score([], []) == []
    with pytest.raises(ValueError, match="zip"):
        crosslingual.score(["Why?"], [])
    with pytest.raises(UserError, match="mode 'translate'"):
        xlr.Reward(*models, "es", "translate")
    with pytest.raises(UserError):
        xlr.Reward(*models, "xx")


def test_a_reward_takes_a_chat_template_and_a_system_message(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    models = str(tiny_models["aligned"]), str(tiny_models["initial"])
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(models[0]).chat_template
    (tmp_path / "same.jinja").write_text(own)
    plain = xlr.Reward(*models, "es", device="cpu")
    same = xlr.Reward(*models, "es", device="cpu", chat={"chat_template": str(tmp_path / "same.jinja")})
    with_system = xlr.Reward(*models, "es", device="cpu", chat={"system_prompt": {"en": "Be brief.", "es": "Otro."}})
    (tmp_path / "system.jinja").write_text("<|im_start|>system\nBe brief.<|im_end|>\n" + own)
    written = xlr.Reward(*models, "es", device="cpu", chat={"chat_template": str(tmp_path / "system.jinja")})
    asked = ["Why?"], ["Porque sí."]
    assert same.score(*asked) == plain.score(*asked) != with_system.score(*asked)
    assert with_system.score(*asked) == pytest.approx(written.score(*asked), abs=1e-5)
    with pytest.raises(UserError, match="chat: 'thinking' is not a setting of conversations; choose from chat_"):
        xlr.Reward(*models, "es", chat={"thinking": "scored"})


def test_importing_xlr_is_cheap() -> None:
    """Also naming the reward loads no torch before one is made."""
    for use, heavy in (("xlr", ("torch", "pyarrow", "pydantic")), ("xlr.Reward", ("torch", "transformers", "ray"))):
        code = f"import sys, json, xlr; {use}; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert json.loads(printed) == []
    with pytest.raises(AttributeError, match="no attribute 'reward'"):
        _ = xlr.reward  # type: ignore[attr-defined]


def test_a_trainer_of_trl_learns_from_the_reward(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Two real steps of GRPO, with the English instruction in a column."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    policy = str(tiny_models["aligned"])
    seen: list[Any] = []
    reward = xlr.Reward(policy, str(tiny_models["initial"]), "es", device="cpu")

    class Watched(xlr.Reward):  # type: ignore[misc]
        def score(self, instructions: Any, answers: Any) -> list[float]:
            found: list[float] = reward.score(instructions, answers)
            seen.append((instructions, answers, found))
            return found

    watched = Watched(policy, str(tiny_models["initial"]), "es", device="cpu")
    rows = [{"prompt": [{"role": "user", "content": "¿Por qué?"}], "english": "Why?"}] * 4
    how = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
    )
    model = AutoModelForCausalLM.from_pretrained(policy)
    before = model.get_input_embeddings().weight.detach().clone()
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[watched],
        args=how,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    trainer.train()
    assert len(seen) == 2
    assert all(instructions == ["Why?"] * 2 for instructions, _, _ in seen)
    logged = [entry for entry in trainer.state.log_history if "rewards/implicit_reward_es/mean" in entry]
    assert logged[0]["rewards/implicit_reward_es/mean"] == pytest.approx(sum(seen[0][2]) / 2, abs=1e-4)
    assert not before.equal(model.get_input_embeddings().weight)
