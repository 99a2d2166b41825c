"""What runs beside one set of weights: sampling with transformers, and log-probabilities of two models.

A worker knows token ids only; text, files and Ray are other modules' business.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from xlr.errors import UserError
from xlr.maths.sampling import draw
from xlr.model import weights as models
from xlr.model.actor import Actor, Halves, list_halves
from xlr.model.attention import LogprobModel, batch
from xlr.model.products import compute_repeatably
from xlr.records import Example, SampleRequest, SampleSettings


class Worker(Actor):
    """Holds up to two models and computes with them; what a GPU's memory does not hold at once is computed in halves.

    Args:
        threads: CPU threads, or None to leave torch's own choice.
        dtype: `auto`, `float32` or `bfloat16`.
        attn_implementation: as in the configuration.
        models_kept: how many models stay in memory: 2, policy and reference, or 1.
    """

    def __init__(self, threads: int | None, dtype: str, attn_implementation: str, models_kept: int = 2):
        super().__init__()
        compute_repeatably()
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = models.resolve_dtype(dtype, self.device)
        self.attn_implementation = attn_implementation
        self._models_kept = models_kept
        self._models: dict[str, Any] = {}
        self._probed: set[str] = set()

    def _model(self, name: str, attn_implementation: str) -> Any:
        causal_lm = self._models.pop(name, None)
        if causal_lm is None:
            while len(self._models) >= self._models_kept:
                self._models.pop(next(iter(self._models)))
            with self.loading():
                causal_lm = models.load_causal_lm(name, self.dtype, attn_implementation).to(self.device)
                models.require_finite(causal_lm, name)
            causal_lm.generation_config = GenerationConfig()  # its penalties and limits are not the method's
        self._models[name] = causal_lm  # the most recently used one stands last
        causal_lm.set_attn_implementation(attn_implementation)
        return causal_lm

    def sample(
        self, model: str, requests: Sequence[SampleRequest], settings: SampleSettings
    ) -> list[tuple[list[int], str]]:
        """Sample one response a request: `(token ids without what ended it, finish_reason)`.

        Raises:
            UserError: a GPU's memory does not hold a single one.
        """
        causal_lm = self._model(model, models.default_attention(self.attn_implementation))
        remedy = f"{model}: lower max_new_tokens={settings.max_new_tokens}, or use generate.backend=vllm"
        return self.in_halves(lambda part: self._sample(causal_lm, part, settings), requests, list_halves, remedy)

    @torch.inference_mode()
    def _sample(
        self, causal_lm: Any, requests: Sequence[SampleRequest], settings: SampleSettings
    ) -> list[tuple[list[int], str]]:
        prompts = list(dict.fromkeys(request.prompt for request in requests))
        prompt_of_row = torch.tensor([prompts.index(request.prompt) for request in requests])
        width = max(map(len, prompts))
        input_ids_PT = torch.zeros(len(prompts), width, dtype=torch.long)
        attention_mask_PT = torch.zeros_like(input_ids_PT)
        for row, prompt in enumerate(prompts):  # left padding: all answers begin at the same column
            input_ids_PT[row, width - len(prompt) :] = torch.tensor(prompt)
            attention_mask_PT[row, width - len(prompt) :] = 1
        # A prompt is computed once for all its samples: its keys and values are repeated, not its arithmetic.
        cache = self._prefill(causal_lm, input_ids_PT[:, :-1], attention_mask_PT[:, :-1])
        cache.batch_select_indices(prompt_of_row.to(self.device))
        processors = LogitsProcessorList()
        if settings.temperature > 0:
            processors.append(_SeededSampling(requests, settings, width, self.device))
        output_BT = causal_lm.generate(
            input_ids_PT[prompt_of_row].to(self.device),
            attention_mask=attention_mask_PT[prompt_of_row].to(self.device),
            past_key_values=cache,
            generation_config=_plain_generation(settings),
            logits_processor=processors,
        )
        return [until_stop(tokens, settings.stop_ids) for tokens in output_BT[:, width:].tolist()]

    def _prefill(self, causal_lm: Any, input_ids_PT: Tensor, attention_mask_PT: Tensor) -> Any:
        """The cache after all but the last token of each left-padded prompt."""
        cache = DynamicCache(config=causal_lm.config)
        if input_ids_PT.shape[1]:
            causal_lm.get_decoder()(
                input_ids=input_ids_PT.to(self.device),
                attention_mask=attention_mask_PT.to(self.device),
                position_ids=(attention_mask_PT.cumsum(-1) - 1).clamp_min(0).to(self.device),
                past_key_values=cache,
                use_cache=True,
            )
        return cache

    def score(self, names: Sequence[str], examples: Sequence[Example]) -> list[list[tuple[float, ...]]]:
        """Log-probabilities under each of the models, in nats, of every response of every example."""
        logps = [self.logps(name, examples) for name in names]
        each = iter(zip(*logps, strict=True))
        return [[next(each) for _ in example.responses] for example in examples]

    def reference_logps(self, model: str, examples: Sequence[Example]) -> tuple[str, list[float]]:
        """The precision computed in, and the log-probability of each response, in nats."""
        return str(self.dtype), self.logps(model, examples)

    def logps(self, model: str, examples: Sequence[Example]) -> list[float]:
        """The log-probability of each of the examples' responses, in nats.

        Raises:
            UserError: a GPU's memory does not hold a single one.
        """
        causal_lm = self._model(model, self.attn_implementation)
        if model not in self._probed:
            require_sound_logps(causal_lm, self.attn_implementation, model)
            self._probed.add(model)
        remedy = f"{model}: set ray.one_model_at_a_time, or leave such long sequences out (score.max_length)"
        return self.in_halves(lambda part: self._logps(causal_lm, part), examples, _example_halves, remedy)

    @torch.inference_mode()
    def _logps(self, causal_lm: Any, examples: Sequence[Example]) -> list[float]:
        return batch_logps(LogprobModel(causal_lm), examples, self.attn_implementation, self.device).tolist()


def _example_halves(examples: Sequence[Example]) -> Halves[Example]:
    """Half of the examples each, or one example with half of its responses each."""
    if len(examples) > 1:
        return list_halves(examples)
    (example,) = examples
    responses = list_halves(example.responses)
    if responses is None:
        return None
    first, second = ([Example(example.prompt, tuple(part))] for part in responses)
    return first, second


def batch_logps(
    model: torch.nn.Module, examples: Sequence[Example], attn_implementation: str, device: torch.device
) -> Tensor:
    """`(S,)` log-probabilities, on batches of the form that the attention implementation reads."""
    return model(batch(examples, attn_implementation).to(device))


@torch.inference_mode()
def require_sound_logps(causal_lm: Any, attn_implementation: str, name: str) -> None:
    """Check on two probe sequences that batched log-probabilities are the model's own.

    Each probe's value inside a batch is held against a plain forward pass over that sequence alone with the
    model's whole head: it must not depend on the batch, nor on what the fast path leaves out (soft-capped or
    scaled logits, sliding windows).

    Raises:
        UserError: they differ.
    """
    device, size = causal_lm.device, causal_lm.config.vocab_size
    tokens = [(7 * i + 3) % size for i in range(64)]
    probes = [
        Example(tuple(tokens[:20]), (tuple(tokens[20:40]), tuple(tokens[30:36]))),
        Example(tuple(tokens[5:9]), (tuple(tokens[10:25]),)),
    ]
    batched_S = batch_logps(LogprobModel(causal_lm), probes, attn_implementation, device)
    causal_lm.set_attn_implementation(models.default_attention(attn_implementation))
    plain = []
    for prompt, response in [(probe.prompt, response) for probe in probes for response in probe.responses]:
        ids_1T = torch.tensor([[*prompt, *response]], device=device)
        logps_TV = causal_lm(input_ids=ids_1T).logits[0].float().log_softmax(-1)
        targets_T = ids_1T[0, len(prompt) :, None]
        plain.append(logps_TV[len(prompt) - 1 : -1].gather(-1, targets_T).sum())
    causal_lm.set_attn_implementation(attn_implementation)
    error = ((batched_S - torch.stack(plain)).abs() / torch.stack(plain).abs()).max().item()
    allowed = 1e-4 if causal_lm.dtype == torch.float32 else 2e-2
    if not error <= allowed:
        raise UserError(
            f"{name}: log-probabilities with attn_implementation={attn_implementation} differ from the model's own by "
            f"{error:.2g} (allowed {allowed:g}); this architecture ({causal_lm.config.model_type}) needs another "
            "model.attn_implementation, such as eager, or is not supported"
        )


class _SeededSampling:
    """A logits processor that puts the token drawn with the row's own random numbers above all others."""

    def __init__(self, requests: Sequence[SampleRequest], settings: SampleSettings, width: int, device: torch.device):
        self._width = width
        self._temperature = settings.temperature
        self._warpers: list[Any] = []
        if settings.top_k:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self._warpers.append(TopPLogitsWarper(settings.top_p))
        # Drawn on the CPU, so that a row's numbers do not depend on the device.
        self._uniforms_BT = torch.stack(
            [
                torch.rand(
                    settings.max_new_tokens,
                    dtype=torch.float64,
                    generator=torch.Generator().manual_seed(request.seed),
                )
                for request in requests
            ]
        ).to(device)

    def __call__(self, input_ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        logits_BV = logits_BV.div_(self._temperature)
        for warper in self._warpers:
            logits_BV = warper(input_ids_BT, logits_BV)
        tokens_B = draw(logits_BV, self._uniforms_BT[:, input_ids_BT.shape[1] - self._width])
        return logits_BV.scatter_(-1, tokens_B[:, None], float("inf"))


def _plain_generation(settings: SampleSettings) -> GenerationConfig:
    """Greedy: the token that a processor put first, or the likeliest."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=settings.max_new_tokens,
        use_cache=True,
        eos_token_id=list(settings.stop_ids),
        pad_token_id=settings.stop_ids[0],
    )


def until_stop(tokens: list[int], stop_ids: tuple[int, ...]) -> tuple[list[int], str]:
    """What stands before the first stop token, and whether there was one: `stop` or `length`."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), None)
    return (tokens, "length") if end is None else (tokens[:end], "stop")
