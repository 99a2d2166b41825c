"""Every family of models: values and gradients of the batched path equal the model's own, or it is refused by name.

docs/models.md has this table.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from xlr.errors import UserError
from xlr.model.checks import require_attention
from xlr.model.logprobmodel import LogprobModel, batch_logps, first_layers, require_sound_logps
from xlr.model.weights import load_causal_lm
from xlr.records import Example
from xlr.settings.modelconfig import SHARED_PROMPT

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
TINY = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS: dict[str, Any] = {"head_dim": 8}
WINDOW: dict[str, Any] = {"sliding_window": 64}
MOE: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "shared_expert_intermediate_size": 16,
}
LATENT: dict[str, Any] = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
}
MAMBA: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "lm_head_multiplier": 0.5,
}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
GRANITE: dict[str, Any] = {
    "logits_scaling": 8.0,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.3,
}
SCALED: dict[str, Any] = {"query_pre_attn_scalar": 8}

# Family, its model_type, the implementation of attention that computes it, settings of the tiny model.
FAMILIES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("Llama 2, 3", "llama", SHARED_PROMPT, {}),
    ("Llama 4, text", "llama4_text", SHARED_PROMPT, HEADS | {"num_local_experts": 2, "intermediate_size_mlp": 48}),
    ("Mistral, Zephyr", "mistral", SHARED_PROMPT, WINDOW),
    ("Mixtral", "mixtral", SHARED_PROMPT, MOE),
    ("Qwen 2, 2.5", "qwen2", SHARED_PROMPT, {}),
    ("Qwen 1.5 and 2, mixture of experts", "qwen2_moe", SHARED_PROMPT, MOE),
    ("Qwen 3", "qwen3", SHARED_PROMPT, HEADS),
    ("Qwen 3, mixture of experts", "qwen3_moe", SHARED_PROMPT, HEADS | MOE),
    ("Qwen 3 Next", "qwen3_next", "sdpa", HEADS | MOE | LINEAR),
    ("Gemma 1", "gemma", SHARED_PROMPT, HEADS),
    ("Gemma 2", "gemma2", "eager", HEADS | WINDOW | SCALED | {"final_logit_softcapping": 3.0}),
    ("Gemma 3, text", "gemma3_text", SHARED_PROMPT, HEADS | WINDOW | SCALED),
    ("Command R, Aya 23", "cohere", SHARED_PROMPT, {"logit_scale": 0.0625}),
    ("Command R7B, Command A, Aya Expanse", "cohere2", SHARED_PROMPT, WINDOW | {"logit_scale": 0.25}),
    ("Granite 3", "granite", SHARED_PROMPT, GRANITE),
    ("Granite 3, mixture of experts", "granitemoe", SHARED_PROMPT, GRANITE | MOE),
    ("OLMo 2", "olmo2", SHARED_PROMPT, {}),
    ("OLMo 3", "olmo3", SHARED_PROMPT, WINDOW),
    ("OLMoE", "olmoe", SHARED_PROMPT, MOE),
    ("Phi 3, 4", "phi3", SHARED_PROMPT, {}),
    ("SmolLM 3", "smollm3", SHARED_PROMPT, {}),
    ("EXAONE 4", "exaone4", SHARED_PROMPT, WINDOW),
    ("Apertus", "apertus", SHARED_PROMPT, {}),
    ("GLM 4", "glm", SHARED_PROMPT, HEADS),
    ("GLM 4 0414", "glm4", SHARED_PROMPT, HEADS),
    ("DeepSeek V2", "deepseek_v2", SHARED_PROMPT, LATENT),
    ("DeepSeek V3", "deepseek_v3", SHARED_PROMPT, LATENT),
    ("gpt-oss", "gpt_oss", "eager", HEADS | WINDOW | MOE),
    ("Falcon H1", "falcon_h1", "sdpa", HEADS | MAMBA),
    ("BLOOM", "bloom", "eager", {"n_layer": 2, "n_head": 4}),
    ("Nemotron", "nemotron", "sdpa", {}),
    ("StableLM", "stablelm", "sdpa", {}),
    ("LFM 2", "lfm2", "sdpa", {"layer_types": ["conv", "full_attention"]}),
    ("MiniMax", "minimax", "sdpa", MOE | {"layer_types": ["linear_attention", "full_attention"]}),
    ("Hunyuan", "hunyuan_v1_dense", SHARED_PROMPT, HEADS),
    ("Seed-OSS", "seed_oss", SHARED_PROMPT, HEADS),
    ("ERNIE 4.5", "ernie4_5", SHARED_PROMPT, HEADS),
    ("StarCoder 2", "starcoder2", SHARED_PROMPT, {}),
]
EXAMPLES = [
    Example(tuple(range(10, 30)), (tuple(range(40, 60)), tuple(range(62, 70)))),
    Example((7, 8, 9), ((70, 71, 72, 73, 74),)),
]


def tiny(model_type: str, own: dict[str, Any], attention: str) -> Any:
    """A model of random weights that are large enough for every layer to matter."""
    torch.manual_seed(0)
    causal_lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **TINY | own)).float().eval()
    causal_lm.set_attn_implementation(attention)
    for parameter in causal_lm.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.25)
    return causal_lm


def plain_logps(causal_lm: Any) -> list[torch.Tensor]:
    """The log-probability of each response, by one plain forward pass each."""
    found = []
    for example in EXAMPLES:
        for response in example.responses:
            logps_TV = causal_lm(input_ids=torch.tensor([[*example.prompt, *response]])).logits[0].log_softmax(-1)
            start = len(example.prompt)
            found.append(sum(logps_TV[start - 1 + index, token] for index, token in enumerate(response)))
    return found


@pytest.mark.parametrize(("family", "model_type", "attention", "own"), FAMILIES, ids=[row[1] for row in FAMILIES])
def test_values_and_gradients_are_those_of_the_model(
    family: str, model_type: str, attention: str, own: dict[str, Any], tmp_path: Path
) -> None:
    tiny(model_type, own, attention).save_pretrained(tmp_path)
    require_attention(tmp_path, attention)
    causal_lm = load_causal_lm(tmp_path, torch.float32, attention)
    require_sound_logps(causal_lm, attention, model_type)
    weight_S = torch.tensor([1.0, -0.5, 2.0])
    plain = causal_lm if attention == "eager" else tiny(model_type, own, "sdpa")
    gradients = []
    for model, logps in (
        (causal_lm, lambda: batch_logps(LogprobModel(causal_lm), EXAMPLES, attention, torch.device("cpu"))),
        (plain, lambda: torch.stack(plain_logps(plain))),
    ):
        model.zero_grad()
        (logps() @ weight_S).backward()
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        assert (gradients[0][name] - expected).abs().max() <= 2e-3 * expected.abs().max().clamp_min(1e-3), name
    assert f"| {family} | `{model_type}` | {'' if attention == SHARED_PROMPT else f'`{attention}`'} |" in (
        DOCUMENT.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(
    ("model_type", "own"),
    [(row[1], row[3]) for row in FAMILIES if row[2] != SHARED_PROMPT],
    ids=[row[1] for row in FAMILIES if row[2] != SHARED_PROMPT],
)
def test_what_the_default_attention_cannot_compute_is_refused_with_the_remedy(
    model_type: str, own: dict[str, Any], tmp_path: Path
) -> None:
    """gpt-oss is refused by transformers, when its weights are opened."""
    AutoConfig.for_model(model_type, **TINY | own).save_pretrained(tmp_path)

    def score() -> None:
        require_attention(tmp_path, SHARED_PROMPT)
        require_sound_logps(tiny(model_type, own, SHARED_PROMPT), SHARED_PROMPT, model_type)

    with pytest.raises((UserError, ValueError), match=r"model\.attn_implementation|attention implementation"):
        score()


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2", "sdpa", SHARED_PROMPT])
def test_a_soft_cap_needs_attention_that_computes_it(attention: str, tmp_path: Path) -> None:
    AutoConfig.for_model("gemma2", **TINY | HEADS).save_pretrained(tmp_path)
    if attention in ("eager", "flash_attention_2"):
        require_attention(tmp_path, attention)
    else:
        with pytest.raises(UserError, match=r"soft-capped attention.*set model\.attn_implementation to eager"):
            require_attention(tmp_path, attention)


@pytest.mark.parametrize("model_type", ["qwen3_next", "lfm2", "falcon_h1", "minimax"])
def test_a_leak_that_bfloat16_hides_is_refused_without_looking_at_layer_types(model_type: str) -> None:
    own = next(row[3] for row in FAMILIES if row[1] == model_type)
    causal_lm = tiny(model_type, own, SHARED_PROMPT).to(torch.bfloat16)
    with pytest.raises(UserError, match=r"model\.attn_implementation"):
        require_sound_logps(causal_lm, SHARED_PROMPT, model_type)
    require_sound_logps(tiny(model_type, own, "sdpa").to(torch.bfloat16), "sdpa", model_type)


def test_the_first_layers_hold_one_of_each_kind() -> None:
    deep = {"num_hidden_layers": 5, "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]}
    causal_lm = tiny("lfm2", deep, "sdpa")
    assert len(first_layers(causal_lm).model.layers) == 3
    assert len(causal_lm.model.layers) == 5
    assert len(first_layers(tiny("llama", {"num_hidden_layers": 5}, "sdpa")).model.layers) == 1
    assert len(first_layers(tiny("deepseek_v3", LATENT | {"num_hidden_layers": 3}, "sdpa")).model.layers) == 2


def test_a_bias_of_the_head_is_refused() -> None:
    with pytest.raises(UserError, match="models of type phi with a bias in the output embedding are not supported"):
        LogprobModel(tiny("phi", {}, "sdpa"))
