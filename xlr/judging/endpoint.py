"""A judge behind an OpenAI-compatible endpoint. The only module that imports openai."""

import importlib.util
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias

from xlr.errors import UserError
from xlr.foreign.addresses import refuse_secrets
from xlr.judging import question, reply
from xlr.judging.budget import KEPT, Budget, mean_tokens
from xlr.judging.patience import Patience, in_thread
from xlr.judging.servedjudge import Server, serving
from xlr.judging.verdictcache import VerdictCache, content_key
from xlr.records import Message, Verdict
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import write_json
from xlr.settings.config import JudgeConfig
from xlr.terminal import progress
from xlr.terminal.console import console
from xlr.work.pieces import PROGRESS

_MAX_REFUSALS = 3  # with so many refusals and no verdict, the questions are not the problem
_PROBE_SECONDS = 10
_LAST_ANSWERS_SECONDS = 30
_PAUSE = 60  # seconds; the longest that the client waits before a retry

Body: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class _Request:
    """A question as it is sent, and its language."""

    body: Body
    lang: str


@dataclass(frozen=True)
class _Outcome:
    """The verdict on one question; `refusal` is the endpoint's reason if it does not accept the question, else None."""

    verdict: Verdict
    refusal: str | None = None


def require_usable(judge: JudgeConfig, shortest: Mapping[str, list[Message]] = MappingProxyType({})) -> None:
    """Check that the client is installed and that there is a key; see the interface in `judgements`.

    Raises:
        UserError: the package openai or the key is missing, or OPENAI_BASE_URL is not a plain address.
    """
    refuse_secrets(os.environ.get("OPENAI_BASE_URL"), "OPENAI_BASE_URL")
    if importlib.util.find_spec("openai") is None:
        raise UserError('judge.backend openai: the client is not installed; pip install ".[eval]"')
    if judge.serve is None and not os.environ.get(judge.api_key_variable):
        raise UserError(
            f"{judge.api_key_variable}: not set, but judge.backend openai reads the endpoint's key from it; export it "
            "(any value, if the server needs no key), or set judge.api_key_variable to another variable"
        )


def require_answering(judge: JudgeConfig) -> None:
    """Check from this machine that the endpoint answers, with a request that costs nothing.

    Raises:
        UserError: the endpoint does not answer within seconds, or refuses the key.
    """
    import openai

    require_usable(judge)
    once = judge.model_copy(update={"timeout": _PROBE_SECONDS, "max_retries": 0})
    with _client(once, _server(once)) as client:
        try:
            client.models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            _give_up(once, error)
        except openai.APIStatusError as error:
            if 300 <= error.status_code < 400:
                _give_up(once, error)
            # Otherwise: not every endpoint can list its models, but this one answers


def ask(
    context: Context,
    target: Artifact,
    label: str,
    questions: Sequence[list[Message]],
    langs: Sequence[str],
    scale: question.Scale = question.PREFERENCE,
    heard: bool = False,
) -> tuple[list[Verdict], int]:
    """The verdict on each question, from the cache or from the endpoint; see the interface in `judgements`.

    Args:
        scale: what the judge may reply, and what it means.
        heard: whether the judge has answered other questions before, so that some may be refused.

    Raises:
        UserError: the endpoint refuses or does not answer, or the budget is spent. Verdicts so far are kept.
    """
    judge = _replying(context.config.judge, scale)
    require_usable(judge)
    requests = [_Request(_body(judge, messages), lang) for messages, lang in zip(questions, langs, strict=True)]
    keys = [content_key([_address(judge), request.body]) for request in requests]
    folder = Path(judge.cache) if judge.cache else context.run.path / "verdicts"
    with VerdictCache(folder) as cache:
        by_key = dict(zip(keys, requests, strict=True))
        missing = {key: request for key, request in by_key.items() if key not in cache.verdicts}
        known = len(by_key) - len(missing)
        heard = heard or known > 0
        refused = _ask_missing(context, judge, target, label, missing, known, cache, scale, heard) if missing else {}
        found = {**cache.verdicts, **refused}
    return [found[key] for key in keys], len(missing) - len(refused)


def _replying(judge: JudgeConfig, scale: question.Scale) -> JudgeConfig:
    """The judge with the settings of its replies on a scale."""
    if scale.explained is None:
        return judge
    tokens = None if judge.max_tokens is None else scale.explained
    return judge.model_copy(update={"preference": "choice", "max_tokens": tokens})


