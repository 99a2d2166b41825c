"""Types of the JSON that sampling writes: the facts in the manifests of generate and translate."""

from typing import TypeAlias

from typing_extensions import NotRequired, TypedDict


class ResponseFacts(TypedDict):
    """The sampled responses of one language."""

    rows: int
    """Number of responses."""
    tokens: int
    """Number of sampled tokens."""
    empty: int
    """Number of responses without text."""
    finish_stop: NotRequired[int]
    """Number of responses that ended by themselves; missing if there are none."""
    finish_length: NotRequired[int]
    """Number of responses that were cut off at generate.max_new_tokens; missing if there are none."""


# Facts of generate and of translate, by language.
GenerateFacts: TypeAlias = dict[str, ResponseFacts]
