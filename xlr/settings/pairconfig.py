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
    """rewards: the response with the highest reward is chosen. translations (LIDR): nothing is scored. The policy
    translates each English response into every other language, and each other response into English. In another
    language the translation is chosen and the policy's own response is rejected. In English its own response is chosen
    and a translation is rejected."""
    filters: tuple[Flaw, ...] = ()
    """Flaws for which a response is left out before pairing. truncated: cut off at max_new_tokens. repeated: more than
    half of its 4-grams of tokens occur earlier in it. wrong_language: detected as another language. duplicate: the
    text of an earlier sample for the same prompt."""
    penalties: Annotated[dict[Flaw, Annotated[float, Field(gt=0, le=1e9)]], _BY_REWARDS, Later.ADDED] = Field({})
    """Flaw -> what is subtracted from the reward of a response that has it: nats, points of a reward model or of a
    judge's grade (1 to 9), or standard deviations of a mean of rewards. It may still be chosen, unlike with filters."""
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
    """Share of each language's pairs that is kept, by their margins. A mapping such as {es: 0.25} sets it by language;
    the others keep all."""
    keep_margins: Annotated[Literal["largest", "middle", "smallest"], _BY_REWARDS, Later.ADDED] = "largest"
    """Which pairs pair.keep keeps. A pair's margin is the penalised reward of the chosen response minus that of the
    rejected one. largest keeps clear pairs; smallest keeps pairs that are almost equal; middle leaves out both ends."""
    weight: Annotated[Literal["equal", "margin"], _BY_REWARDS, Later.ADDED] = "equal"
    """How much the preference loss of a pair counts. equal: 1. margin: the pair's margin divided by the mean margin of
    the pairs that are kept in its language, so that clear pairs count more and the weights average to 1."""

    @property
    def as_candidates(self) -> "PairConfig":
        """The settings of one iteration by which candidates are paired, whose rewards are 1 or 0 by translations."""
        return self.model_copy(update={"length_control": False}) if self.by == "translations" else self

    def share_kept(self, lang: str) -> float:
        """The share of a language's pairs that is kept, of the settings of one iteration."""
        assert not isinstance(self.keep, tuple)
        return self.keep.get(lang, 1.0) if isinstance(self.keep, dict) else self.keep
