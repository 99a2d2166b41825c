"""A judge behind an OpenAI-compatible endpoint. The only module that imports openai."""

import importlib.util
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from xlr import progress
from xlr.config import JudgeConfig
from xlr.console import console
from xlr.errors import UserError
from xlr.evaluation import verdicts
from xlr.evaluation.servedjudge import serving
from xlr.evaluation.verdictcache import VerdictCache, content_key
from xlr.records import Message, Verdict
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import write_json
from xlr.run.work import PROGRESS

_SAMPLE = 200  # questions that the estimate counts the tokens of
_REFUSALS = 3  # before any verdict, after which it is not the questions that are at fault
_PROBE_SECONDS = 10
_LAST_ANSWERS_SECONDS = 30  # for those that are on their way when all is to end: they are paid


def require_usable(judge: JudgeConfig) -> None:
    """Find what is lacking before anything else is computed.

    Raises:
        UserError: the package, or the key.
    """
    if importlib.util.find_spec("openai") is None:
        raise UserError('judge.backend openai: the client is not installed; pip install "xlr[eval]"')
    if judge.serve is None and not os.environ.get(judge.api_key_variable):
        raise UserError(
            f"{judge.api_key_variable}: not set, and judge.backend openai needs the endpoint's key there; export it "
            "(anything, for a server without keys), or name another variable in judge.api_key_variable"
        )


def require_answering(judge: JudgeConfig) -> None:
    """Ask the endpoint something that costs nothing, from here.

    Raises:
        UserError: it does not answer within seconds, or refuses the key.
    """
    import openai

    require_usable(judge)
    once = judge.model_copy(update={"timeout": _PROBE_SECONDS, "max_retries": 0})
    with _client(once) as client:
        try:
            client.models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.APIConnectionError) as error:
            _give_up(once, error)
        except openai.APIStatusError:
            pass  # not every endpoint has such a list, but this one answers


class _RefusedError(Exception):
    """The endpoint does not take this one question: it is too long, or against its rules."""


def ask(
    context: Context, target: Artifact, label: str, questions: Sequence[list[Message]], langs: Sequence[str]
) -> tuple[list[Verdict], int]:
    """The verdict on every question, from the cache or from the endpoint; see `judgements`.

    Raises:
        UserError: the endpoint refuses or does not answer, or the budget is spent. All verdicts so far are kept.
    """
    judge = context.config.judge
    require_usable(judge)
    bodies = [_body(judge, question) for question in questions]
    keys = [content_key(body) for body in bodies]
    folder = Path(judge.cache) if judge.cache else context.run.path / "verdicts"
    with VerdictCache(folder) as cache:
        asked = dict(zip(keys, zip(bodies, langs, strict=True), strict=True))
        todo = {key: own for key, own in asked.items() if key not in cache.verdicts}
        refused: dict[str, Verdict] = {}
        if todo:
            purse = _Purse(judge, cache, _tokens_each(context, [body for body, _ in todo.values()]))
            known = len(asked) - len(todo)
            already = f", {known} known already" if known else ""
            console.print(f"  {label}: {len(todo)} questions{already}, {purse.estimate(len(todo))}")
            purse.require(len(todo))
            totals = Counter(lang for _, lang in todo.values())
            # Without a plan: another configuration finds what it can use in the cache by itself.
            show = partial(write_json, target.pieces_folder("parts") / PROGRESS)
            with context.clock.measure("judge"), progress.step(label, totals, "verdicts", Counter(), show) as step:

                def keep(key: str, verdict: Verdict) -> None:
                    cache.add(key, verdict)
                    step.advance({todo[key][1]: 1}, verdict.prompt_tokens + verdict.completion_tokens)

                with serving(judge, context.run.path / "logs" / "judge-server.log") as served:
                    refused = _ask_all(served, {key: body for key, (body, _) in todo.items()}, known, purse, keep)
        return [refused.get(key) or cache.verdicts[key] for key in keys], len(todo) - len(refused)


