"""Settings of the two models of the reward."""

from typing import Annotated

from xlr.records import DType, FusedOperations
from xlr.settings.schema import Location, Section

SHARED_PROMPT = "xlr_shared_prompt"


class ModelConfig(Section):
    """The two models whose log-ratio is the implicit reward."""

    initial: Annotated[str, Location.HUB]
    """pi_I, the model before preference alignment: a Hugging Face folder or hub name."""
    aligned: Annotated[str | None, Location.HUB] = None
    """pi^0, the same model after alignment on English preferences. null: the align stage trains it."""
    dtype: DType = "auto"
    """Precision of weights and arithmetic. auto is bfloat16 on GPUs and float32 on CPUs."""
    attn_implementation: str = SHARED_PROMPT
    """Attention for scoring and training. xlr_shared_prompt packs sequences and computes a prompt once for all of its
    responses. flash_attention_2 and the other flash kernels of transformers take packed sequences. sdpa and eager
    take right-padded rows."""
    fused_operations: FusedOperations = "auto"
    """Compute norms, rotary embeddings and SwiGLU with the fused kernels of liger-kernel: faster on GPUs, and other
    last bits. auto does so on GPUs where liger-kernel is installed, for architectures that xlr can fuse (llama,
    mistral, qwen2, qwen3). true refuses to run without, also with a judge or other models that cannot be fused. false
    never does so. vLLM has its own kernels."""
