"""Reads DeepSpeed's JSON files and fills in the configuration's values."""

from pathlib import Path
from typing import Any

from xlr.data.jsonfiles import parse
from xlr.errors import UserError
from xlr.foreign.texts import MIB, read
from xlr.settings.trainconfig import TrainConfig
from xlr.shipped import shipped

# DeepSpeed's scheduler types -> values of lr_scheduler_type for the same schedule.
_SCHEDULERS = {
    "WarmupLR": "constant_with_warmup",
    "WarmupDecayLR": "linear",
    "WarmupCosineLR": "cosine",
}

_MANY_MICRO_STEPS = 4


def policy_config(train: TrainConfig, bf16: bool, hidden_size: int, micro_steps: int = 1) -> dict[str, Any]:
    """The policy engine's DeepSpeed configuration, with "auto" values filled in as the Hugging Face integration does.

    The JSON decides the ZeRO topology. xlr's configuration decides batch size, learning rate, schedule, clipping and
    precision: in the JSON, these keys must be missing, "auto" or equal.

    Args:
        hidden_size: hidden size of the model. ZeRO's bucket sizes are derived from it.
        micro_steps: the most micro-steps of a step. Sums of many gradients in bfloat16 lose bits, so they are kept in
            float32 unless the JSON says otherwise: 2 bytes more for each parameter of a rank.

    Raises:
        UserError: the JSON is not usable, or contradicts the configuration.
    """
    path, tree = _read(train.ds_config)
    if tree["zero_optimization"].get("stage") not in (2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 2 or 3, for full fine-tuning of a partitioned model")
    _drop_scheduler(tree, train, path)
    owned = {
        "bf16.enabled": bf16,
        "fp16.enabled": False,
        "train_batch_size": train.global_batch_size,
        "gradient_clipping": train.max_grad_norm,
        "optimizer.type": "AdamW",
        "optimizer.params.lr": train.learning_rate,
        "optimizer.params.betas": [train.adam_beta1, train.adam_beta2],
        "optimizer.params.eps": train.adam_epsilon,
        "optimizer.params.weight_decay": train.weight_decay,
    }
    _fill_in(tree, path, owned, hidden_size)
    if bf16 and micro_steps >= _MANY_MICRO_STEPS:
        tree["data_types"] = {"grad_accum_dtype": "fp32", **tree.get("data_types", {})}
    # torch's fused AdamW needs no compiler. An offloaded optimizer needs DeepSpeed's, which is compiled on first use.
    offloaded = tree["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
    if not offloaded:
        tree["optimizer"]["params"] |= {"torch_adam": True, "fused": True}
    return tree


def reference_config(train: TrainConfig, bf16: bool, hidden_size: int) -> dict[str, Any]:
    """The frozen reference's DeepSpeed configuration: like `policy_config`, without what only training uses."""
    path, tree = _read(train.reference_ds_config)
    if tree["zero_optimization"].get("stage") not in (0, 3):
        raise UserError(
            f"{path}: zero_optimization.stage must be 3 for a frozen reference, or 0 for a copy on each GPU"
        )
    for section in ("optimizer", "scheduler", "gradient_clipping", "train_batch_size"):
        tree.pop(section, None)
    _fill_in(tree, path, {"bf16.enabled": bf16, "fp16.enabled": False}, hidden_size)
    return tree


def _fill_in(tree: dict[str, Any], path: Path, owned: dict[str, Any], hidden_size: int) -> None:
    zero = tree["zero_optimization"]
    derived = {
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    zero |= {key: value for key, value in derived.items() if zero.get(key) == "auto"}
    for dotted, value in owned.items():
        _fill(tree, dotted, value, path)
    # A token budget limits micro-batches, so their sizes vary: xlr averages over pairs and counts micro-steps itself.
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if tree.get(key, "auto") != "auto":
            raise UserError(
                f"{path}: {key} is {tree[key]!r}, but micro-batches are filled up to train.micro_batch_tokens and "
                'accumulated to train.global_batch_size; remove it from the JSON or write "auto"'
            )
    tree |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "steps_per_print": 10**9}
    tree.pop("train_batch_size", None)
    unknown = [dotted for dotted, value in _leaves(tree) if value == "auto"]
    if unknown:
        raise UserError(
            f'{path}: {unknown[0]} is "auto", but the configuration has no value for it; write the value into the JSON'
        )


def _read(name: str) -> tuple[Path, dict[str, Any]]:
    """Read a JSON file, given by its path or by the name of a shipped file."""
    path = Path(name) if name.endswith(".json") else shipped("ds_configs", f"{name}.json")
    tree = parse(read(path, MIB), str(path))
    if not isinstance(tree, dict) or not isinstance(tree.get("zero_optimization"), dict):
        raise UserError(f"{path}: not a DeepSpeed JSON file: it has no zero_optimization section")
    return path, tree


def _fill(tree: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    *sections, key = dotted.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise UserError(f"{path}: {section} is {node!r}; it should be a section with {key}")
    if node.get(key, "auto") not in ("auto", value):
        raise UserError(
            f"{path}: {dotted} is {node[key]!r}, the configuration says {value!r}; "
            'remove it from the JSON or write "auto"'
        )
    node[key] = value


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def _drop_scheduler(tree: dict[str, Any], train: TrainConfig, path: Path) -> None:
    """Remove the JSON's scheduler, since the schedule comes from transformers.

    Raises:
        UserError: the JSON has another schedule than the configuration.
    """
    scheduler = tree.pop("scheduler", None)
    if scheduler is not None and _SCHEDULERS.get(scheduler.get("type")) != train.lr_scheduler_type:
        raise UserError(
            f"{path}: scheduler.type is {scheduler.get('type')!r}, the configuration says "
            f"lr_scheduler_type={train.lr_scheduler_type}; remove the section from the JSON"
        )
