"""A worker that samples with transformers and computes log-probabilities.

It takes and returns token ids and numbers. It does not handle text or files, and does not import ray.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    TopKLogitsWarper,
)

from xlr import detection
from xlr.errors import UserError
from xlr.maths.sampling import draw, nucleus
from xlr.model import weights
from xlr.model.actor import Actor, Halves, list_halves
from xlr.model.fused import fuse
from xlr.model.gpus import set_up_gpus
from xlr.model.logprobmodel import LogprobModel, batch_logps, decoder, require_sound_logps
from xlr.model.products import compute_repeatably
from xlr.model.rewardmodel import batch_ratings, require_sound_ratings
from xlr.packing.batch import batch
from xlr.packing.layout import default_attention
from xlr.records import (
    DType,
    Example,
    FusedOperations,
    SampleRequest,
    SampleSettings,
    SampleTask,
    Scored,
    ScoreTask,
    Task,
)

Value = TypeVar("Value")


class Worker(Actor):
    """Holds up to two models and computes with them. Batches that exceed a GPU's memory are computed in halves.

    Args:
        threads: CPU threads, or None to leave torch's own choice.
        dtype: the precision, unless a call names another.
        attn_implementation: `model.attn_implementation` of the configuration.
        models_kept: how many models stay in memory: 2 (policy and reference) or 1.
        on_gpu: whether to compute on a GPU. Ray does not hide a node's GPUs from a worker without one.
        fused_operations: `model.fused_operations` of the configuration.
    """

    def __init__(
        self,
        threads: int | None,
        dtype: DType,
        attn_implementation: str,
        models_kept: int = 2,
        on_gpu: bool = False,
        fused_operations: FusedOperations = "auto",
    ):
        super().__init__()
        compute_repeatably()
        set_up_gpus()
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self._dtype = dtype
        self.attn_implementation = attn_implementation
        self._fused_operations = fused_operations
        self._models_kept = models_kept
        self._models: dict[tuple[str, torch.dtype], Any] = {}
        self._probed: set[tuple[str, torch.dtype]] = set()

    def _model(self, name: str, attn_implementation: str, dtype: DType | None = None, rating: bool = False) -> Any:
        resolved = weights.resolve_dtype(dtype or self._dtype, self.device)
        model = self._models.pop((name, resolved), None)
        if model is None:
            while len(self._models) >= self._models_kept:
                self._models.pop(next(iter(self._models)))
            with self.loading():
                model = self._load(name, attn_implementation, resolved, rating)
            # Ignore the model's own sampling settings: the method does not use them.
            model.generation_config = GenerationConfig()
        self._models[name, resolved] = model  # the most recently used model is last
        model.set_attn_implementation(attn_implementation)
        return model

    def _load(self, name: str, attn_implementation: str, dtype: torch.dtype, rating: bool) -> Any:
        load = weights.load_reward_model if rating else weights.load_causal_lm
        try:
            model = load(name, dtype, attn_implementation).to(self.device)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            raise UserError(
                f"{name}: does not fit the memory of the GPU ({reason}); set ray.one_model_at_a_time, or use GPUs with "
                "more memory"
            ) from error
        weights.require_finite(model, name)
        fuse(model, self._fused_operations, self.device.type == "cuda")
        return model

    def compute(self, task: Task) -> Any:
        """Compute the responses or log-probabilities that a task asks for."""
        if isinstance(task, SampleTask):
            return self.sample(task.model, task.requests, task.settings)
        assert isinstance(task, ScoreTask)
        tokens: Sequence[Any] = [[]] * len(task.examples)
        if task.rating:
            logps = self.rate(task.models, task.examples, task.dtype)
        elif task.by_token:
            tokens = self._by_token(task)
            logps = [[tuple(map(math.fsum, own)) for own in of_example] for of_example in tokens]
        else:
            logps = self.score(task.models, task.examples, task.dtype)
        detected = [detection.detect(texts, task.expected) for texts in task.texts] or [[] for _ in logps]
        return [Scored(*found) for found in zip(logps, detected, tokens, strict=True)]

    def sample(
        self, model: str, requests: Sequence[SampleRequest], settings: SampleSettings
    ) -> list[tuple[list[int], str]]:
        """Sample one response per request: `(token ids without the stop token, finish_reason)`.

        Raises:
            UserError: the GPU's memory is too small for a single request.
        """
        causal_lm = self._model(model, default_attention(self.attn_implementation))
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
        for row, prompt in enumerate(prompts):  # left padding: all responses begin at the same column
            input_ids_PT[row, width - len(prompt) :] = torch.tensor(prompt)
            attention_mask_PT[row, width - len(prompt) :] = 1
        # Each prompt is prefilled once; its keys and values are copied for each of its samples.
        cache = self._prefill(causal_lm, input_ids_PT[:, :-1], attention_mask_PT[:, :-1])
        cache.batch_select_indices(prompt_of_row.to(self.device))
        processors = LogitsProcessorList()
        if settings.temperature > 0:
            processors.append(SeededSampling(requests, settings, width, self.device))
        output_BT = causal_lm.generate(
            input_ids_PT[prompt_of_row].to(self.device),
            attention_mask=attention_mask_PT[prompt_of_row].to(self.device),
            past_key_values=cache,
            generation_config=_plain_generation(settings),
            logits_processor=processors,
        )
        return [until_stop(tokens, settings.stop_ids) for tokens in output_BT[:, width:].tolist()]

    def _prefill(self, causal_lm: Any, input_ids_PT: Tensor, attention_mask_PT: Tensor) -> Any:
        """The key-value cache of left-padded prompts, without their last token."""
        cache = DynamicCache(config=causal_lm.config)
        if input_ids_PT.shape[1]:
            decoder(causal_lm)(
                input_ids=input_ids_PT.to(self.device),
                attention_mask=attention_mask_PT.to(self.device),
                position_ids=(attention_mask_PT.cumsum(-1) - 1).clamp_min(0).to(self.device),
                past_key_values=cache,
                use_cache=True,
            )
        return cache

    def score(
        self, names: Sequence[str], examples: Sequence[Example], dtype: DType | None = None
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities in nats: for each example, for each of its responses, one per model."""
        return _by_example(examples, [self.logps(name, examples, dtype) for name in names])

    def rate(
        self, names: Sequence[str], examples: Sequence[Example], dtype: DType | None = None
    ) -> list[list[tuple[float, ...]]]:
        """Ratings of reward models: for each example, for each of its responses, one per model.

        Raises:
            UserError: the GPU's memory is too small for a single sequence, or `require_sound_ratings` refuses a model.
        """
        return _by_example(examples, [self._ratings(name, examples, dtype) for name in names])

    @torch.inference_mode()
    def _ratings(self, name: str, examples: Sequence[Example], dtype: DType | None) -> list[float]:
        classifier = self._model(name, self.attn_implementation, dtype, rating=True)
        if (name, classifier.dtype) not in self._probed:
            require_sound_ratings(classifier, self.attn_implementation, name)
            self._probed.add((name, classifier.dtype))
        remedy = f"{name}: drop long sequences (score.max_length)"
        return self.in_halves(
            lambda part: batch_ratings(classifier, part, self.attn_implementation), examples, _example_halves, remedy
        )

    def logps(self, model: str, examples: Sequence[Example], dtype: DType | None = None) -> list[float]:
        """Log-probability of each of the examples' responses, in nats.

        Raises:
            UserError: the GPU's memory is too small for a single sequence, or `require_sound_logps` refuses the model.
        """
        causal_lm = self._sound_model(model, dtype)
        remedy = f"{model}: set ray.one_model_at_a_time, or drop long sequences (score.max_length)"
        return self.in_halves(lambda part: self._logps(causal_lm, part), examples, _example_halves, remedy)

    def _sound_model(self, name: str, dtype: DType | None) -> Any:
        """The model, which `require_sound_logps` has not refused."""
        causal_lm = self._model(name, self.attn_implementation, dtype)
        if (name, causal_lm.dtype) not in self._probed:
            require_sound_logps(causal_lm, self.attn_implementation, name)
            self._probed.add((name, causal_lm.dtype))
        return causal_lm

    @torch.inference_mode()
    def _by_token(self, task: ScoreTask) -> list[list[tuple[list[float], ...]]]:
        """For each example, for each of its responses, the log-probabilities of its tokens under each model."""
        of_models = []
        for name in task.models:
            model = LogprobModel(self._sound_model(name, task.dtype))

            def logps(examples: Sequence[Example], model: LogprobModel = model) -> list[list[float]]:
                packed = batch(examples, self.attn_implementation).to(self.device)
                return [own.tolist() for own in model.by_token(packed)]

            remedy = f"{name}: drop long sequences (score.max_length)"
            of_models.append(self.in_halves(logps, task.examples, _example_halves, remedy))
        return _by_example(task.examples, of_models)

    @torch.inference_mode()
    def _logps(self, causal_lm: Any, examples: Sequence[Example]) -> list[float]:
        return batch_logps(LogprobModel(causal_lm), examples, self.attn_implementation, self.device).tolist()