def _body(judge: JudgeConfig, question: list[Message]) -> dict[str, Any]:
    """What a request holds; also what decides the verdict."""
    body: dict[str, Any] = {"model": judge.model, "messages": question}
    if judge.temperature is not None:
        body["temperature"] = judge.temperature
    if judge.max_tokens is not None:
        body["max_tokens"] = judge.max_tokens
    if judge.preference == "weighted":
        body |= {"logprobs": True, "top_logprobs": judge.top_logprobs}
    return body | judge.extra_body


def cost(judge: JudgeConfig, prompt_tokens: float, completion_tokens: float) -> float | None:
    """What tokens cost, or None without prices."""
    if judge.input_price is None or judge.output_price is None:
        return None
    return (prompt_tokens * judge.input_price + completion_tokens * judge.output_price) / 1e6


def _tokens_each(context: Context, bodies: Sequence[Mapping[str, Any]]) -> float:
    """Tokens of a question, on average: of a sample, and as the run's own tokenizer counts them."""
    sample = bodies[:: -(-len(bodies) // _SAMPLE)]
    texts = ["\n".join(turn["content"] for turn in body["messages"]) for body in sample]
    return statistics.fmean(map(len, context.encoder.tokenizer(texts)["input_ids"]))


@dataclass(frozen=True)
class _Purse:
    """What was spent, and whether the budget allows another question."""

    judge: JudgeConfig
    cache: VerdictCache
    tokens_each: float

    def _price(self, questions: int) -> float | None:
        return cost(self.judge, questions * self.tokens_each, questions * (self.judge.max_tokens or 0))

    def estimate(self, questions: int) -> str:
        """What so many more questions will need, in words."""
        price = self._price(questions)
        costs = "" if price is None else f", about {price:.4g} by judge.input_price and judge.output_price"
        return f"about {questions * self.tokens_each:,.0f} tokens{costs}"

    def require(self, questions: int) -> None:
        """Check that the budget allows so many more questions.

        Raises:
            UserError: it does not.
        """
        price, budget = self._price(questions), self.judge.budget
        if price is None or budget is None:
            return
        spent = cost(self.judge, self.cache.prompt_tokens, self.cache.completion_tokens) or 0.0
        if spent + price > budget:
            raise UserError(
                f"judge.budget {budget:g}: {spent:.4g} is spent, and {questions} more verdicts cost about {price:.4g}; "
                "raise it, or judge less (evaluate.prompts.limit, judge.both_orders). What is judged is kept"
            )


def _ask_all(
    judge: JudgeConfig,
    todo: Mapping[str, dict[str, Any]],
    known: int,
    purse: _Purse,
    keep: Callable[[str, Verdict], None],
) -> dict[str, Verdict]:
    """Ask all questions, `judge.concurrency` at once, and give `keep` each verdict as it comes.

    Up to the first verdict they go one by one: what is wrong with all of them shows before many are paid.

    Args:
        known: how many other questions the judge gave verdicts on before.

    Returns:
        The undecided verdicts of questions that the endpoint refused.
    """
    client = _client(judge)
    threads = ThreadPoolExecutor(judge.concurrency)
    waiting = iter(todo.items())
    running: dict[Future[Verdict], str] = {}
    refused: dict[str, Verdict] = {}
    heard = bool(known)
    try:
        while True:
            for key, body in islice(waiting, (judge.concurrency if heard else 1) - len(running)):
                purse.require(len(running) + 1)
                running[threads.submit(_verdict, client, judge, body)] = key
            if not running:
                return refused
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    verdict = future.result()
                except _RefusedError as refusal:
                    refused[running[future]] = Verdict(verdicts.UNDECIDED, f"refused: {refusal}", 0, 0)
                    if not heard and len(refused) == _REFUSALS:
                        raise UserError(f"{_where(judge)}: refuses all questions: {refusal}") from refusal
                else:
                    keep(running[future], verdict)
                    heard = True
                del running[future]
    finally:
        # What is on its way is paid: when a signal or a refusal ends this, it is still waited for and kept.
        for future in wait(running, timeout=_LAST_ANSWERS_SECONDS).done:
            if future.exception() is None:
                keep(running[future], future.result())
        threads.shutdown(wait=False, cancel_futures=True)
        client.close()


def _client(judge: JudgeConfig) -> Any:
    import openai

    return openai.OpenAI(
        base_url=judge.base_url,
        api_key=os.environ.get(judge.api_key_variable, "none"),  # what judge.serve starts has none
        timeout=judge.timeout,
        max_retries=judge.max_retries,  # on lost connections, time-outs, 429 and 5xx, with growing pauses
    )


def _where(judge: JudgeConfig) -> str:
    return f"judge {judge.model} at {judge.base_url or os.environ.get('OPENAI_BASE_URL', 'api.openai.com')}"


def _verdict(client: Any, judge: JudgeConfig, body: dict[str, Any]) -> Verdict:
    """Ask one question.

    Raises:
        _RefusedError: the endpoint does not take it.
        UserError: it takes none, or does not answer.
    """
    import openai

    rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
    for attempt in range(judge.max_retries + 1):
        try:
            reply = client.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=rest
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise _RefusedError(_message(error)) from error
        except openai.APIError as error:
            _give_up(judge, error)
        try:
            return _read(judge, json.loads(reply.text))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            garbage = error
        time.sleep(min(2**attempt / 2, 8))
    raise UserError(
        f"{_where(judge)}: answers with what is no chat completion ({reply.text[:100]!r}); is judge.base_url right, "
        "with /v1 at its end? What is judged is kept"
    ) from garbage


def _read(judge: JudgeConfig, reply: dict[str, Any]) -> Verdict:
    """The verdict in a chat completion.

    Raises:
        UserError: it lacks log-probabilities.
        ValueError, TypeError, KeyError, IndexError: it is none.
    """
    choice = reply["choices"][0]
    text, usage = choice["message"]["content"] or "", reply.get("usage") or {}
    if judge.preference == "choice":
        preference = verdicts.chosen(text)
    elif not choice.get("logprobs"):
        raise UserError(f"{_where(judge)}: gives no log-probabilities; set judge.preference=choice")
    else:
        tokens = choice["logprobs"]["content"]
        top = tokens[0]["top_logprobs"] if tokens else []
        preference = verdicts.weighted({entry["token"]: float(entry["logprob"]) for entry in top})
    return Verdict(preference, text, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))


def _give_up(judge: JudgeConfig, error: Any) -> NoReturn:
    """Say what an error of the client means.

    Raises:
        UserError: always.
    """
    import openai

    kept = "What is judged is kept: start again to go on"
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        why = f"refuses the key in {judge.api_key_variable} ({_message(error)}); export a valid one. {kept}"
    elif isinstance(error, openai.NotFoundError):
        why = f"knows no such model or address ({_message(error)}); mend judge.model or judge.base_url. {kept}"
    elif isinstance(error, openai.RateLimitError):
        why = (
            f"still limits the rate or the quota after {judge.max_retries} retries ({_message(error)}); lower "
            f"judge.concurrency, or raise judge.max_retries or the quota. {kept}"
        )
    elif isinstance(error, openai.APITimeoutError):
        why = f"no answer within judge.timeout={judge.timeout:g} s, {judge.max_retries + 1} times. {kept}"
    elif isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        why = f"cannot be reached, {judge.max_retries + 1} times ({cause}); does a server listen there? {kept}"
    else:
        why = f"fails ({_message(error)}). {kept}"
    raise UserError(f"{_where(judge)}: {why}") from error


def _message(error: Any) -> str:
    """The server's own words, in one line."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return " ".join(str(said or error.message).split())[:300]