def _body(judge: JudgeConfig, messages: list[Message]) -> Body:
    """The body of a request. It decides the verdict, so its digest is the key in the cache."""
    body: Body = {"model": judge.model, "messages": messages}
    if judge.temperature is not None:
        body["temperature"] = judge.temperature
    if judge.max_tokens is not None:
        body["max_tokens"] = judge.max_tokens
    if judge.preference == "weighted":
        body |= {"logprobs": True, "top_logprobs": judge.top_logprobs}
    return body | judge.extra_body


def _ask_missing(
    context: Context,
    judge: JudgeConfig,
    target: Artifact,
    label: str,
    missing: Mapping[str, _Request],
    known: int,
    cache: VerdictCache,
    scale: question.Scale,
    heard: bool,
) -> dict[str, Verdict]:
    """Ask the questions that are not in the cache and add their verdicts to it.

    Args:
        missing: requests by key.
        known: the number of other questions, whose verdicts are in the cache.

    Returns:
        The undecided verdicts on questions that the endpoint refused, by key.
    """
    budget = Budget(judge, cache, mean_tokens(context, [request.body for request in missing.values()]))
    already = f", {known} more in the cache" if known else ""
    console.print(f"  {label}: {len(missing)} questions{already}, {budget.estimate(len(missing))}")
    budget.require(len(missing))
    totals = Counter(request.lang for request in missing.values())
    # This folder has no plan.json: whatever the configuration, verdicts in the cache are found by their content.
    show = partial(write_json, target.pieces_folder("parts") / PROGRESS)
    with context.clock.measure("judge"), progress.step(label, totals, "verdicts", Counter(), show) as step:

        def keep(key: str, verdict: Verdict) -> None:
            cache.add(key, verdict)
            step.advance({missing[key].lang: 1}, verdict.prompt_tokens + verdict.completion_tokens)

        if judge.serve:
            context.close()  # workers may hold the GPUs that the server needs; they start again with the next task
        with serving(judge, context.run.path / "logs" / "judge-server.log") as served:
            server = served or _server(judge)
            bodies = {key: request.body for key, request in missing.items()}
            return _ask_all(judge, server, bodies, heard, budget, keep, scale)


def _ask_all(
    judge: JudgeConfig,
    server: Server,
    todo: Mapping[str, Body],
    known: bool,
    budget: Budget,
    keep: Callable[[str, Verdict], None],
    scale: question.Scale,
) -> dict[str, Verdict]:
    """Ask all questions, `judge.concurrency` at once, and pass each verdict to `keep` as soon as it is there.

    Until the first verdict, questions are asked one at a time, so that an error that affects all of them shows before
    many are paid for.

    Args:
        known: True if the judge has given verdicts on other questions before.

    Returns:
        The undecided verdicts on questions that the endpoint refused, by key.
    """
    client = _client(judge, server)
    waiting = iter(todo.items())
    running: dict[Future[_Outcome], str] = {}
    refused: dict[str, Verdict] = {}
    heard, patience = known, Patience((judge.max_retries + 1) * (2 * judge.timeout + _PAUSE))
    try:
        while True:
            for key, body in islice(waiting, (judge.concurrency if heard else 1) - len(running)):
                budget.require(len(running) + 1)
                running[in_thread(partial(_outcome, client, judge, scale, body))] = key
            if not running:
                return refused
            for future in patience.wait(running):
                key, outcome = running[future], future.result()
                if outcome.refusal is None:
                    keep(key, outcome.verdict)
                    heard = True
                else:
                    refused[key] = outcome.verdict
                if not heard and len(refused) == _MAX_REFUSALS:
                    raise UserError(f"{_where(judge)}: refuses all questions: {outcome.refusal}")
                del running[future]
    except TimeoutError as error:
        raise UserError(
            f"{_where(judge)}: a reply does not end, not even long after judge.timeout={judge.timeout:g} s; ask "
            f"another server. {KEPT}"
        ) from error
    finally:
        _keep_last(running, keep)
        client.close()


def _keep_last(running: Mapping[Future[_Outcome], str], keep: Callable[[str, Verdict], None]) -> None:
    """Wait for the requests under way and keep their verdicts, which are paid for even if an error or a signal came."""
    for future in wait(running, timeout=_LAST_ANSWERS_SECONDS).done:
        if future.exception() is None and future.result().refusal is None:
            keep(running[future], future.result().verdict)


