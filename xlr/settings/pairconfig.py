"""Settings of stage 3: how preference pairs are made from scored responses."""

from typing import Annotated, Literal

from pydantic import Field

from xlr.settings.schema import ByIteration, Ignored, Later, Section

Flaw = Literal["truncated", "repeated", "wrong_language", "duplicate"]
Share = Annotated[float, Field(gt=0, le=1)]
_BY_REWARDS = Ignored("translations have no rewards", unless=("by", "rewards"))


class PairConfig(Section):
    """Stage 3: make preference pairs."""

    by: Annotated[Literal["rewards", "translations"], Later.ADDED] = "rewards"
    """rewards: the response with the highest reward is chosen. translations: nothing is scored. The policy translates
    the English responses into each language, and these are chosen over its own responses there; in English, its own
    are chosen over translations into English."""
    filters: tuple[Flaw, ...] = ()
    """Flaws for which a response is left out before pairing. truncated: cut off at max_new_tokens. repeated: more than
    half of its 4-grams of tokens occur earlier in it. wrong_language: detected as another language. duplicate: the
    text of an earlier sample for the same prompt."""
    penalties: Annotated[dict[Flaw, Annotated[float, Field(gt=0, le=1e9)]], _BY_REWARDS, Later.ADDED] = Field({})
    """Flaw -> nats (or points of a reward model, or standard deviations of a mean of rewards) that are subtracted from
    the reward of a response that has it. It may still be chosen, unlike with filters."""
    per_token: Annotated[ByIteration[bool], _BY_REWARDS, Later.ADDED] = False
    """Divide each reward by its response's tokens, and multiply it by their mean in the language, so that it keeps its
    scale."""
    length_control: Annotated[ByIteration[bool], _BY_REWARDS] = True
    """Subtract a length penalty from the rewards, fitted per language so that chosen and rejected responses are equally
    long on average."""
    upper_bound: Annotated[ByIteration[Annotated[float, Field(ge=-1e9, le=1e9)] | None], _BY_REWARDS] = None
    """A response whose penalised reward reaches this is never chosen. null sets no bound."""
    rejected: Annotated[Literal["worst", "median", "nearest_mean", "quantile"], _BY_REWARDS, Later.ADDED] = "worst"
    """Which response is rejected, of those with a lower penalised reward than the chosen one: the worst, the median,
    the one nearest to the mean of all, or the one at rejected_quantile."""
    rejected_quantile: Annotated[
        float, Field(ge=0, le=1), Ignored("no quantile is asked for", unless=("rejected", "quantile")), Later.ADDED
    ] = 0.25
    """With 0 the worst is rejected, with 1 the best of those that are worse than the chosen one."""
    per_prompt: Annotated[ByIteration[Annotated[int, Field(ge=1, le=5000)]], Later.ADDED] = 1
    """The most pairs of a prompt. After the first, each is chosen by the same rules among the responses that are in no
    pair yet: the second best with the second worst, and so on."""
    keep: Annotated[ByIteration[Share | dict[str, Share]], _BY_REWARDS, Later.ADDED] = 1.0
    """Share of each language's pairs that is kept; a mapping such as {es: 0.25} sets it for some languages."""
    keep_margins: Annotated[Literal["largest", "middle", "smallest"], _BY_REWARDS, Later.ADDED] = "largest"
    """Which pairs pair.keep keeps, by the difference between the penalised rewards: the clearest, those in the middle,
    or the hardest."""
    weight: Annotated[Literal["equal", "margin"], _BY_REWARDS, Later.ADDED] = "equal"
    """How much a pair counts in training. equal: 1. margin: its difference between the penalised rewards over the mean
    of its language, so that clear pairs count more."""

    @property
    def as_candidates(self) -> "PairConfig":
        """The settings of one iteration by which candidates are paired, whose rewards are 1 or 0 by translations."""
        return self.model_copy(update={"length_control": False}) if self.by == "translations" else self

    def share_kept(self, lang: str) -> float:
        """The share of a language's pairs that is kept, of the settings of one iteration."""
        assert not isinstance(self.keep, tuple)
        return self.keep.get(lang, 1.0) if isinstance(self.keep, dict) else self.keep
