"""One response, token by token, with what each token adds to the implicit reward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from xlr.model.worker import SeededSampling
from xlr.records import SampleRequest, SampleSettings


@dataclass(frozen=True)
class Step:
    """A token of a response."""

    token: int
    log_ratio: float
    """log policy - log initial of this token, in nats. Over all tokens they sum to the implicit reward."""


@torch.inference_mode()
def stream(policy: Any, initial: Any, prompt: Sequence[int], settings: SampleSettings, seed: int) -> Iterator[Step]:
    """Sample one response of the policy; the last token is the terminator, unless the response is cut off.

    The tokens are those that a worker samples for the same request, as far as rounding allows.

    Args:
        policy, initial: causal language models on one device, with the same vocabulary.
    """
    ids_1T = torch.tensor([list(prompt)])
    models = (policy, initial)
    caches = [DynamicCache(config=model.config) for model in models]
    request = SampleRequest(tuple(prompt), seed)
    choose = SeededSampling([request], settings, len(prompt), policy.device) if settings.temperature > 0 else None
    new_1N = ids_1T
    for _ in range(settings.max_new_tokens):
        logits = [
            model(new_1N.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            .logits[:, -1]
            .float()
            for model, cache in zip(models, caches, strict=True)
        ]
        logps = [torch.log_softmax(own_1V, -1)[0] for own_1V in logits]
        chosen_1V = logits[0] if choose is None else choose(ids_1T, logits[0].clone())
        token = int(chosen_1V.argmax())
        yield Step(token, float(logps[0][token] - logps[1][token]))
        if token in settings.stop_ids:
            return
        new_1N = torch.tensor([[token]])
        ids_1T = torch.cat([ids_1T, new_1N], dim=1)
