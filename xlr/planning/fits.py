"""What does not fit the memory of its machines or its time limit, and the nearest setting that does."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from xlr.pipeline import Stage
from xlr.planning.setting import Estimate, Setting
from xlr.planning.work import ESTIMATES
from xlr.settings.config import Config

Change = Callable[[Setting], Iterator[dict[str, Any]]]
"""Gives overrides that take less and less memory."""


def problems(stage: Stage, own: Setting, estimate: Estimate, limit: int | None) -> Iterator[str]:
    """What does not fit a stage's machines or its time limit, each with a remedy."""
    needed, room = estimate.peak, own.machines.memory
    if needed > room:
        yield (
            f"{stage}: needs {needed / 1e9:.1f} GB of the {room / 1e9:.1f} GB of a {own.machines.hardware.name}; "
            f"{remedy(stage, own)}"
        )
    least = estimate.fixed + estimate.unit
    if limit and least > limit:
        yield (
            f"{stage}: its job ends after {limit / 60:.0f} minutes, but starting and the smallest part that is kept "
            f"take about {least / 60:.0f}; raise slurm.time"
        )


def remedy(stage: Stage, own: Setting) -> str:
    """The nearest setting with which a stage fits, as an override; what to do if none does."""
    for change in _SMALLER.get(stage.name, ()):
        for overrides in change(own):
            smaller = replace(own, config=overridden(own.config, overrides))
            if ESTIMATES[stage.name](smaller).peak <= own.machines.memory:
                return f"it fits with {' '.join(changed(own.config, overrides))}{_on_host(own, overrides)}"
    return "no setting of xlr makes it fit: take GPUs with more memory, or more of them"


def _on_host(own: Setting, overrides: Mapping[str, Any]) -> str:
    """What an offloaded training needs of a node's memory: 16 bytes a parameter, for optimizer and gradients."""
    if not any("offload" in str(value) for value in overrides.values()):
        return ""
    return f" and {16 * own.shape.parameters / own.machines.nodes / 1e9:.0f} GB of each node's memory"


def changed(config: Config, overrides: Mapping[str, Any]) -> Iterator[str]:
    """The overrides that change something, as on the command line."""
    for dotted, value in overrides.items():
        section, key = dotted.split(".")
        if getattr(getattr(config, section), key) != value:
            yield f"{dotted}={str(value).lower() if isinstance(value, bool) else value}"


def overridden(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A configuration with other values of some dotted keys, unchecked."""
    for dotted, value in overrides.items():
        section, key = dotted.split(".")
        changed = getattr(config, section).model_copy(update={key: value})
        config = config.model_copy(update={section: changed})
    return config


def _halves(section: str, key: str, least: int) -> Change:
    def steps(own: Setting) -> Iterator[dict[str, Any]]:
        value = getattr(getattr(own.config, section), key)
        while (value := value // 2) >= least:
            yield {f"{section}.{key}": value}

    return steps


def _training(section: str) -> Change:
    """Settings that take less and less memory, with what costs the least time first."""

    def steps(own: Setting) -> Iterator[dict[str, Any]]:
        train = own.training
        offloads = ("zero3_offload_optimizer", "zero3_offload") if own.machines.hardware.gpu else ()
        for ds_config in dict.fromkeys((train.ds_config, *offloads)):
            cached = () if "kto" in train.loss_types else ("cached",)
            for mode in dict.fromkeys((train.reference_mode, *cached)):
                for recomputed in ("selective", True):
                    tokens = train.tokens_at_once
                    while tokens >= 1024:
                        yield {
                            f"{section}.gradient_checkpointing": recomputed,
                            f"{section}.micro_batch_tokens": tokens,
                            f"{section}.reference_mode": mode,
                            f"{section}.ds_config": ds_config,
                        }
                        tokens //= 2

    return steps


def engine_sizes(own: Setting) -> list[int]:
    """How many GPUs an engine of vLLM may have: as many as a node at most, in equal parts of the attention heads."""
    return [gpus for gpus in (1, 2, 4, 8) if gpus <= own.machines.per_node and own.shape.heads % gpus == 0]


def _more_gpus(own: Setting) -> Iterator[dict[str, Any]]:
    generate = own.config.generate
    for gpus in engine_sizes(own):
        if generate.backend == "vllm" and gpus > generate.tensor_parallel_size:
            yield {"generate.tensor_parallel_size": gpus}


def _one_model(_own: Setting) -> Iterator[dict[str, Any]]:
    yield {"ray.one_model_at_a_time": True}


_SMALLER: dict[str, tuple[Change, ...]] = {
    "generate": (_more_gpus, _halves("generate", "batch_size", 1)),
    "translate": (_more_gpus, _halves("generate", "batch_size", 1)),
    "evaluate": (_halves("generate", "batch_size", 1), _one_model),
    "score": (_halves("score", "batch_tokens", 1024), _one_model),
    "reference": (_halves("score", "batch_tokens", 1024),),
    "align": (_training("align"),),
    "train": (_training("train"),),
}
"""Stage -> settings that take less memory, the nearest first."""
