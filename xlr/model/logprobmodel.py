"""A model that returns log-probabilities of responses, used by scoring, the cached reference and training.

Shapes: `T` tokens that enter the model, `R` rows, `N` predicted response tokens, `S` responses, `D` hidden size.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xlr.errors import UserError
from xlr.maths.logprobs import PLAIN, LogitShape, sum_per_response, token_logps
from xlr.maths.noise import allowed_difference
from xlr.model.experts import balance
from xlr.model.fused import own_operations
from xlr.packing.attention import attention_arguments
from xlr.packing.batch import PackedBatch, batch
from xlr.packing.layout import Layout, default_attention, layout
from xlr.records import Example


class LogprobHead(nn.Linear):
    """The output embedding, returning log-probabilities instead of logits.

    It is a separate module so that ZeRO-3 gathers its weight once per pass, not once per chunk of tokens.
    """

    shape = PLAIN

    def forward(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:  # type: ignore[override]
        """Log-probability of each label in nats, float32 `(N,)`."""
        return token_logps(hidden_ND, self.weight, labels_N, shape=self.shape)


def decoder(causal_lm: Any) -> Any:
    """The model without its head. Llama 4 gives itself as its own decoder."""
    found = causal_lm.get_decoder()
    return causal_lm.model if found is causal_lm else found


def decode(model: Any, batch: PackedBatch, **options: Any) -> Any:
    """The output of the model's decoder for a batch, in the layout that its attention implementation expects."""
    return decoder(model)(
        input_ids=batch.input_ids_RT,
        position_ids=batch.position_ids_RT,
        use_cache=False,
        **options,
        **_attention_arguments(batch, model.dtype),
    )


class LogprobModel(nn.Module):
    """A causal language model that returns the log-probability of each response of a batch.

    The wrapped model is not changed. Its parameters are named `causal_lm.*`, and the head shares its output embedding.
    """

    def __init__(self, causal_lm: Any):
        super().__init__()
        self.causal_lm = causal_lm
        weight = causal_lm.get_output_embeddings().weight
        with torch.device("meta"):
            self.head = LogprobHead(1, 1, bias=False)
        self.head.weight = weight
        self.head.shape = _logit_shape(causal_lm)

    def forward(self, batch: PackedBatch, balanced: bool = False) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Log-probability of each response of the batch, float32 `(S,)`, in nats; if `balanced`, then `balance` of it.

        The decoder collects its routers' logits while it runs forward, so recomputation in the backward pass adds none.
        """
        logps_N, output = self._decode(batch, balanced)
        logps_S = sum_per_response(logps_N, batch.lengths_S)
        if not balanced:
            return logps_S
        return logps_S, *balance(self.causal_lm, output.router_logits, batch.counted_RT)

    def by_token(self, batch: PackedBatch) -> list[Tensor]:
        """Log-probabilities of the tokens of each response of the batch, in nats; their sums are those of `forward`."""
        logps_N, _ = self._decode(batch, balanced=False)
        return list(logps_N.split(batch.lengths_S.tolist()))

    def _decode(self, batch: PackedBatch, balanced: bool) -> tuple[Tensor, Any]:
        """The log-probabilities `(N,)` of the predicted tokens, and the decoder's output."""
        output = decode(self.causal_lm, batch, **({"output_router_logits": True} if balanced else {}))
        return self.head(output.last_hidden_state.flatten(0, 1)[batch.predict_N], batch.labels_N), output