def _server(judge: JudgeConfig) -> Server:
    """The endpoint of the configuration or the environment, and its key."""
    return Server(judge.base_url, os.environ.get(judge.api_key_variable, ""))


def _client(judge: JudgeConfig, server: Server) -> Any:
    import openai

    from xlr.judging.httpclient import BoundedClient

    return openai.OpenAI(
        base_url=server.base_url,
        api_key=server.key,
        timeout=judge.timeout,
        max_retries=judge.max_retries,  # of lost connections, timeouts, 429 and 5xx, with growing pauses
        http_client=BoundedClient(judge.timeout),
    )


def _address(judge: JudgeConfig) -> str:
    """What answers: part of a verdict's key, because another server may hold another model under the same name."""
    return judge.serve or judge.base_url or os.environ.get("OPENAI_BASE_URL") or "api.openai.com"


def _where(judge: JudgeConfig) -> str:
    return f"judge {judge.model} at {_address(judge)}"


def _outcome(client: Any, judge: JudgeConfig, scale: question.Scale, body: Body) -> _Outcome:
    """Ask one question.

    Raises:
        UserError: the endpoint accepts no question, or does not answer.
    """
    import openai

    rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
    for attempt in range(judge.max_retries + 1):
        try:
            answer = client.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=rest
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            refusal = _message(error)
            return _Outcome(Verdict(question.UNDECIDED, f"refused: {refusal}", 0, 0), refusal)
        except openai.APIError as error:
            _give_up(judge, error)
        try:
            return _Outcome(_require_counted(judge, reply.parse(answer.text, judge.preference == "weighted", scale)))
        except reply.NoLogprobsError as error:
            raise UserError(f"{_where(judge)}: returns no log-probabilities; set judge.preference=choice") from error
        except ValueError as error:
            invalid = error
        time.sleep(min(2**attempt / 2, 8))
    raise UserError(
        f"{_where(judge)}: the reply is not a chat completion ({str(invalid)[:100]}; it begins {answer.text[:100]!r}); "
        f"check judge.base_url, which usually ends in /v1. {KEPT}"
    ) from invalid


def _require_counted(judge: JudgeConfig, verdict: Verdict) -> Verdict:
    """Check that a budget can be kept.

    Raises:
        UserError: there is one, but the endpoint reports no tokens.
    """
    if judge.budget is not None and verdict.prompt_tokens == 0:
        raise UserError(
            f"{_where(judge)}: reports no tokens (usage.prompt_tokens), so judge.budget cannot be kept; remove it. "
            f"{KEPT}"
        )
    return verdict


def _give_up(judge: JudgeConfig, error: Any) -> NoReturn:
    """Explain an error of the client.

    Raises:
        UserError: always.
    """
    import openai

    from xlr.judging.httpclient import TooLargeError

    attempts = judge.max_retries + 1
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        why = f"refuses the key in {judge.api_key_variable} ({_message(error)}); export a valid one"
    elif isinstance(error, openai.NotFoundError):
        why = f"does not know this model or address ({_message(error)}); fix judge.model or judge.base_url"
    elif isinstance(error, openai.RateLimitError):
        why = (
            f"still limits the rate or the quota after {judge.max_retries} retries ({_message(error)}); lower "
            "judge.concurrency, or raise judge.max_retries or the quota"
        )
    elif isinstance(error, openai.APITimeoutError):
        why = f"no answer within judge.timeout={judge.timeout:g} s (attempts: {attempts}); raise judge.timeout"
    elif isinstance(error, openai.APIStatusError) and 300 <= error.status_code < 400:
        target = error.response.headers.get("Location", "another address")[:100]
        why = f"redirects to {target!r}, which xlr does not follow; set judge.base_url to it if you trust it"
    elif isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        if isinstance(cause, TooLargeError):
            raise UserError(f"{_where(judge)}: sends {cause}; ask another server. {KEPT}") from error
        why = f"cannot be reached ({str(cause)[:200]}; attempts: {attempts}); check that a server listens there"
    else:
        why = f"fails ({_message(error)})"
    raise UserError(f"{_where(judge)}: {why}. {KEPT}; start again to continue") from error


def _message(error: Any) -> str:
    """The error message of the endpoint, on one line."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return " ".join(str(said or error.message).split())[:300]
