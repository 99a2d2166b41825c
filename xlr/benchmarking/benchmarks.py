"""Stage 5e: benchmarks of multiple choice, before and after each iteration: what alignment costs in each language.

Reads pi^t (t = 0 is the start) and tasks of the package lm-eval; writes `RUN/iter{t}/benchmarks/`. The Ray workers
compute the log-probabilities of the choices. Run alone with `xlr benchmark RUN --iteration t`.
"""

import importlib.util
from pathlib import Path
from typing import Any

from xlr.benchmarking.facts import BenchmarkFacts
from xlr.chat.format import chat_settings
from xlr.errors import UserError
from xlr.records import ModelKey
from xlr.run.artifact import Artifact, Source
from xlr.run.context import Context
from xlr.run.files import atomic_path, write_json
from xlr.settings.config import Config
from xlr.settings.dataconfig import BenchmarksConfig
from xlr.settings.deciding import deciding
from xlr.versions import HARNESS, versions


def iterations(config: Config) -> list[ModelKey]:
    """The models of all iterations, if there are benchmarks."""
    return [key for key in config.evaluated_models if isinstance(key, int)] if config.evaluate.benchmarks else []


def artifact(context: Context, model: ModelKey) -> Artifact:
    """The results of one model and what decides them."""
    config, section = context.config, _section(context)
    inputs: dict[str, Source] = {"model": context.model(model)}
    if section.include is not None:
        inputs["tasks"] = Path(section.include)
    settings: dict[str, Any] = deciding(section, "evaluate.benchmarks") | {
        "model.dtype": config.model.dtype,
        "score.dtype": config.score.dtype,
        "score.batch_tokens": config.score.batch_tokens,
        **versions(HARNESS),
        **(chat_settings(config.model) if section.chat_template else {}),
    }
    folder = context.run.iteration(model) / "benchmarks"
    return Artifact(context.run.path, folder, "benchmark", settings, inputs)


def _section(context: Context) -> BenchmarksConfig:
    found = context.config.evaluate.benchmarks
    assert found is not None  # else the run has no such stage
    return found


def check(context: Context) -> None:
    """Check early that lm-eval is there and knows the tasks.

    Raises:
        UserError: naming what is wrong.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            'evaluate.benchmarks: lm-eval is not installed; run `pip install "xlr[benchmarks]"`, or remove the section'
        )
    from xlr.benchmarking.lmharness import load_tasks

    load_tasks(_section(context))


def make(context: Context, model: ModelKey) -> BenchmarkFacts:
    """Run the benchmarks of one model."""
    from xlr.benchmarking.lmharness import evaluate

    folder = context.require_model(model)
    target, section = artifact(context, model), _section(context)
    facts = evaluate(context, target, folder, section)
    with atomic_path(target.folder) as made:
        made.mkdir()
        write_json(made / "results.json", facts)
    target.finish(sum(own["rows"] for own in facts.values()), facts, context.clock)
    target.remove_pieces()
    return facts