def _attention_arguments(batch: PackedBatch, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of the attention function, which depend on the layout."""
    if batch.groups is not None:
        return attention_arguments(batch.groups, batch.input_ids_RT.device, dtype)
    if batch.sequence_lengths_S is None:
        return {}
    # Without these, transformers derives them from the positions in every layer, with a GPU synchronisation each time.
    ends = torch.tensor((0, *batch.sequence_lengths_S), device=batch.input_ids_RT.device)
    cu_seq_lens = ends.cumsum(0, dtype=torch.int32)
    longest = max(batch.sequence_lengths_S)
    return {
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


# What architectures call the factor of their logits; Granite divides.
_FACTORS = ("logit_scale", "lm_head_multiplier")
_DIVISOR = "logits_scaling"


def _logit_shape(causal_lm: Any) -> LogitShape:
    """How the model scales and caps hidden @ weight^T.

    Raises:
        UserError: it adds a bias.
    """
    if getattr(causal_lm.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"models of type {causal_lm.config.model_type} with a bias in the output embedding are not supported"
        )
    config = causal_lm.config.get_text_config()
    scale = math.prod(getattr(config, name, None) or 1.0 for name in _FACTORS)
    return LogitShape(
        scale / (getattr(config, _DIVISOR, None) or 1.0), getattr(config, "final_logit_softcapping", None)
    )


def batch_logps(
    model: torch.nn.Module, examples: Sequence[Example], attn_implementation: str, device: torch.device
) -> Tensor:
    """Log-probabilities `(S,)` of the examples' responses in nats, computed in one batch."""
    return model(batch(examples, attn_implementation).to(device))


def batch_balance(
    model: torch.nn.Module, examples: Sequence[Example], attn_implementation: str, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `batch_logps`, then the load-balancing loss and the loads of the experts; see `experts.balance`.

    Under ZeRO-3 a backward pass of the loss must include the log-probabilities: the gradient of a layer's output has
    its weights gathered, also those of its router.
    """
    return model(batch(examples, attn_implementation).to(device), balanced=True)


@torch.inference_mode()
def require_sound_logps(causal_lm: Any, attn_implementation: str, name: str) -> None:
    """Check on a few short sequences that batched log-probabilities equal those of plain forward passes.

    In the model's precision, and in float32.

    The plain passes take one sequence at a time and use the model's own head and operations. A difference means that
    the value depends on the batch, or that the fast path or fused operations lack something the model needs (scaled
    logits, sliding windows).

    Raises:
        UserError: they differ.
    """
    _require_own_logps(causal_lm, attn_implementation, name)
    # Rounding to bfloat16 hides what leaks from one packed response to another. flash kernels take no float32.
    if causal_lm.dtype != torch.float32 and layout(attn_implementation) is not Layout.SEQUENCES:
        _require_own_logps(first_layers(causal_lm).float(), attn_implementation, name)


def first_layers(causal_lm: Any) -> Any:
    """A copy of a model with its first layers, up to one of each kind: enough to see whether the architecture fits.

    Kinds differ in their modules, or by name in config.json. A decoder without `layers` is copied as a whole.
    """
    model = decoder(causal_lm)
    layers = getattr(model, "layers", None)
    if layers is None:
        return copy.deepcopy(causal_lm)
    types = getattr(causal_lm.config.get_text_config(), "layer_types", None) or [None] * len(layers)
    kinds = [
        (name, *((path, type(module)) for path, module in layer.named_modules()))
        for name, layer in zip(types, layers, strict=True)
    ]
    try:
        model.layers = layers[: max(map(kinds.index, kinds)) + 1]
        return copy.deepcopy(causal_lm)
    finally:
        model.layers = layers


def _require_own_logps(causal_lm: Any, attn_implementation: str, name: str) -> None:
    device, size = causal_lm.device, causal_lm.config.vocab_size
    tokens = [(7 * i + 3) % size for i in range(64)]
    probes = [
        Example(tuple(tokens[:20]), (tuple(tokens[20:40]), tuple(tokens[30:36]))),
        Example(tuple(tokens[5:9]), (tuple(tokens[10:25]),)),
    ]
    batched_S = batch_logps(LogprobModel(causal_lm), probes, attn_implementation, device)
    causal_lm.set_attn_implementation(default_attention(attn_implementation))
    with own_operations(causal_lm):
        plain = [_plain_logp(causal_lm, probe.prompt, response) for probe in probes for response in probe.responses]
    causal_lm.set_attn_implementation(attn_implementation)
    lengths = [len(response) for probe in probes for response in probe.responses]
    for batched, own, count in zip(batched_S.tolist(), plain, lengths, strict=True):
        allowed = allowed_difference(own, count, causal_lm.dtype != torch.float32)
        if not abs(batched - own) <= allowed:
            raise UserError(
                f"{name}: log-probabilities with attn_implementation={attn_implementation} differ from the model's own "
                f"({batched:.6g} and {own:.6g}; allowed difference {allowed:.2g}); this architecture "
                f"({causal_lm.config.model_type}) needs another model.attn_implementation, such as eager, or "
                "model.fused_operations=false, or is not supported"
            )


def _plain_logp(causal_lm: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """The log-probability of one response in nats, by a plain forward pass."""
    ids_1T = torch.tensor([[*prompt, *response]], device=causal_lm.device)
    logps_TV = causal_lm(input_ids=ids_1T).logits[0].float().log_softmax(-1)
    return float(logps_TV[len(prompt) - 1 : -1].gather(-1, ids_1T[0, len(prompt) :, None]).sum())
