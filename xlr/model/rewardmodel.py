"""A reward model: a sequence classifier with one output, which rates a conversation by its last token.

Shapes: `T` tokens that enter the model, `R` rows, `N` tokens of responses, `S` responses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xlr.errors import UserError
from xlr.model.fused import own_operations
from xlr.model.logprobmodel import decode, first_layers
from xlr.packing.batch import PackedBatch, batch
from xlr.packing.layout import Layout, default_attention, layout
from xlr.records import Example

# Differences between batched and plain ratings, relative to 1 + |rating|. Rounding alone stays far below.
_ALLOWED, _ALLOWED_ROUNDED = 1e-3, 5e-2


class RewardModel(nn.Module):
    """Rates the responses of a batch of `ratable` examples. The wrapped classifier is not changed."""

    def __init__(self, classifier: Any):
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: PackedBatch) -> Tensor:
        """The rating of each response, float32 `(S,)`.

        The head computes in float32: rounded to bfloat16, ratings near 10 would be multiples of 0.06.
        """
        last_S = batch.predict_N[batch.lengths_S.cumsum(0) - 1]
        hidden_SD = decode(self.classifier, batch).last_hidden_state.flatten(0, 1)[last_S]
        head = self.classifier.score
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(hidden_SD.float(), head.weight.float(), bias).squeeze(-1)


def ratable(examples: Sequence[Example], padding: int | None) -> list[Example]:
    """Examples whose last token of each response enters the model, as that of a log-probability does not.

    Args:
        padding: the model's padding token. Like transformers, a reward model does not look at it at the end.
    """
    return [Example(one.prompt, tuple((*_unpadded(own, padding), 0) for own in one.responses)) for one in examples]


def _unpadded(response: Sequence[int], padding: int | None) -> Sequence[int]:
    end = len(response)
    while end and response[end - 1] == padding:
        end -= 1
    return response[:end]


def batch_ratings(classifier: Any, examples: Sequence[Example], attn_implementation: str) -> list[float]:
    """The ratings of the examples' responses, computed in one batch."""
    packed = batch(ratable(examples, classifier.config.pad_token_id), attn_implementation)
    ratings: list[float] = RewardModel(classifier)(packed.to(classifier.device)).tolist()
    return ratings


@torch.inference_mode()
def require_sound_ratings(classifier: Any, attn_implementation: str, name: str) -> None:
    """Check on a few short sequences that batched ratings equal those of the classifier's own forward passes.

    With a copy of its first layers in float32, where the attention implementation computes in it.

    Raises:
        UserError: they differ, or its head is not a linear layer named `score` on a decoder.
    """
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise UserError(
            f"score.model: {name} rates with no linear layer on a decoder's last token (its type is "
            f"{classifier.config.model_type}), which is not supported; use a reward model such as one of the class "
            "LlamaForSequenceClassification"
        )
    rounded = layout(attn_implementation) is Layout.SEQUENCES  # flash kernels take no float32
    probed = first_layers(classifier)
    probed = probed if rounded else probed.float()
    tokens = [(7 * i + 3) % classifier.config.get_text_config().vocab_size for i in range(40)]
    examples = [
        Example(tuple(tokens[:12]), (tuple(tokens[12:25]), tuple(tokens[20:24]))),
        Example(tuple(tokens[3:6]), (tuple(tokens[25:40]),)),
    ]
    probed.set_attn_implementation(attn_implementation)
    batched = batch_ratings(probed, examples, attn_implementation)
    probed.set_attn_implementation(default_attention(attn_implementation))
    sequences = ([*one.prompt, *response] for one in examples for response in one.responses)
    with own_operations(probed):
        plain = [probed(torch.tensor([ids], device=probed.device)).logits.item() for ids in sequences]
    allowed = _ALLOWED_ROUNDED if rounded else _ALLOWED
    for found, own in zip(batched, plain, strict=True):
        if not abs(found - own) <= allowed * (1 + abs(own)):
            raise UserError(
                f"score.model: {name}: ratings with attn_implementation={attn_implementation} differ from the model's "
                f"own ({found:.6g} and {own:.6g}); set model.attn_implementation to eager, or use another reward model"
            )
