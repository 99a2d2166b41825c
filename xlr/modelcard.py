"""The README.md of a trained model: the facts of its training, in the form the Hugging Face hub reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import xlr


def model_card(
    name: str,
    base_model: str,
    reference_model: str,
    languages: Sequence[str],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    last_metrics: Mapping[str, float],
) -> str:
    """Markdown with the hub's front matter.

    Args:
        settings: the training's, flat.
        facts: counts of the training: steps, pairs, what was dropped.
        last_metrics: of the last optimizer step.
    """
    front = {
        "base_model": base_model,
        "base_model_relation": "finetune",
        "language": list(languages),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["xlr", "dpo", "implicit-cross-lingual-rewarding"],
    }
    prefixes = ("loss", "nll_loss", "rewards/", "logps/", "kl", "eval_")
    shown = {key: value for key, value in last_metrics.items() if key.startswith(prefixes)}
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {name}",
        "",
        f"Full fine-tuning of `{base_model}` with DPO and NLL by [xlr](https://arxiv.org/abs/2503.04647) "
        f"{xlr.__version__} (Implicit Cross-Lingual Rewarding); DPO reference: `{reference_model}`.",
        "",
        *_table("training", facts),
        *_table("setting", settings),
        *_table("metric of the last step", {key: f"{value:.5g}" for key, value in shown.items()}),
    ]
    return "\n".join(lines)


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    return [f"| {title} | value |", "| --- | --- |", *(f"| `{key}` | {value} |" for key, value in values.items()), ""]
