"""Checks a model's files before anything is computed with it, and reads its limits from them."""

from pathlib import Path
from typing import Any, NoReturn

from xlr.errors import UserError
from xlr.foreign import modelfiles
from xlr.foreign.modelfiles import load_config
from xlr.packing.layout import Layout, layout

# Kinds of layers that look at other tokens through attention alone. Others carry a state along the row.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_STATE = ("mamba_d_state", "ssm_state_size", "state_size", "conv_L_cache", "linear_conv_kernel_dim")
# Attention that transformers gives a soft cap: flash-attn has one since 2.6, and transformers refuses kernels without.
_SOFT_CAPPED = ("eager", "flash_attention_2")
_ALIBI = ("bloom", "mpt")

# Kinds of RoPE scaling that max_position_embeddings does not contain.
_SCALED = ("linear", "dynamic", "yarn")


def require_model(model: str | Path, tokenizer: Any) -> None:
    """Check that a model's files can be opened and fit its tokenizer. Weights are not loaded.

    Raises:
        UserError: they cannot, or do not.
    """
    config = load_config(model)
    modelfiles.require_weights(model)
    size = vocabulary_size(config)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if size is not None and largest >= size:
        raise UserError(
            f"{model}: the tokenizer has the token {token!r} with the id {largest}, but the model knows only ids below "
            f"{size} (vocab_size in config.json); remove the token, or resize the model's embeddings "
            "(resize_token_embeddings) and train it"
        )
    generation_eos(model)


def require_attention(model: str | Path, attn_implementation: str) -> None:
    """Check that an attention implementation can compute what the architecture needs. Weights are not loaded.

    In packed rows several sequences stand behind one another, so nothing but attention may look back.

    Raises:
        UserError: it cannot; names another one.
    """
    config = load_config(model).get_text_config()
    if attn_implementation not in _SOFT_CAPPED and getattr(config, "attn_logit_softcapping", None):
        _refuse(config, attn_implementation, "soft-capped attention", "eager")
    if layout(attn_implementation) is not Layout.PADDED:
        others = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION)
        if others or any(getattr(config, name, None) for name in _STATE):
            _refuse(config, attn_implementation, "layers that carry a state along the row", "sdpa")
        if config.model_type in _ALIBI or getattr(config, "alibi", False):
            _refuse(config, attn_implementation, "positions that follow from the place in the row (ALiBi)", "eager")


def _refuse(config: Any, attn_implementation: str, what: str, other: str) -> NoReturn:
    raise UserError(
        f"models of type {config.model_type} have {what}, which attn_implementation={attn_implementation} does not "
        f"compute: set model.attn_implementation to {other}"
    )


def require_reward_model(model: str | Path, tokenizer: Any, attn_implementation: str) -> None:
    """Check that a model's files are those of a reward model that can be computed. Weights are not loaded.

    Raises:
        UserError: they are not.
    """
    require_model(model, tokenizer)
    config = load_config(model)
    kinds = config.architectures or ["no architecture"]
    if not kinds[0].endswith("ForSequenceClassification") or config.num_labels != 1:
        raise UserError(
            f"score.model: {model} is no reward model: its config.json names {kinds[0]} with {config.num_labels} "
            "outputs, not a ...ForSequenceClassification with one (num_labels: 1)"
        )
    require_attention(model, attn_implementation)


def vocabulary_size(config: Any) -> int | None:
    """The number of token ids that a model knows, if its configuration says so."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def positions(model: str | Path) -> int | None:
    """The most tokens that a model reads at once, responses included; None if its configuration sets no limit.

    Raises:
        UserError: config.json is not usable, or the limit is not positive.
    """
    config = load_config(model).get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int):
        return None
    if found < 1:
        raise UserError(f"{model}: max_position_embeddings in config.json is {found}; correct it")
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") in _SCALED:
        own = rope.get("original_max_position_embeddings") or found
        return max(found, int(own * rope.get("factor", 1)))
    return found


def generation_eos(model: str | Path) -> list[int]:
    """The end tokens in a model's generation_config.json, if it has one.

    Raises:
        UserError: the file is damaged, or a token is not in the vocabulary.
    """
    from transformers import GenerationConfig

    path = modelfiles.find(model, "generation_config.json")
    if path is None:
        return []
    given = modelfiles.read_object(path).get("eos_token_id")
    remedy = "correct the file, or remove it: the tokenizer's end tokens are then used alone"
    try:
        GenerationConfig.from_pretrained(model).validate(strict=True)  # as when the trained model is saved
    except Exception as error:  # transformers raises anything for values that are not as it expects
        raise UserError(f"{path}: not a generation config ({modelfiles.reason(error)}); {remedy}") from error
    ids = given if isinstance(given, list) else [] if given is None else [given]
    size = vocabulary_size(load_config(model))
    for token in ids:
        if type(token) is not int or token < 0 or (size is not None and token >= size):
            raise UserError(
                f"{path}: eos_token_id {str(token)[:40]} is no token id of the model (0 to {(size or 0) - 1}); {remedy}"
            )
    return ids
