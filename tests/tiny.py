"""Makes tiny models and byte-level BPE tokenizers with the chat templates of three model families."""

from pathlib import Path

import torch
from tokenizers import processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from xlr.selftest.material import CHATML, byte_level_bpe

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# family -> template, BOS, EOS, other special tokens, whether the tokenizer adds a BOS itself
FAMILIES = {
    "qwen": (CHATML, None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"], False),
    "llama3": (LLAMA3, "<|begin|>", "<|end|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], True),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], True),
}
TERMINATORS = {"qwen": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}


def make_tokenizer(family: str, vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the shipped prompts."""
    template, bos, eos, others, adds_bos = FAMILIES[family]
    specials = [token for token in (bos, eos, "<|pad|>", *others) if token]
    tokenizer = byte_level_bpe(vocab_size, specials)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token="<|pad|>", additional_special_tokens=others
    )
    fast.chat_template = template
    return fast


def make_model(
    vocab_size: int,
    seed: int = 0,
    tied: bool = True,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 8,
) -> LlamaForCausalLM:
    """A tiny Llama with random weights and grouped-query attention."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def save(
    folder: Path,
    seed: int,
    family: str = "qwen",
    tied: bool = True,
    start: LlamaForCausalLM | None = None,
    head_dim: int = 8,
) -> Path:
    """Write a model folder. With `start`, the weights are those of `start` plus a little noise."""
    tokenizer = make_tokenizer(family)
    model = make_model(len(tokenizer), seed, tied, head_dim=head_dim)
    if start is not None:
        model.load_state_dict(start.state_dict())
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reward_model(folder: Path, seed: int, family: str = "qwen", num_labels: int = 1) -> Path:
    """Write the folder of a tiny reward model with random weights."""
    tokenizer = make_tokenizer(family)
    causal_lm = make_model(len(tokenizer), seed)
    config = LlamaConfig(**{**causal_lm.config.to_dict(), "architectures": None})
    config.num_labels, config.pad_token_id = num_labels, tokenizer.pad_token_id
    torch.manual_seed(seed)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
