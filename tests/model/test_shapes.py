"""Sizes from a configuration: the parameters of every family of models, without weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.model.test_families import FAMILIES, TINY
from xlr.errors import UserError
from xlr.foreign.shapes import read_shape


@pytest.mark.parametrize(("model_type", "own"), [(row[1], row[3]) for row in FAMILIES], ids=[r[1] for r in FAMILIES])
def test_every_family_has_a_shape_with_all_its_parameters(tmp_path: Path, model_type: str, own: Any) -> None:
    config = AutoConfig.for_model(model_type, **TINY | own)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = read_shape(str(tmp_path))
    assert shape.parameters == pytest.approx(sum(one.numel() for one in model.parameters()), rel=0.02)
    assert 0 < shape.active <= shape.parameters + shape.embedding
    assert shape.keys > 0


def test_a_mixture_of_experts_is_active_in_part(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    config.save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    experts = 3 * 16 * 32
    assert shape.layer_parameters is not None
    assert shape.active_parameters is not None
    assert shape.layer_parameters - shape.active_parameters == 6 * experts
    assert shape.intermediate == 2 * 32


def test_a_configuration_without_the_sizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 16}')
    with pytest.raises(UserError, match=r"config\.json \(mamba\) has no num_attention_heads, so xlr has no formula"):
        read_shape(str(tmp_path))
