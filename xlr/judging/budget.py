"""What judging costs: an estimate before questions are asked, and the limit `judge.budget`."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlr.errors import UserError
from xlr.judging.verdictcache import VerdictCache
from xlr.run.context import Context
from xlr.settings.config import JudgeConfig

KEPT = "Verdicts so far are kept"
_SAMPLE = 200  # questions whose tokens are counted for the estimate


def cost(judge: JudgeConfig, prompt_tokens: float, completion_tokens: float) -> float | None:
    """The price of tokens, in the currency of `judge.input_price`; None without prices."""
    if judge.input_price is None or judge.output_price is None:
        return None
    return (prompt_tokens * judge.input_price + completion_tokens * judge.output_price) / 1e6


def mean_tokens(context: Context, bodies: Sequence[Mapping[str, Any]]) -> float:
    """The mean number of tokens of a question, estimated from a sample with the run's own tokenizer."""
    sample = bodies[:: -(-len(bodies) // _SAMPLE)]
    texts = ["\n".join(turn["content"] for turn in body["messages"]) for body in sample]
    return statistics.fmean(map(len, context.encoder.tokenizer(texts)["input_ids"]))


@dataclass(frozen=True)
class Budget:
    """The spending limit `judge.budget` over all verdicts in the cache."""

    judge: JudgeConfig
    cache: VerdictCache
    mean_tokens: float

    def _price(self, questions: int) -> float | None:
        return cost(self.judge, questions * self.mean_tokens, questions * (self.judge.max_tokens or 0))

    def estimate(self, questions: int) -> str:
        """The tokens and the price of this many questions, in words."""
        price = self._price(questions)
        costs = "" if price is None else f", about {price:.4g} by judge.input_price and judge.output_price"
        return f"about {questions * self.mean_tokens:,.0f} tokens{costs}"

    def require(self, questions: int) -> None:
        """Check that this many more questions are within the budget.

        Raises:
            UserError: they would exceed it.
        """
        price, budget = self._price(questions), self.judge.budget
        if price is None or budget is None:
            return
        spent = cost(self.judge, self.cache.prompt_tokens, self.cache.completion_tokens) or 0.0
        if spent + price > budget:
            raise UserError(
                f"judge.budget {budget:g}: {spent:.4g} is spent, and {questions} more verdicts cost about {price:.4g}; "
                "raise it, or ask less (fewer prompts or samples, judge.both_orders, evaluate.turns.judge_max_tokens). "
                f"{KEPT}"
            )