def _by_example(examples: Sequence[Example], of_models: Sequence[Sequence[Value]]) -> list[list[tuple[Value, ...]]]:
    """Values of all responses, one list a model: for each example, for each of its responses, one per model."""
    each = iter(zip(*of_models, strict=True))
    return [[next(each) for _ in example.responses] for example in examples]


def _example_halves(examples: Sequence[Example]) -> Halves[Example]:
    """Split the examples in two, or a single example into two with half of its responses each."""
    if len(examples) > 1:
        return list_halves(examples)
    (example,) = examples
    responses = list_halves(example.responses)
    if responses is None:
        return None
    first, second = ([Example(example.prompt, tuple(part))] for part in responses)
    return first, second


class SeededSampling:
    """A logits processor that draws each row's token with the row's own seed and sets its logit to infinity."""

    def __init__(self, requests: Sequence[SampleRequest], settings: SampleSettings, width: int, device: torch.device):
        self._width = width
        self._temperature = settings.temperature
        self._top_k = TopKLogitsWarper(settings.top_k) if settings.top_k else None
        self._top_p = settings.top_p
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
        """The logits, which it changes, with infinity for the token that each row draws."""
        logits_BV = logits_BV.div_(self._temperature)
        if self._top_k:
            logits_BV = self._top_k(input_ids_BT, logits_BV)
        if self._top_p < 1:
            logits_BV = nucleus(logits_BV, self._top_p)
        tokens_B = draw(logits_BV, self._uniforms_BT[:, input_ids_BT.shape[1] - self._width])
        return logits_BV.scatter_(-1, tokens_B[:, None], float("inf"))


def _plain_generation(settings: SampleSettings) -> GenerationConfig:
    """Greedy generation: takes the token that `SeededSampling` drew, or the most likely one without it."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=settings.max_new_tokens,
        use_cache=True,
        eos_token_id=list(settings.stop_ids),
        pad_token_id=settings.stop_ids[0],
    )


def until_stop(tokens: list[int], stop_ids: tuple[int, ...]) -> tuple[list[int], str]:
    """The tokens before the first stop token, and the finish reason: `stop`, or `length` if there is no stop token."""
    end = next((i for i, token in enumerate(tokens) if token in stop_ids), None)
    return (tokens, "length") if end is None else (tokens[:end], "stop")
