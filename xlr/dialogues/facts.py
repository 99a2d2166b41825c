"""Types of the JSON that dialogues write: the facts in the manifests of converse and rate."""

from typing import TypeAlias

from typing_extensions import NotRequired, TypedDict


class ConversedFacts(TypedDict):
    """The answers of a model in one language."""

    questions: int
    """Number of questions."""
    answers: int
    """Number of answers: one to each turn of each question."""
    complete: float
    """Share of answers that ended by themselves, from 0 to 1."""


# Facts of converse, by language.
ConverseFacts: TypeAlias = dict[str, ConversedFacts]


class GainFacts(TypedDict):
    """Ratings less those of the same answers of pi^0."""

    mean: float
    """Mean over the answers that are rated of both."""
    error: float | None
    """Its standard error, over questions; null with less than two."""


class RatedFacts(TypedDict):
    """The ratings of a model in one language, from 1 to 10."""

    questions: int
    """Number of questions with a rating."""
    rating: float | None
    """Mean over all rated answers; null if there are none."""
    error: float | None
    """Its standard error, over questions; null with less than two."""
    turns: list[float | None]
    """Mean rating of each turn, the first one first; null if none of its answers is rated."""
    categories: dict[str, float]
    """Category of questions -> mean rating; empty if questions have none."""
    undecided: int
    """Number of answers that the judge gave no rating."""
    gain: NotRequired[GainFacts]
    """The change from pi^0; missing for pi^0, and if no answer is rated of both."""


class RateFacts(TypedDict):
    """Facts of rate."""

    judge: str
    """Name of the judge."""
    asked: int
    """Number of ratings that were asked for and not found in the cache."""
    prompt_tokens: int
    """Tokens of the questions to the judge."""
    completion_tokens: int
    """Tokens of the judge's replies."""
    cost: float | None
    """Price of these tokens; null without judge.input_price and judge.output_price."""
    languages: dict[str, RatedFacts]
    """Language -> its ratings."""
