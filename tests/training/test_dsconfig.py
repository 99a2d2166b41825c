"""DeepSpeed JSON files: "auto" is filled in, and contradictions with the configuration are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from xlr.errors import UserError
from xlr.settings.trainconfig import TrainConfig
from xlr.shipped import shipped
from xlr.zero.dsconfig import policy_config, reference_config

HIDDEN = 4096
# The ZeRO-3 file of the Hugging Face documentation, with all values "auto".
COMMON = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupCosineLR",
        "params": {"warmup_min_ratio": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def write(folder: Path, changes: dict[str, Any]) -> TrainConfig:
    path = folder / "ds.json"
    path.write_text(json.dumps(COMMON | changes))
    return TrainConfig(ds_config=str(path), reference_ds_config=str(path), learning_rate=3e-7)


def test_auto_is_filled_in_as_by_the_hugging_face_integration(tmp_path: Path) -> None:
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    train = write(tmp_path, {})
    ours = policy_config(train, bf16=True, hidden_size=HIDDEN)

    theirs = HfTrainerDeepSpeedConfig(json.loads(Path(train.ds_config).read_text()) | {"scheduler": None})
    theirs.config.pop("scheduler")
    arguments = TrainingArguments(
        output_dir=str(tmp_path), learning_rate=3e-7, use_cpu=True, bf16=False, max_grad_norm=train.max_grad_norm
    )
    theirs.trainer_config_process(arguments)

    class Model:
        class config:  # noqa: N801 - the attribute that the integration reads
            hidden_size = HIDDEN

    theirs.trainer_config_finalize(arguments, Model, 100)
    assert ours["zero_optimization"] == theirs.config["zero_optimization"]
    assert ours["gradient_clipping"] == theirs.config["gradient_clipping"]
    for key in ("lr", "betas", "eps", "weight_decay"):
        assert ours["optimizer"]["params"][key] == pytest.approx(theirs.config["optimizer"]["params"][key])
    assert ours["bf16"]["enabled"] is True
    assert ours["fp16"]["enabled"] is False
    assert "scheduler" not in ours
    assert "train_batch_size" not in ours


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, the configuration says 1.0"),
        ({"train_batch_size": 64}, "train_batch_size is 64, the configuration says 32"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, but micro-batches are filled"),
        ({"bf16": {"enabled": False}}, "bf16.enabled is False, the configuration says True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, the configuration says False"),
        ({"bf16": True}, "bf16 is True; it should be a section"),
        ({"optimizer": {"type": "Lion", "params": {}}}, "optimizer.type is 'Lion', the configuration says 'AdamW'"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}, "optimizer.params.lr is 1e-05"),
        ({"scheduler": {"type": "WarmupLR", "params": {}}}, "scheduler.type is 'WarmupLR'"),
        ({"zero_optimization": {"stage": 1}}, "stage must be 2 or 3"),
        (
            {"activation_checkpointing": {"number_checkpoints": "auto"}},
            'activation_checkpointing.number_checkpoints is "auto"',
        ),
    ],
)
def test_a_contradiction_is_named_with_its_key(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ds\.json") as caught:
        policy_config(write(tmp_path, changes), bf16=True, hidden_size=HIDDEN)
    assert said in str(caught.value)


def test_a_policy_file_can_be_used_for_the_reference(tmp_path: Path) -> None:
    tree = reference_config(write(tmp_path, {}), bf16=True, hidden_size=HIDDEN)
    assert not {"optimizer", "scheduler", "gradient_clipping"} & tree.keys()
    assert tree["zero_optimization"]["stage3_param_persistence_threshold"] == 10 * HIDDEN


@pytest.mark.parametrize("content", ["{", "[]", '{"bf16": {}}', "\xff"])
def test_a_file_that_is_not_a_deepspeed_json_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"ds\.json.*(not valid JSON|not a DeepSpeed JSON file|not UTF-8)"):
        policy_config(TrainConfig(ds_config=str(path)), bf16=True, hidden_size=HIDDEN)


@pytest.mark.parametrize(
    "path", sorted(shipped("ds_configs", "zero3.json").parent.glob("*.json")), ids=lambda p: p.stem
)
def test_every_shipped_file_is_valid_and_documented(path: Path) -> None:
    if "reference" in path.stem:
        reference_config(TrainConfig(reference_ds_config=path.stem), bf16=True, hidden_size=HIDDEN)
    else:
        policy_config(TrainConfig(ds_config=path.stem), bf16=True, hidden_size=HIDDEN)
    assert f"`{path.stem}`" in (path.parent / "README.md").read_text(encoding="utf-8")
