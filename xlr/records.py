"""The row type on each arrow of the data flow (prompts -> responses -> scores -> pairs), and what workers are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from typing_extensions import TypedDict

DType: TypeAlias = Literal["auto", "float32", "bfloat16"]
"""`model.dtype`: auto is bfloat16 on GPUs and float32 on CPUs."""

FusedOperations: TypeAlias = Literal["auto"] | bool
"""`model.fused_operations`: auto fuses on GPUs where liger-kernel is installed."""

# An iteration's number, or the name of a model in evaluate.models.
ModelKey: TypeAlias = int | str

INITIAL = -1
"""The number of pi_I, the model before alignment: pi^t is trained from pi^(t-1), and pi^0 from pi_I."""
START = 0
"""The iteration that holds pi^0, where the align stage makes it, and its evaluation."""

# Identifies a row within a stage: its language first, then the prompt's id and, where there are several, the sample.
RowKey: TypeAlias = tuple[str, ...]


class Message(TypedDict):
    """One turn of a conversation, in the form chat templates read."""

    role: str
    content: str


class Turn(NamedTuple):
    """A message that can be compared and be a key."""

    role: str
    content: str


Conversation: TypeAlias = tuple[Turn, ...]


def messages(conversation: Conversation) -> list[Message]:
    """A conversation in the form chat templates read."""
    return [{"role": turn.role, "content": turn.content} for turn in conversation]


def turns(messages: Sequence[Message]) -> Conversation:
    """Messages as a conversation that can be compared and be a key."""
    return tuple(Turn(message["role"], message["content"]) for message in messages)


@dataclass(frozen=True, slots=True)
class Prompt:
    """An instruction; the same `id` in every language."""

    id: str
    lang: str
    instruction: str
    history: Conversation = ()
    """The messages before the instruction: at most one of the system, then those of user and assistant in turn."""

    @property
    def conversation(self) -> Conversation:
        """The turns that the response follows."""
        return (*self.history, Turn("user", self.instruction))

    @property
    def transcript(self) -> str:
        """The instruction for a reader: after the earlier turns of user and assistant, if there are some."""
        turns = [turn for turn in self.conversation if turn.role != "system"]
        if len(turns) == 1:
            return self.instruction
        return "\n\n".join(f"{turn.role.title()}: {turn.content}" for turn in turns)


@dataclass(frozen=True, slots=True)
class CheckedAnswer:
    """A model's answer to a question that has a right answer."""

    id: str
    lang: str
    response: str
    expected: str
    right: bool


@dataclass(frozen=True, slots=True)
class Rating:
    """The judge's rating of a model's answer to one turn of a question."""

    id: str
    lang: str
    turn: int
    """From 0."""
    rating: float | None
    """From 1 to 10; None if the judge gave none."""
    reply: str
    """What the judge wrote."""


@dataclass(frozen=True, slots=True)
class Question:
    """The instruction of a held-out prompt, as it stands beside the answers."""

    id: str
    lang: str
    instruction: str


def row_key(lang: str, prompt: str, sample: int) -> RowKey:
    """What identifies a response within its iteration.

    Args:
        prompt: the id of its prompt.
    """
    return lang, prompt, str(sample)


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled answer; `finish_reason` is `stop` (it ended by itself) or `length` (it was cut off)."""

    id: str
    lang: str
    sample: int
    response: str
    token_ids: Sequence[int]
    finish_reason: str

    @property
    def key(self) -> RowKey:
        """What identifies it within its iteration."""
        return row_key(self.lang, self.id, self.sample)


@dataclass(frozen=True, slots=True)
class Score:
    """A response with its reward: the implicit one, `logp_policy - logp_reference`, in nats, or another one.

    The log-probabilities are those of an implicit reward in `score.reward`; None if there is none. `scored_text`
    is the text they are of: the response, or its translation. `detected_lang` is empty where it cannot be told;
    `repetition` is the share of the response's 4-grams of tokens that stand in it earlier.
    """

    id: str
    lang: str
    sample: int
    response: str
    finish_reason: str
    scored_text: str
    logp_policy: float | None
    logp_reference: float | None
    reward: float
    num_tokens: int
    num_chars: int
    detected_lang: str
    repetition: float

    @property
    def key(self) -> RowKey:
        """What identifies it within its iteration."""
        return row_key(self.lang, self.id, self.sample)

    @property
    def logps(self) -> tuple[float, float]:
        """The log-probabilities under policy and reference, in nats. Only of a row that has an implicit reward."""
        assert self.logp_policy is not None
        assert self.logp_reference is not None
        return self.logp_policy, self.logp_reference


@dataclass(frozen=True, slots=True)
class Logps:
    """The log-probabilities of an example's responses under one model, in nats, until those of the next are known."""

    logps: list[float]


@dataclass(frozen=True, slots=True)
class PreferenceLogps:
    """The log-probabilities of a held-out preference's two responses under the policy and the reference, in nats.

    `mode` is the kind of instruction that they are scored under, as in `score.reward`. With `model` they are a reward
    model's ratings, and 0 in place of the reference's.
    """

    lang: str
    id: str
    mode: str
    chosen_policy: float
    chosen_reference: float
    rejected_policy: float
    rejected_reference: float

    @property
    def key(self) -> RowKey:
        """What identifies it within its evaluation."""
        return self.lang, self.id, self.mode


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: message lists, as TRL and others read them."""

    id: str
    """That of its prompt."""
    lang: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    chosen_score: float
    rejected_score: float
    number: int = 0
    """Which of the pairs of its prompt it is."""
    weight: float = 1.0
    """How much it counts in training; 1 on average in each language."""

    @property
    def name(self) -> str:
        """What tells it from the others of its language."""
        return f"{self.id} #{self.number + 1}" if self.number else self.id


@dataclass(frozen=True, slots=True)
class ReferenceLogps:
    """The frozen reference's log-probabilities of a training pair, in nats; `key` says of which weights and tokens."""

    id: str
    lang: str
    key: str
    chosen_logp: float
    rejected_logp: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's preference between two answers: the probability that the second is better, NaN where it gave none.

    `answer` is what it said, or why there is no preference.
    """

    preference: float
    answer: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Example:
    """One prompt and the responses that share it, as token ids."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the model: the prompt once, every response without its terminator."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One response to sample: the prompt's token ids and the row's own seed."""

    prompt: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """How responses are sampled; temperature 0 is greedy, top_k 0 keeps all tokens."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleTask:
    """Responses for a worker to sample: its result is `(token ids, finish_reason)` for each request."""

    model: str
    requests: tuple[SampleRequest, ...]
    settings: SampleSettings


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Responses for a worker to score under each model: its result is a `Scored` for each example."""

    models: tuple[str, ...]
    examples: tuple[Example, ...]
    dtype: DType
    texts: tuple[tuple[tuple[str, str], ...], ...] = ()
    """For each example, texts whose languages are detected, each after the tag that it should be in; by default
    none."""
    expected: tuple[str, ...] = ()
    """The languages that detection considers, in addition to the most common ones."""
    by_token: bool = False
    """Whether the log-probability of each token is wanted, too."""
    rating: bool = False
    """Whether the models are reward models, whose ratings are wanted in place of log-probabilities."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a worker finds about an example's responses."""

    logps: list[tuple[float, ...]]
    """For each response, its log-probability under each model, in nats, or each model's rating of it."""
    languages: list[str]
    """For each text of the task, the code of its language; empty where it cannot be detected."""
    token_logps: Sequence[tuple[list[float], ...]] = ()
    """For each response, those of its tokens under each model, in nats; none unless they are wanted."""


Task: TypeAlias = SampleTask | ScoreTask
