"""What the precision of scoring changes: noise of log-probabilities and rewards, and how many choices it turns around.

    python benchmarks/precision.py --policy RUN/iter0/model --reference models/smollm2-135m-instruct

Samples responses from the policy to real instructions, then scores the same responses in float32 and in several ways in
bfloat16. On a CPU a bfloat16 product is rounded to bfloat16; "float32 logits" is what xlr computes on GPUs.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlr import languages
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.data.prompts import load_prompts
from xlr.maths import logprobs
from xlr.maths.lengthcontrol import choose_pairs
from xlr.maths.rewards import crosslingual_instruction
from xlr.model.worker import Worker
from xlr.records import Example, SampleRequest, SampleSettings
from xlr.settings.dataconfig import PromptsConfig
from xlr.settings.modelconfig import SHARED_PROMPT
from xlr.shipped import RECIPES

_ROWS = 100  # that are sampled at once
NEAR_TIE_SDS = 3  # differences of rewards below this many standard deviations count as near ties


@dataclass(frozen=True)
class Sampled:
    """The responses to one prompt, as an example, with their lengths in characters."""

    example: Example
    characters: list[int]


def sample(policy: str, prompts: str, langs: Sequence[str], arguments: argparse.Namespace) -> list[Sampled]:
    """Sample responses under each instruction; they are scored under the English instruction with the prefix."""
    encoder = ChatEncoder(load_tokenizer(policy), policy)
    rows = load_prompts(PromptsConfig(path=prompts, limit=arguments.prompts), ["en", *langs])
    english = {row.id: row.instruction for row in rows["en"]}
    stops = tuple(encoder.stop_ids(()))
    settings = SampleSettings(0.9, 1.0, 0, arguments.tokens, stops)
    worker, found = Worker(None, "float32", SHARED_PROMPT), []
    asked = [row for lang in langs for row in rows[lang] if len(row.instruction) < arguments.characters]
    requests = [
        SampleRequest(encoder.prompt(row.instruction), seed) for row in asked for seed in range(arguments.samples)
    ]
    answers: list[Any] = []
    for start in range(0, len(requests), _ROWS):
        answers += worker.sample(policy, requests[start : start + _ROWS], settings)
    for number, row in enumerate(asked):
        own = answers[number * arguments.samples : (number + 1) * arguments.samples]
        texts = [text for text in (encoder.decode(tokens) for tokens, _ in own) if text.strip()]
        prompt = encoder.prompt(crosslingual_instruction(english[row.id], row.lang, languages.name(row.lang)))
        found.append(Sampled(Example(prompt, tuple(map(encoder.response, texts))), list(map(len, texts))))
    return found


@contextmanager
def float32_logits() -> Iterator[None]:
    """Logits of bfloat16 states as float32 sums, as GPUs return them."""
    own = logprobs._logits
    logprobs._logits = lambda hidden_CD, weight_VD: hidden_CD.float() @ weight_VD.float().T
    yield
    logprobs._logits = own


def float32_residuals(causal_lm: Any) -> None:
    """Add up the outputs of the layers in float32; attention and MLP still compute in bfloat16."""

    def low(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(low, value))
        return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value

    def lower(_: Any, positional: Any, named: dict[str, Any]) -> Any:
        return low(positional), {name: low(value) for name, value in named.items()}

    def raise_output(_: Any, __: Any, output: Any) -> Any:
        return (output[0].float(), *output[1:]) if isinstance(output, tuple) else output.float()

    decoder = causal_lm.get_decoder()
    decoder.embed_tokens.register_forward_hook(raise_output)
    for layer in decoder.layers:
        for part in (layer.self_attn, layer.mlp):
            part.register_forward_pre_hook(lower, with_kwargs=True)
            part.register_forward_hook(raise_output)
    decoder.norm.register_forward_hook(lambda _, __, output: output.bfloat16())


Logps = list[list[tuple[float, ...]]]


def score(models: Sequence[str], sampled: Sequence[Sampled], dtype: Any, change: Callable[[Any], None] | None) -> Logps:
    """The log-probabilities of each response under policy and reference."""
    worker = Worker(None, dtype, SHARED_PROMPT)
    if change:
        for model in models:
            causal_lm = worker._model(model, SHARED_PROMPT)
            change(causal_lm)
            worker._probed.add((model, causal_lm.dtype))  # the check before scoring copies the model to float32
    return [worker.score(models, [one.example])[0] for one in sampled]


def choices(logps: Logps, sampled: Sequence[Sampled]) -> list[tuple[int, int]]:
    """The chosen and the rejected response of each prompt, with length control."""
    rewards = [[policy - reference for policy, reference in prompt] for prompt in logps]
    choice = choose_pairs(rewards, [one.characters for one in sampled])
    return list(zip(choice.chosen_PK[:, 0].tolist(), choice.rejected_PK[:, 0].tolist(), strict=True))


def changed(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Share of prompts whose chosen or rejected response differs."""
    return sum(one != other for one, other in zip(found, expected, strict=True)) / len(expected)


