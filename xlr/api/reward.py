"""The implicit reward from Python, in this process: for rerankers, filters, and trainers such as TRL's GRPOTrainer."""

from collections.abc import Mapping, Sequence
from typing import Any

from xlr import languages
from xlr.chat.encoding import ChatEncoder, load_tokenizer, require_same_tokenizer
from xlr.chat.format import chat_format
from xlr.data.conversations import with_system
from xlr.errors import UserError
from xlr.maths.batching import token_budget_batches
from xlr.maths.rewards import crosslingual_instruction, implicit_reward
from xlr.packing.layout import batch_shape
from xlr.records import DType, Example, Message, ScoreTask
from xlr.settings.modelconfig import ModelConfig

_ATTENTION = "xlr_shared_prompt"
_CHAT = ("chat_template", "chat_template_kwargs", "system_prompt", "chat_date")


class Reward:
    """The implicit reward of answers, `log policy(y | x') - log initial(y | x')`, in nats.

    Both models stay in memory. Answers to one instruction are computed together, through the code of the score stage.

    Args:
        policy: the aligned model, a folder or hub name.
        initial: the model that it was aligned from.
        lang: the code of the answers' language.
        mode: what x' is. crosslingual: the English instruction, asking for an answer in the language; multilingual: the
            instruction as it is given.
        device: cuda or cpu; by default cuda if there is one.
        dtype: the precision; auto is bfloat16 on GPUs and float32 on CPUs.
        batch_tokens: tokens of a batch, as `score.batch_tokens`.
        chat: the settings chat_template, chat_template_kwargs, system_prompt and chat_date of the section `model`.

    Raises:
        UserError: a model cannot be opened, the models do not share a tokenizer, the language is not known, or `chat`
            has another key.
        pydantic.ValidationError: `chat` has a wrong value.
    """

    def __init__(
        self,
        policy: str,
        initial: str,
        lang: str,
        mode: str = "crosslingual",
        device: str | None = None,
        dtype: DType = "auto",
        batch_tokens: int = 16384,
        chat: Mapping[str, Any] | None = None,
    ):
        import torch

        from xlr.model.worker import Worker

        if mode not in ("crosslingual", "multilingual"):
            raise UserError(f"mode {mode!r}: not a mode of xlr.Reward; choose crosslingual or multilingual")
        if odd := next((key for key in chat or () if key not in _CHAT), None):
            raise UserError(f"chat: {odd!r} is not a setting of conversations; choose from {', '.join(_CHAT)}")
        self._models, self._lang, self._mode, self._dtype = (str(policy), str(initial)), lang, mode, dtype
        self._language = languages.name(lang)
        self._batch_tokens = batch_tokens
        self._section = ModelConfig(initial=str(initial), aligned=str(policy), **(chat or {}))
        self._encoder = ChatEncoder(load_tokenizer(str(policy)), str(policy), chat_format(self._section))
        templates, other = self._section.chat_template is None, load_tokenizer(str(initial))
        require_same_tokenizer(self._encoder.tokenizer, other, str(policy), str(initial), templates)
        on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
        self._worker = Worker(None, dtype, _ATTENTION, on_gpu=on_gpu)
        self.__name__ = f"implicit_reward_{lang}"  # TRL logs a reward under this name

    def score(self, instructions: Sequence[str], answers: Sequence[str]) -> list[float]:
        """The reward of each answer.

        Args:
            instructions: for each answer its instruction: in English for crosslingual, else in the answers' language.
            answers: texts; equal instructions share their computation.

        Returns:
            Rewards in nats, in the order of the answers.

        Raises:
            ValueError: there are more or fewer instructions than answers.
        """
        asked: dict[str, list[int]] = {}
        for index, (instruction, _) in enumerate(zip(instructions, answers, strict=True)):
            asked.setdefault(instruction, []).append(index)
        examples = [
            Example(
                self._encoder.prompt_of(self._asked(instruction)),
                tuple(self._encoder.responses([answers[i] for i in indices])),
            )
            for instruction, indices in asked.items()
        ]
        lengths, padded_rows = batch_shape(examples, _ATTENTION)
        members = list(asked.values())
        rewards = [0.0] * len(answers)
        for batch in token_budget_batches(lengths, self._batch_tokens, padded_rows):
            task = ScoreTask(self._models, tuple(examples[item] for item in batch), self._dtype)
            for item, scored in zip(batch, self._worker.compute(task), strict=True):
                for index, (policy, initial) in zip(members[item], scored.logps, strict=True):
                    rewards[index] = implicit_reward(policy, initial)
        return rewards

    def _asked(self, instruction: str) -> list[Message]:
        """The conversation that the answers to an instruction are scored in."""
        lang, text = self._lang, instruction
        if self._mode == "crosslingual":
            lang, text = languages.ENGLISH, crosslingual_instruction(instruction, self._lang, self._language)
        return with_system([{"role": "user", "content": text}], self._section.system_prompt, lang)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], english: Sequence[str] | None = None, **_columns: Any
    ) -> list[float]:
        """The rewards, with the signature of a reward function of TRL: `GRPOTrainer(reward_funcs=[reward])`.

        Args:
            prompts: texts, or conversations that end with the user's message.
            completions: texts, or conversations of one message of the assistant.
            english: the English instructions, a column of the data set. Needed for crosslingual, unless the prompts are
                in English.
        """
        asked = english if english is not None else [_last(prompt) for prompt in prompts]
        return self.score(asked, [_last(completion) for completion in completions])


def _last(turns: Any) -> str:
    """A text, or the text of a conversation's last message."""
    if isinstance(turns, str):
        return turns
    last: Mapping[str, str] = turns[-1]
    return last["content"]
