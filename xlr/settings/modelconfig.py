"""Settings of the two models of the reward."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator
from pydantic_core import PydanticCustomError

from xlr.records import DType, FusedOperations
from xlr.settings.schema import Lines, Location, Section

SHARED_PROMPT = "xlr_shared_prompt"

Thinking = Literal["skipped", "scored", "unscored"]
SystemPrompt = str | dict[str, str] | None


class ModelConfig(Section):
    """The two models whose log-ratio is the implicit reward."""

    initial: Annotated[str, Location.HUB]
    """pi_I, the model before preference alignment: a Hugging Face folder or hub name."""
    aligned: Annotated[str | None, Location.HUB] = None
    """pi^0, the same model after alignment on English preferences. null: the align stage trains it."""
    chat_template: Annotated[str | None, Location.PATH] = None
    """File with a chat template in Jinja's format, for pi_I and all models trained from it. null uses the template of
    their tokenizer. The trained models get it, too."""
    chat_template_kwargs: dict[str, JsonValue] = Field({})
    """Arguments of the chat template, for example {enable_thinking: false}."""
    system_prompt: Annotated[SystemPrompt, Lines.ALLOWED] = None
    """System message before every instruction that has none: a text, or a text by language. A response that is scored
    under the English instruction has the English one before it."""
    chat_date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")] = "2024-07-26"
    """The date that chat templates write as today's, so that prompts are the same every day."""
    thinking: Thinking = "skipped"
    """What a model that can think does before its answer. skipped: it answers at once; what the template writes between
    its generation prompt and an answer, such as an empty think block, belongs to the prompt. scored: it thinks, and the
    tokens of its think block count in the reward. unscored: it thinks, and only the tokens of its answer count.
    Training is on the block and the answer."""
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

    @field_validator("chat_date")
    @classmethod
    def _real(cls, value: str) -> str:
        try:
            date.fromisoformat(value)
        except ValueError as error:
            raise PydanticCustomError("date", "{why}; write it as 2024-07-26", {"why": str(error)}) from error
        return value
