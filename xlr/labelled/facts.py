"""Types of the JSON about held-out preferences."""

from typing_extensions import NotRequired, TypedDict


class CategoryFacts(TypedDict):
    """The preferences of one category."""

    pairs: int
    """Number of pairs."""
    accuracy: float
    """As in `PreferenceFacts`."""


class PreferenceFacts(TypedDict):
    """The implicit reward log pi^t - log pi_I on one language's preferences, under one kind of instruction.

    Or, under `model`, the rating of the reward model, in its own points instead of nats. Under `translate`, pairs of
    which an answer has no translation are left out.
    """

    pairs: int
    """Number of pairs."""
    accuracy: float
    """Share of pairs whose chosen response has the higher reward, from 0 to 1; a tie counts one half."""
    margin: float
    """Mean reward of chosen less that of rejected, in nats."""
    margin_interval: NotRequired[tuple[float, float]]
    """Its 95 % interval, bootstrapped over pairs. Older results have none."""
    alpha: float
    """Length penalty in nats a character that makes preferred and other responses equally long, as in the pairs."""
    length_controlled_accuracy: float
    """Accuracy of the reward less alpha times the length."""
    longer_accuracy: float
    """Accuracy of preferring the longer response."""
    categories: NotRequired[dict[str, CategoryFacts]]
    """Category -> its pairs, where rows name one in `category` or `subset`."""
