"""Settings of stage 1: how responses are sampled."""

from typing import Annotated, Literal

from pydantic import Field

from xlr.settings.schema import OPERATIONAL, ByIteration, Ignored, Section

# vLLM raises lower temperatures to 0.01 in silence.
Temperature = Annotated[float, Field(ge=0.01, le=100)]
TopP = Annotated[float, Field(ge=1e-6, le=1)]

_ENGINE_ONLY = Ignored("transformers samples on one GPU and takes the memory it needs", unless=("backend", "vllm"))


class GenerateConfig(Section):
    """Stage 1: sample responses to every instruction."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """Sampler: transformers with static batches, or vLLM. Their random numbers differ, so the same seed gives other
    responses."""
    num_samples: ByIteration[Annotated[int, Field(ge=1, le=10_000)]] = 10
    """Responses per prompt."""
    temperature: ByIteration[Temperature] = 0.9
    """Sampling temperature."""
    top_p: TopP = 1.0
    """Nucleus sampling: keep the likeliest tokens until their probabilities sum to this. 1 keeps all."""
    top_k: int = Field(0, ge=0, le=10_000_000)
    """Keep this many of the likeliest tokens. 0 keeps all."""
    max_new_tokens: int = Field(2400, ge=1, le=10_000_000)
    """Maximum length of a response, in tokens. A longer response is cut off and counted as truncated."""
    batch_size: int = Field(
        default_factory=lambda given: 1024 if given.get("backend") == "vllm" else 64, ge=1, le=1_000_000
    )
    """Responses per task; by default 64 with transformers and 1024 with vllm. transformers samples them all at once,
    so they must fit the GPU. vLLM schedules them itself, so use many times what fits the GPU: the engine runs partly
    idle as each task ends."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=1024), _ENGINE_ONLY] = 1
    """GPUs per vLLM engine. Each sampling actor gets this many, whatever ray.gpus_per_actor says."""
    max_num_seqs: Annotated[int, Field(ge=1, le=1_000_000), _ENGINE_ONLY] = 256
    """Responses that a vLLM engine computes at the same time. Other values give other responses. 1024 is faster on H100
    GPUs, whose memory holds that many. vLLM itself would choose by the kind of GPU."""
    gpu_memory_utilization: Annotated[float, Field(ge=0.01, le=1), OPERATIONAL, _ENGINE_ONLY] = 0.9
    """Share of each GPU's memory that vLLM takes. On CPUs the environment variable VLLM_CPU_KVCACHE_SPACE sets the
    size of its cache in GiB instead."""