def deviations(found: Logps, exact: Logps) -> tuple[list[float], list[float]]:
    """Differences of log-probabilities and of rewards, in nats."""
    pairs = [
        (one, other) for own, right in zip(found, exact, strict=True) for one, other in zip(own, right, strict=True)
    ]
    logps = [a - b for one, other in pairs for a, b in zip(one, other, strict=True)]
    return logps, [(one[0] - one[1]) - (other[0] - other[1]) for one, other in pairs]


def sd(values: Sequence[float]) -> float:
    """Standard deviation."""
    return float(torch.tensor(values, dtype=torch.float64).std())


def rescored(found: Logps, exact: Logps, sampled: Sequence[Sampled], noise: float) -> tuple[Logps, float]:
    """Rewards in which prompts with a near tie for best or worst are scored in float32, and their share."""
    mixed, near = [], 0
    for own, right in zip(found, exact, strict=True):
        rewards = sorted(policy - reference for policy, reference in own)
        gaps = [rewards[1] - rewards[0], rewards[-1] - rewards[-2]] if len(rewards) > 1 else [math.inf]
        tie = min(gaps) < NEAR_TIE_SDS * noise
        near += tie
        mixed.append(right if tie else own)
    return mixed, near / len(sampled)


def main() -> None:
    """Print a table of ways to score, and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reference", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default=str(RECIPES / "quickstart" / "prompts"))
    parser.add_argument("--languages", default="es,de")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--characters", type=int, default=400)
    arguments = parser.parse_args()
    models = (str(Path(arguments.policy).absolute()), str(Path(arguments.reference).absolute()))
    sampled = sample(models[0], arguments.data, arguments.languages.split(","), arguments)
    sampled = [one for one in sampled if len(one.characters) > 1]
    tokens = [len(response) for one in sampled for response in one.example.responses]
    print(
        f"{len(sampled)} prompts, {len(tokens)} responses of {sum(tokens) / len(tokens):.0f} tokens on average",
        flush=True,
    )
    begun = time.perf_counter()
    exact = score(models, sampled, "float32", None)
    seconds = time.perf_counter() - begun
    expected = choices(exact, sampled)
    spread = sd([p - r - sum(a - b for a, b in own) / len(own) for own in exact for p, r in own])
    print(f"rewards of one prompt's responses have a standard deviation of {spread:.3g} nats")
    print(f"{'':34}logp sd  logp sd a root token  reward sd  choices changed  speed")
    print(f"{'float32':34}{0:7.3f}  {0:20.4f}  {0:9.3f}  {0:15.3f}  {1:5.2f}")
    results: dict[str, dict[str, float]] = {}

    def report(name: str, found: Logps, speed: float) -> None:
        logps, rewards = deviations(found, exact)
        by_root = [
            difference / math.sqrt(count)
            for count, pair in zip(tokens, zip(logps[::2], logps[1::2], strict=True), strict=True)
            for difference in pair
        ]
        own = {
            "logp_sd": sd(logps),
            "logp_sd_root_token": math.sqrt(sum(value**2 for value in by_root) / len(by_root)),
            "reward_sd": sd(rewards),
            "choices_changed": changed(choices(found, sampled), expected),
        }
        results[name] = own
        print(
            f"{name:34}{own['logp_sd']:7.3f}  {own['logp_sd_root_token']:20.4f}  {own['reward_sd']:9.3f}  "
            f"{own['choices_changed']:15.3f}  {speed:5.2f}",
            flush=True,
        )

    begun = time.perf_counter()
    low = score(models, sampled, "bfloat16", None)
    report("bfloat16", low, seconds / (time.perf_counter() - begun))
    with float32_logits():
        begun = time.perf_counter()
        head = score(models, sampled, "bfloat16", None)
        report("bfloat16, float32 logits", head, seconds / (time.perf_counter() - begun))
        begun = time.perf_counter()
        both = score(models, sampled, "bfloat16", float32_residuals)
        report("... and float32 residuals", both, seconds / (time.perf_counter() - begun))
    for name, found in (("bfloat16, float32 logits", head), ("... and float32 residuals", both)):
        noise = results[name]["reward_sd"]
        mixed, share = rescored(found, exact, sampled, noise)
        report(f"{name}, {share:.0%} rescored", mixed, float("nan"))
    print(json.dumps({key: round(value, 4) for key, value in results["bfloat16, float32 logits"].items()}))


if __name__ == "__main__":
    main()
