"""What the self-test runs on: a model of random weights with a real model's shape, prompts, preferences.

The weights are random, but only tokens of the tokenizer are likely, so that responses have as many tokens when they are
scored as when they were sampled.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlr.maths.memory import Shape
from xlr.run.files import write_text
from xlr.shipped import RECIPES

# Keys of a LlamaConfig. The tokenizer has far fewer tokens than `vocab_size`, which gives the output layer its cost.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
_TOKENS = 600  # of the tokenizer
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QUICKSTART = RECIPES / "quickstart"


def sizes(shape: str) -> Shape:
    """A shape as the memory formula takes it."""
    own = SHAPES[shape]
    return Shape(
        own["hidden_size"],
        own["num_hidden_layers"],
        own["num_attention_heads"],
        own["num_key_value_heads"],
        own["intermediate_size"],
        own["vocab_size"],
        tied=False,
    )


def usual_shape() -> str:
    """The shape that a machine computes in some minutes."""
    import torch

    return "1b" if torch.cuda.is_available() else "tiny"


def write_model(folder: Path, shape: str, seed: int) -> None:
    """Write a Hugging Face folder: a Llama of random weights in bfloat16, and a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        initializer_range=0.02 if shape != "tiny" else 0.1,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM._from_config(config).bfloat16()
    _confine(model, len(tokenizer))
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer.save_pretrained(folder)


def _confine(model: Any, tokens: int) -> None:
    """Make all but the first tokens very unlikely.

    The first component of the residual stream is 1 for every token and no layer changes it. The output layer reads it:
    the more, the less likely a token.
    """
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        # Logits spread enough for responses to differ, as a trained model's do.
        model.lm_head.weight.mul_(3 / (model.config.initializer_range * math.sqrt(model.config.hidden_size)))
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokens:, 0] = -1000.0


def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(_TOKENS, ["<|im_end|>", "<|pad|>", "<|im_start|>"]),
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHATML
    return fast


def byte_level_bpe(vocab_size: int, special_tokens: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer trained on the shipped prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    files = sorted((_QUICKSTART / "prompts").glob("*.jsonl"))
    tokenizer.train_from_iterator((row["instruction"] for file in files for row in _rows(file)), trainer)
    return tokenizer


def write_preferences(path: Path, pairs: int, repeats: int) -> None:
    """Write English preferences: those of the quickstart, each answer repeated to the length of real ones."""
    rows = _rows(_QUICKSTART / "preferences.jsonl")
    lines = []
    for number in range(pairs):
        row = rows[number % len(rows)]
        answers = {
            key: [{"role": "assistant", "content": f"{number}. " + " ".join([row[key][0]["content"]] * repeats)}]
            for key in ("chosen", "rejected")
        }
        lines.append(json.dumps({"id": str(number), "prompt": row["prompt"], **answers}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
