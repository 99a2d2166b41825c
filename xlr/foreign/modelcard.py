"""The model card (README.md) of a trained model, in the Hugging Face hub's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import xlr


def model_card(
    iteration: int,
    base_model: str,
    languages: Sequence[str],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    last_metrics: Mapping[str, float],
) -> str:
    """Markdown with the hub's front matter.

    The text names no folder of this machine: of a path it has the last part only.

    Args:
        base_model: folder or hub name, also with `@revision`, of the model that the run started from.
        settings: the training's settings, flat.
        facts: counts of the training, such as steps and pairs.
        last_metrics: metrics of the last optimizer step.
    """
    repository, _, revision = (base_model, "", "") if base_model.startswith("/") else base_model.partition("@")
    name = Path(repository).name
    on_the_hub = {} if base_model.startswith("/") else {"base_model": repository, "base_model_relation": "finetune"}
    front = {
        **on_the_hub,
        "language": list(languages),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["xlr", "dpo", "implicit-cross-lingual-rewarding"],
    }
    prefixes = ("loss", "nll_loss", "rewards/", "logps/", "kl", "eval_")
    shown = {key: value for key, value in last_metrics.items() if key.startswith(prefixes)}
    loss = next((value for name, value in settings.items() if name.endswith(".loss_type")), "sigmoid")
    how = f"full fine-tuning with {_losses(loss)} and NLL by xlr {xlr.__version__}"
    made = (
        f"after {iteration} iterations of [Implicit Cross-Lingual Rewarding](https://arxiv.org/abs/2503.04647): {how}."
        if iteration
        else f"aligned on English preferences: {how}."
    )
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {name}, iteration {iteration}",
        "",
        f"`{name}`{f' at revision `{revision}`' if revision else ''} {made}",
        "",
        *_table("training", facts),
        *_table("setting", settings),
        *_table("metric of the last step", {key: f"{value:.5g}" for key, value in shown.items()}),
    ]
    return "\n".join(lines)


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    rows = (f"| `{key}` | {_shown(value)} |" for key, value in values.items())
    return [f"| {title} | value |", "| --- | --- |", *rows, ""]


def _shown(value: Any) -> Any:
    """The value; of an absolute path the name of the file."""
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _losses(loss_type: str | Sequence[str]) -> str:
    """The preference losses in words; sigmoid is DPO's own."""
    names = [loss_type] if isinstance(loss_type, str) else loss_type
    return " + ".join("DPO" if name == "sigmoid" else name for name in names)
