"""Settings of stage 2: which rewards responses get, and how they are computed."""

from typing import Annotated, Literal

from pydantic import Field

from xlr.settings.schema import ByIteration, Later, Location, Section

# translate stands last: it is the only one that samples before it scores.
Reward = Literal["crosslingual", "multilingual", "model", "judge", "translate"]
IMPLICIT: frozenset[Reward] = frozenset({"crosslingual", "multilingual", "translate"})
"""Those that are a log-ratio of two models of the run."""
Weight = Annotated[float, Field(gt=0, le=1e6)]


class ScoreConfig(Section):
    """Stage 2: score responses with the implicit reward, a reward model, a judge's grades, or several of them."""

    reward: Reward | Annotated[dict[Reward, Weight], Field(min_length=1)] = "crosslingual"
    """crosslingual, multilingual and translate are the implicit reward under three instructions. crosslingual: the
    English instruction with a prefix that names the response's language. multilingual: the response's own instruction.
    translate: the policy translates the response into English, which is scored under the English instruction; English
    responses are left out. model: the rating that score.model gives to the conversation. judge: the grade, from 1 to 9,
    that the judge of judge.* gives to the response. A mapping such as
    {crosslingual: 1, model: 0.5} takes the weighted mean of several, each standardised in each language."""
    model: Annotated[str | None, Location.HUB] = None
    """The reward model: a Hugging Face folder or hub name of a sequence classifier with one output, such as
    LlamaForSequenceClassification. It has its own tokenizer and chat template."""
    grading_template: Annotated[str | None, Location.PATH] = None
    """File with the question that asks the judge for a grade, in the form of judge.template: it contains {instruction},
    {answer}, optionally {language}, and asks for a digit from 1 to 9. null uses xlr's own."""
    translation: Annotated[Literal["plain", "marked"], Later.ADDED] = "plain"
    """How translate asks for a translation. plain: for the translation alone. marked: as in the authors' code, with
    marks around text and translation, up to 8192 tokens; a translation without its end mark is scored as a fixed
    sentence."""
    reference: ByIteration[Literal["initial", "previous"]] = "initial"
    """Reference model of the implicit reward. initial is always pi_I; previous is the model that the policy was trained
    from."""
    terminator: Annotated[bool, Later.ADDED] = True
    """Count the log-ratio of the token that ends a response. It says how much likelier the aligned model is to stop
    there, also for a response that was cut off. A reward model always reads it."""
    batch_tokens: int = Field(16384, ge=1, le=100_000_000)
    """Tokens per scoring batch. Lower it if a GPU runs out of memory."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Precision of scoring. null uses model.dtype. Rounding to bfloat16 changes rewards by some tenths of a nat: use
    float32 where the rewards of a prompt's responses differ little. On GPUs float32 is several times slower."""
    max_length: int = Field(8192, ge=2, le=10_000_000)
    """Maximum length of prompt plus response, in tokens. Longer ones are left out, counted and reported."""

    @property
    def weights(self) -> dict[Reward, float]:
        """Reward -> its weight."""
        return self.reward if isinstance(self.reward, dict) else {self.reward: 1.0}

    @property
    def first(self) -> Reward:
        """The reward that is named first: the one that is looked at where only one can be."""
        return next(iter(self.weights))
