"""Settings of the judge: the `judge` section of a configuration."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from xlr.errors import UserError
from xlr.foreign import hub
from xlr.foreign.addresses import refuse_secrets
from xlr.settings.schema import OPERATIONAL, Ignored, Lines, Location, Section

_ENDPOINT_ONLY = Ignored("the judge runs in the Ray workers and no endpoint is asked", unless=("backend", "openai"))


class JudgeConfig(Section):
    """Stage 6: a judge model compares held-out answers with those of a baseline."""

    backend: Literal["openai", "transformers"] = "openai"
    """Where the judge runs: behind an OpenAI-compatible endpoint, or in the Ray workers."""
    model: Annotated[str | None, Location.JUDGE] = None
    """The judge: the endpoint's name for it, or with backend transformers a Hugging Face folder or hub name. null turns
    judging off."""
    base_url: Annotated[str | None, OPERATIONAL, _ENDPOINT_ONLY] = None
    """URL of the endpoint, including /v1, without user, password or key. null uses OPENAI_BASE_URL, or else OpenAI's
    own endpoint."""
    serve: Annotated[str | None, OPERATIONAL, Lines.ALLOWED, _ENDPOINT_ONLY] = None
    """Command that serves the judge on this node while it is needed; base_url is then not used. {model} and {port} are
    filled in: vllm serve {model} --host 127.0.0.1 --port {port}. The server must ask for the key that xlr puts into
    XLR_JUDGE_KEY, VLLM_API_KEY and LLAMA_API_KEY."""
    api_key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), OPERATIONAL, _ENDPOINT_ONLY] = (
        "OPENAI_API_KEY"
    )
    """Environment variable that holds the endpoint's key. A server without keys accepts any value."""
    baseline: Annotated[Annotated[int, Field(ge=0, le=1000)] | str, Location.BASELINE] = 0
    """Whose answers the judge compares with: an iteration (0 is the start), a name in evaluate.models, or a folder of
    reference outputs in AlpacaEval's format, {lang}.json with instruction, output and generator in every row."""
    both_orders: bool = True
    """Ask about each comparison twice, with the answers in both orders, and average. false asks once, in an order
    drawn with the seed."""
    preference: Annotated[Literal["weighted", "choice"], _ENDPOINT_ONLY] = "weighted"
    """weighted reads the probabilities of the two verdicts (logprobs); choice reads the verdict as text, for endpoints
    without logprobs. Judges in the Ray workers are always weighted."""
    template: Annotated[str | None, Location.PATH] = None
    """File with the judge's prompt: plain text, or AlpacaEval's <|im_start|> format. It contains {instruction},
    {output_1}, {output_2}, optionally {language}, and asks for the verdict m (output_1 is better) or M. null uses
    xlr's own prompt."""
    temperature: Annotated[float | None, Field(ge=0, le=100), _ENDPOINT_ONLY] = 0.0
    """Sampling temperature of the verdicts. null omits it from requests."""
    max_tokens: Annotated[int | None, Field(ge=1, le=1_000_000), _ENDPOINT_ONLY] = Field(
        default_factory=lambda given: 16 if given.get("preference") == "choice" else 1
    )
    """Maximum length of a verdict, in tokens; by default 1 if preference is weighted and 16 if it is choice. null omits
    it from requests."""
    top_logprobs: Annotated[int, Field(ge=2, le=1000), _ENDPOINT_ONLY] = 20
    """Number of token probabilities to request. Some endpoints allow at most 5."""
    extra_body: Annotated[dict[str, JsonValue], Lines.ALLOWED, _ENDPOINT_ONLY] = Field({})
    """Further keys of every request, for example {chat_template_kwargs: {enable_thinking: false}}."""
    difficulty: Annotated[str | None, Location.HUB] = None
    """AlpacaEval's df_gamed.csv: the file, or the hub dataset tatsu-lab/alpaca_eval that contains it. With it win rates
    are length_controlled_v1; null gives length_controlled_minimal."""
    concurrency: Annotated[int, Field(ge=1, le=10_000), OPERATIONAL, _ENDPOINT_ONLY] = 16
    """Requests in flight at once."""
    timeout: Annotated[float, Field(ge=0.1, le=100_000), OPERATIONAL, _ENDPOINT_ONLY] = 120
    """Seconds after which a request is retried."""
    max_retries: Annotated[int, Field(ge=0, le=1000), OPERATIONAL, _ENDPOINT_ONLY] = 8
    """Retries of a request, with growing pauses or those that the endpoint asks for."""
    input_price: Annotated[float | None, Field(ge=0, le=1e12), OPERATIONAL] = None
    """Price of a million prompt tokens, in any currency. With both prices xlr reports the cost of judging."""
    output_price: Annotated[float | None, Field(ge=0, le=1e12), OPERATIONAL] = None
    """Price of a million completion tokens, in the same currency."""
    budget: Annotated[float | None, Field(gt=0, le=1e15), OPERATIONAL, _ENDPOINT_ONLY] = None
    """Spending limit over all cached verdicts, in the currency of the prices. Jobs judging at the same time do not see
    each other's spending."""
    cache: Annotated[str | None, OPERATIONAL, Location.PATH, _ENDPOINT_ONLY] = None
    """Folder of cached verdicts, keyed by the content of the request and the server; runs may share one. null uses
    RUN/verdicts."""

    @property
    def name(self) -> str:
        """A folder or hub name without its path, and without a revision; or the endpoint's name for the judge."""
        if self.backend != "transformers":
            return str(self.model)
        folder = Path(str(self.model))
        return folder.name if folder.is_absolute() else hub.named(str(folder)).name.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The folder of this judge's verdicts in `judgements` and `ratings`: its name, in letters, digits, _ and -."""
        return re.sub(r"[^\w-]+", "-", self.name)

    @model_validator(mode="after")
    def _consistent(self) -> "JudgeConfig":
        if (self.input_price is None) != (self.output_price is None):
            raise UserError("judge.input_price and judge.output_price: only one of them is set; set both or neither")
        if self.serve is not None:
            _check_command("judge.serve", self.serve)
        refuse_secrets(self.base_url, "judge.base_url")
        if self.budget is not None and self.input_price is None:
            raise UserError("judge.budget: has no prices to count with; set judge.input_price and judge.output_price")
        return self


def _check_command(key: str, command: str) -> None:
    """Check a server's command, which is split into words as a shell would."""
    if "{port}" not in command:
        raise UserError(f"{key}: does not contain {{port}}; add it where the command takes the server's port")
    try:
        shlex.split(command)
    except ValueError as error:
        raise UserError(f"{key}: is not a command ({error}); close the quotes") from error
