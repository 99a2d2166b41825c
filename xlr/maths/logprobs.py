"""Log-probabilities of response tokens, computed in chunks so that the logits of all tokens never exist together.

Shapes: `N` predicted tokens of a batch, `C` tokens of a chunk, `S` responses of a batch, `D` hidden size, `V`
vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Rows of logits in memory at once. Larger on GPUs, because each chunk reads and writes the weight's whole gradient.
CPU_CHUNK_TOKENS = 256
GPU_CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class LogitShape:
    """What some architectures do to hidden @ weight^T before the softmax: cap * tanh(scale * x / cap)."""

    scale: float = 1.0
    cap: float | None = None
    """The largest absolute value that a logit approaches; None: not capped."""

    def apply_(self, logits_CV: Tensor) -> Tensor:
        """Scale and cap logits, in place."""
        if self.scale != 1:
            logits_CV.mul_(self.scale)
        return logits_CV if self.cap is None else logits_CV.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, shaped_CV: Tensor) -> Tensor | float:
        """The derivative by the plain logits, from the scaled and capped ones: scale * (1 - (y / cap)^2)."""
        if self.cap is None:
            return self.scale
        return (shaped_CV / self.cap).square_().neg_().add_(1).mul_(self.scale)


PLAIN = LogitShape()


class _ChunkedTokenLogps(torch.autograd.Function):
    """log softmax(h W^T)[label], chunk by chunk: peak memory is O(C x V), forward and backward.

    The backward pass recomputes each chunk's logits instead of keeping them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, chunk_tokens: int, shape: LogitShape
    ) -> Tensor:
        logps_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        normalizer_N = torch.empty_like(logps_N)
        for start in range(0, len(labels_N), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits_CV = shape.apply_(_logits(hidden_ND[chunk], weight_VD))
            label_logits_C = logits_CV.gather(-1, labels_N[chunk, None]).squeeze(-1)
            # log-sum-exp in place: torch.logsumexp would allocate two more tensors of this size.
            largest_C1 = logits_CV.amax(-1, keepdim=True)
            normalizer_N[chunk] = logits_CV.sub_(largest_C1).exp_().sum(-1).log_() + largest_C1.squeeze(-1)
            logps_N[chunk] = label_logits_C - normalizer_N[chunk]
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N, normalizer_N)
        ctx.chunk_tokens, ctx.shape = chunk_tokens, shape
        return logps_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (grad_N,) = grad_outputs
        hidden_ND, weight_VD, labels_N, normalizer_N = ctx.saved_tensors
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = None
        for start in range(0, len(labels_N), ctx.chunk_tokens):
            chunk = slice(start, start + ctx.chunk_tokens)
            # d logp / d logits = onehot(label) - softmax(logits)
            grad_logits_CV = ctx.shape.apply_(_logits(hidden_ND[chunk], weight_VD))
            slope = ctx.shape.slope(grad_logits_CV)
            grad_logits_CV.sub_(normalizer_N[chunk, None]).exp_().mul_(-grad_N[chunk, None])
            grad_logits_CV.scatter_add_(-1, labels_N[chunk, None], grad_N[chunk, None])
            if ctx.shape != PLAIN:
                grad_logits_CV.mul_(slope)
            grad_logits_CV = grad_logits_CV.to(weight_VD.dtype)
            grad_hidden_ND[chunk] = grad_logits_CV @ weight_VD
            if grad_weight_VD is None:
                grad_weight_VD = (grad_logits_CV.T @ hidden_ND[chunk]).float()
            elif weight_VD.dtype == torch.float32:
                grad_weight_VD.addmm_(grad_logits_CV.T, hidden_ND[chunk])
            else:  # the chunks' gradients are added in float32
                grad_weight_VD += grad_logits_CV.T @ hidden_ND[chunk]
        grad_weight_VD = None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    """Logits `(C, V)` in float32.

    GPUs return the sums of a bfloat16 product, which they compute in float32, without rounding them to bfloat16.
    Rounding would change a log-probability by 0.04 nats a token.
    """
    if hidden_CD.is_cuda and hidden_CD.dtype != torch.float32:
        return torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32)
    return (hidden_CD @ weight_VD.T).float()


def token_logps(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    chunk_tokens: int | None = None,
    shape: LogitShape = PLAIN,
) -> Tensor:
    """Log-probability of each label under softmax(hidden @ weight^T), or of these logits scaled and capped.

    Args:
        hidden_ND: final hidden states at the positions that predict the labels.
        weight_VD: the output embedding.
        labels_N: token ids.
        chunk_tokens: rows of logits in memory at once; `CPU_CHUNK_TOKENS` or `GPU_CHUNK_TOKENS` by default.
        shape: how the logits are scaled and capped.

    Returns:
        float32 of shape `(N,)`, in nats; differentiable in hidden and weight.
    """
    if chunk_tokens is None:
        chunk_tokens = GPU_CHUNK_TOKENS if hidden_ND.is_cuda else CPU_CHUNK_TOKENS
    return _ChunkedTokenLogps.apply(hidden_ND, weight_VD, labels_N, chunk_tokens, shape)


def sum_per_response(logps_N: Tensor, lengths_S: Tensor) -> Tensor:
    """Sum the token log-probabilities of each response: log p(y|x), without length normalisation.

    Args:
        logps_N: token log-probabilities; the tokens of a response are consecutive.
        lengths_S: tokens of each response, terminator included; their sum is `N`.

    Returns:
        `(S,)`, in nats. Source: arXiv 2503.04647, section 3 (log-probability of a whole response).
    """
    responses_S = torch.arange(len(lengths_S), device=logps_N.device)
    # Without output_size, the host would wait for the GPU to learn it.
    owner_N = torch.repeat_interleave(responses_S, lengths_S, output_size=len(logps_N))
    return logps_N.new_zeros(len(lengths_S)).index_add(0, owner_N, logps_N)
