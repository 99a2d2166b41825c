"""DeepSpeed's JSON files with the configuration's numbers filled in."""

import json
from pathlib import Path
from typing import Any

from xlr.config import TrainConfig
from xlr.errors import UserError
from xlr.shipped import shipped


def ds_config(name: str, owned: dict[str, Any]) -> dict[str, Any]:
    """A DeepSpeed JSON with the configuration's own numbers filled in.

    The JSON owns the ZeRO topology; batch size, learning rate, clipping and precision belong to the
    configuration. A key of theirs in the JSON may be "auto" or the same value.

    Args:
        name: a file, or the name of a shipped one.
        owned: dotted key -> the configuration's value.

    Raises:
        UserError: the file cannot be read, or contradicts the configuration.
    """
    path = Path(name) if name.endswith(".json") else shipped("ds_configs", f"{name}.json")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a DeepSpeed JSON file ({error})") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("zero_optimization"), dict):
        raise UserError(f"{path}: not a DeepSpeed JSON file: it has no zero_optimization section")
    for dotted, value in owned.items():
        *sections, key = dotted.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        if node.get(key, "auto") not in ("auto", value):
            raise UserError(
                f"{path}: {dotted} is {node[key]!r}, the configuration says {value!r}; "
                'remove it from the JSON or write "auto"'
            )
        node[key] = value
    # Micro-batches hold as many pairs as fit a token budget, so xlr counts pairs and sets the boundaries itself.
    tree |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "steps_per_print": 10**9}
    tree.pop("train_batch_size", None)
    return tree


def policy_config(train: TrainConfig, bf16: bool) -> dict[str, Any]:
    """The policy engine's DeepSpeed configuration."""
    tree = ds_config(
        train.ds_config,
        {
            "bf16.enabled": bf16,
            "train_batch_size": train.global_batch_size,
            "gradient_clipping": train.max_grad_norm,
            "optimizer.type": "AdamW",
            "optimizer.params.lr": train.learning_rate,
            "optimizer.params.betas": [train.adam_beta1, train.adam_beta2],
            "optimizer.params.eps": train.adam_epsilon,
            "optimizer.params.weight_decay": train.weight_decay,
        },
    )
    # torch's fused AdamW needs no compiler; an offloaded optimizer needs DeepSpeed's own, compiled at first use.
    offloaded = tree.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
    if not offloaded:
        tree["optimizer"]["params"] |= {"torch_adam": True, "fused": True}
    return tree


def reference_config(train: TrainConfig, bf16: bool) -> dict[str, Any]:
    """The frozen reference's DeepSpeed configuration."""
    return ds_config(train.reference_ds_config, {"bf16.enabled": bf16})
