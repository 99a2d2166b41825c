"""Compares xlr's scoring with a plain implementation, on the same responses and the same two models.

The work is ten responses of 100-700 tokens to each of a few instructions in Spanish and Russian, sampled with
`xlr generate` and kept in the work folder. They are scored under the English instruction with the prefix. In each round
every contestant scores all of them, in a new process that loads its models first. The last line is JSON; see README.md
for definitions and figures.

    python benchmarks/score.py WORK --model models/smollm2-135m-instruct [--rounds 3] [--instructions 2]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM

from xlr import configfile
from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.cluster.environment import ALLOCATOR
from xlr.maths.logprobs import CPU_CHUNK_TOKENS
from xlr.model.products import compute_repeatably
from xlr.records import Conversation, Example, Response, ScoreTask, messages
from xlr.rewarding import scores
from xlr.rewarding.candidates import Candidate, score_candidates, scoring_conversation
from xlr.run.context import Context
from xlr.run.files import remove, write_text
from xlr.run.manifests import rows_of
from xlr.shipped import RECIPES
from xlr.work.dropped import Dropped

SHARED_PROMPTS = Path(__file__).parents[2] / "shared" / "data" / "ultrafeedback_parallel"
LANGUAGES = ["es", "ru" if SHARED_PROMPTS.is_dir() else "de"]  # the shipped prompts have no Russian
INSTRUCTION_TOKENS = 203  # takes English instructions of about this length, the mean of UltraFeedback
SAMPLES, SPARE, SHORTEST, LONGEST = 10, 6, 100, 700  # spare responses replace those that are too short
PLAIN_ROWS = 3
BATCH_TOKENS = 2560  # divides the default work into eight batches, so that two actors get four each
TITLES = {
    "torch_products": "matrix products alone, torch's",
    "products": "matrix products alone, xlr's",
    "plain": "plain: batches of three, all logits",
    "xlr": "xlr, one actor",
    "xlr_thread": "xlr, one actor of one thread",
    "xlr_two": "xlr, two actors of one thread each",
}
ACTORS: dict[str, dict[str, int]] = {
    "xlr": {"actors": 1},
    "xlr_thread": {"actors": 1, "cpus_per_actor": 1},
    "xlr_two": {"actors": 2, "cpus_per_actor": 1},
}


def main() -> None:
    """Sample responses that are missing, run the contestants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for samples and results")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--instructions", type=int, default=2, help="each in two languages, with ten responses each")
    parser.add_argument("--contestants", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--be", choices=TITLES, help=argparse.SUPPRESS)  # internal: run one contestant in this process
    arguments = parser.parse_args()
    if arguments.be:
        return compete(arguments.be, Work(arguments.work, arguments.model, arguments.be))
    sample(arguments.work, arguments.model, arguments.instructions)
    contestants = {name: Contestant(name, arguments.work, arguments.model) for name in arguments.contestants}
    for number in range(arguments.rounds):
        for name, contestant in contestants.items():
            print(f"round {number + 1} {name}: {contestant.round():.1f} s", file=sys.stderr, flush=True)
    report(Work(arguments.work, arguments.model, "report"), contestants)


def sample(work: Path, model: Path, instructions: int) -> None:
    """Sample the responses. Policy and reference are the same model: links give it a second path."""
    (work / "policy").mkdir(parents=True, exist_ok=True)
    for file in model.resolve().iterdir():
        (work / "policy" / file.name).unlink(missing_ok=True)
        (work / "policy" / file.name).symlink_to(file)
    encoder = ChatEncoder(load_tokenizer(model), str(model))
    source = SHARED_PROMPTS if SHARED_PROMPTS.is_dir() else RECIPES / "quickstart" / "prompts"
    texts: dict[str, dict[str, str]] = {}
    for lang in ("en", *LANGUAGES):
        rows = map(json.loads, (source / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines())
        texts[lang] = {row["instruction_id"]: row["instruction"] for row in rows}
    off = {key: abs(len(encoder.prompt(text)) - INSTRUCTION_TOKENS) for key, text in texts["en"].items()}
    chosen = sorted(off, key=lambda key: off[key])[:instructions]
    for lang, of_lang in texts.items():
        lines = [json.dumps({"id": key, "instruction": of_lang[key]}, ensure_ascii=False) for key in chosen]
        write_text(work / "prompts" / f"{lang}.jsonl", "\n".join(lines) + "\n")
    write_text(work / "samples.yaml", yaml.safe_dump(tree(work, model)))
    command = [sys.executable, "-m", "xlr", "generate", str(work / "samples.yaml"), "--iteration", "1"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def tree(work: Path, model: Path) -> dict[str, Any]:
    """The configuration of the run."""
    return {
        "run_dir": str(work / "samples"),
        "languages": LANGUAGES,
        "model": {"initial": str(model), "aligned": str(work / "policy")},
        "prompts": {"path": str(work / "prompts")},
        "score": {"batch_tokens": BATCH_TOKENS},
        "generate": {"num_samples": SAMPLES + SPARE, "max_new_tokens": LONGEST - 1, "batch_size": 64},
    }


@dataclass(frozen=True)
class Work:
    """The responses, their scoring instructions, and the run of one contestant."""

    folder: Path
    model: Path
    name: str

    @cached_property
    def context(self) -> Context:
        """The run, with the contestant's number of actors."""
        settings = tree(self.folder, self.model) | {"ray": ACTORS.get(self.name, {})}
        write_text(self.folder / f"{self.name}.yaml", yaml.safe_dump(settings))
        return Context(configfile.load(self.folder / f"{self.name}.yaml"))

    @cached_property
    def rows(self) -> list[Response]:
        """The first ten responses of every prompt that are long enough, in the order of the files.

        This small model hardly ever ends an answer in Russian. Answers that reached the token limit are cut at a random
        length, so that lengths vary as with a model that ends its answers.
        """
        encoder, found = self.context.encoder, defaultdict[tuple[str, str], list[Response]](list)
        for row in rows_of(self.folder / "samples" / "iter1" / "responses", Response):
            if row.finish_reason == "length":
                kept = row.token_ids[: random.Random(f"{row.lang} {row.id} {row.sample}").randrange(SHORTEST, LONGEST)]
                row = replace(row, response=encoder.decode(kept), token_ids=kept)
            if SHORTEST <= len(encoder.response(row.response)) <= LONGEST:
                found[row.lang, row.id].append(row)
        if any(len(rows) < SAMPLES for rows in found.values()):
            sys.exit(f"a prompt has fewer than {SAMPLES} responses of {SHORTEST} tokens: change --instructions")
        return [row for rows in found.values() for row in rows[:SAMPLES]]

    @cached_property
    def conversations(self) -> list[Conversation]:
        """The English instruction with the prefix, for every row."""
        prompts = self.context.prompts
        english = {prompt.id: prompt for prompt in prompts["en"]}
        of_lang = {(prompt.lang, prompt.id): prompt for lang in LANGUAGES for prompt in prompts[lang]}
        name = self.context.config.language_name
        return [
            scoring_conversation("crosslingual", of_lang[row.lang, row.id], english[row.id], name(row.lang))
            for row in self.rows
        ]

    @cached_property
    def examples(self) -> list[Example]:
        """Every prompt once, with its responses."""
        encoder = self.context.encoder
        responses: dict[Conversation, list[tuple[int, ...]]] = defaultdict(list)
        for row, asked in zip(self.rows, self.conversations, strict=True):
            responses[asked].append(encoder.response(row.response))
        return [Example(encoder.prompt_of(messages(asked)), tuple(each)) for asked, each in responses.items()]


class Contestant:
    """One way of scoring, run in a new process each round."""

    def __init__(self, name: str, work: Path, model: Path):
        self._command = [sys.executable, __file__, str(work), "--model", str(model), "--be", name]
        self.rounds: list[dict[str, Any]] = []

    def round(self) -> float:
        """Score everything once and return the seconds it took.

        The process ends after the round, because an idle Ray would take 2 % of a core from the other contestants.
        """
        # By default Ray runs its workers at niceness 15, a disadvantage on a busy machine.
        environment = {**ALLOCATOR, "RAY_worker_niceness": "0", **os.environ}
        answer = subprocess.run(self._command, stdout=subprocess.PIPE, check=True, env=environment).stdout
        self.rounds.append(json.loads(answer))
        return float(self.rounds[-1]["seconds"])

    def median(self, key: str) -> float:
        """The median of a figure over all rounds."""
        return statistics.median(one[key] for one in self.rounds)


def compete(name: str, work: Work) -> None:
    """Load the models, score, and print time and memory as a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # progress output goes to standard error, so that standard output holds only the JSON
    begun = time.monotonic()
    score = {"plain": plain, "products": products, "torch_products": torch_products}.get(name, pool)(work)
    loaded = time.monotonic()
    result = score()
    seconds = {"load_seconds": loaded - begun, "seconds": time.monotonic() - loaded}
    print(json.dumps(seconds | {"result": result, "peak_gb": peak_gb()}), file=answers, flush=True)
    work.context.close()


def plain(work: Work) -> Callable[[], list[list[float]]]:
    """Score like the method's public code: the whole prompt for every response, batches of three in file order,
    right-padded with an attention mask, and a log-softmax over all logits. Unlike there, labels are shifted correctly,
    so that the values can be compared."""
    encoder = work.context.encoder
    names = (work.context.model(0), work.context.model(-1))
    models = [AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval() for name in names]

    @torch.inference_mode()
    def score() -> list[list[float]]:
        found: list[list[float]] = []
        for start in range(0, len(work.rows), PLAIN_ROWS):
            batch = slice(start, start + PLAIN_ROWS)
            prompts = [encoder.prompt_of(messages(asked)) for asked in work.conversations[batch]]
            responses = [encoder.response(row.response) for row in work.rows[batch]]
            width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
            input_ids_RT = torch.full((len(prompts), width), encoder.terminator_id)
            attention_mask_RT = torch.zeros_like(input_ids_RT)
            response_mask_RT = torch.zeros(len(prompts), width)
            for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
                length = len(prompt) + len(response)
                input_ids_RT[row, :length] = torch.tensor([*prompt, *response])
                attention_mask_RT[row, :length] = 1
                response_mask_RT[row, len(prompt) : length] = 1
            each = [_plain_logps(model, input_ids_RT, attention_mask_RT, response_mask_RT) for model in models]
            found += torch.stack(each, 1).tolist()
        return found

    return score


def _plain_logps(model: Any, input_ids_RT: Tensor, attention_mask_RT: Tensor, response_mask_RT: Tensor) -> Tensor:
    logits_RTV = model(input_ids=input_ids_RT, attention_mask=attention_mask_RT).logits
    logps_RTV = logits_RTV[:, :-1].log_softmax(-1)
    logps_RT = logps_RTV.gather(-1, input_ids_RT[:, 1:, None]).squeeze(-1)
    return (logps_RT * response_mask_RT[:, 1:]).sum(-1)


def pool(work: Work) -> Callable[[], list[list[float]]]:
    """Score like `xlr score`, with workers that have started: from the responses in memory to the scores in memory."""
    context = work.context
    target = replace(scores.artifact(context, 1), folder=work.folder / work.name / "scores")
    models = (context.model(0), context.model(-1))
    texts = [row.response for row in work.rows]
    candidates = list(map(Candidate, work.rows, texts, work.conversations, texts))
    dtype, langs = context.config.scoring_dtype, tuple(LANGUAGES)
    first = {
        number: ScoreTask(
            models, (Example(one.prompt, one.responses[:1]),), dtype, (((row.lang, row.response),),), langs
        )
        for number, (one, row) in enumerate(zip(work.examples, work.rows, strict=False))
    }
    for _ in context.pool.map(first.items()):
        pass  # so that every worker has loaded its models and its detector of languages

    def score() -> list[list[float]]:
        remove(target.pieces_folder("parts"))
        found = score_candidates(context, target, *models, candidates, work.name, Dropped())
        return [list(row.logps) for row in found]

    return score


def products(work: Work) -> Callable[[], float]:
    """Like `torch_products`, with the matrix products that xlr's workers use."""
    compute_repeatably()
    return torch_products(work)


def torch_products(work: Work) -> Callable[[], float]:
    """Only the matrix products of one batch, layer by layer with the model's weights. Returns operations/s of the
    fastest of three passes, the one least disturbed by other work on the machine."""
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    layers = [module.weight for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]
    head = model.get_output_embeddings().weight
    inputs = {width: torch.randn(BATCH_TOKENS, width) for width in {weight.shape[1] for weight in (*layers, head)}}
    operations = sum(2 * BATCH_TOKENS * weight.numel() for weight in (*layers, head))

    @torch.inference_mode()
    def multiply() -> float:
        begun = time.monotonic()
        for weight in layers:
            linear(inputs[weight.shape[1]], weight)
        for chunk in inputs[head.shape[1]].split(CPU_CHUNK_TOKENS):
            linear(chunk, head)
        return operations / (time.monotonic() - begun)

    multiply()
    return lambda: max(multiply() for _ in range(3))


def peak_gb() -> dict[str, float]:
    """Peak memory in 10^9 bytes of the computing processes, and of all processes including the driver and Ray's."""
    own = psutil.Process()
    children = own.children(recursive=True)
    workers = [child for child in children if child.name().startswith("ray::RemoteWorker")]
    return {
        "computing": sum(map(_peak_gb, workers or [own])),
        "all": sum(map(_peak_gb, [own, *children])),
    }


def _peak_gb(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def useful_flop(work: Work) -> int:
    """Floating-point operations that scoring with two models needs at least, computing every prompt and every response
    token once: products with the layers' weights, attention's two products with every key that a token attends to, and
    the head for predicted response tokens. A multiplication and an addition count as two operations."""
    settings = AutoConfig.from_pretrained(work.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    layers = sum(module.weight.numel() for module in model.get_decoder().modules() if isinstance(module, nn.Linear))
    head = model.get_output_embeddings().weight.numel()
    key = settings.num_hidden_layers * settings.num_attention_heads * settings.head_dim  # multiplications per key
    total = 0
    for example in work.examples:
        prompt, own = len(example.prompt), [len(response) - 1 for response in example.responses]  # no terminators
        seen = prompt * (prompt + 1) // 2 + sum(prompt * tokens + tokens * (tokens + 1) // 2 for tokens in own)
        total += 2 * layers * example.num_tokens + 4 * key * seen + 2 * head * (1 + sum(own))
    return 2 * total


def report(work: Work, contestants: dict[str, Contestant]) -> None:
    """Print the table, and the figures as one line of JSON."""
    tokens = sum(len(response) for example in work.examples for response in example.responses)
    flop = useful_flop(work)
    seconds = {name: contestant.median("seconds") for name, contestant in contestants.items()}
    rates = {name: flop / seconds[name] / 1e9 for name in contestants}
    alone = [name for name in contestants if name.endswith("products")]
    for name in alone:
        rates[name] = contestants[name].median("result") / 1e9
    print(f"{len(work.rows)} responses, {tokens} tokens; useful work of two models: {flop / 1e12:.2f} TFLOP")
    print(f"{'':36} {'rows/s':>7} {'tokens/s':>9} {'GFLOP/s':>8} {'peak GB':>8} {'with Ray':>9} {'load s':>7}")
    for name, contestant in contestants.items():
        done = "" if name in alone else f"{len(work.rows) / seconds[name]:.3f}"
        speed = "" if name in alone else f"{tokens / seconds[name]:.1f}"
        peak = contestant.rounds[-1]["peak_gb"]
        print(
            f"{TITLES[name]:36} {done:>7} {speed:>9} {rates[name]:8.1f} {peak['computing']:8.2f} "
            f"{peak['all']:9.2f} {contestant.median('load_seconds'):7.1f}"
        )
    if contestants.keys() != TITLES.keys():
        return
    plain_logps = torch.tensor(contestants["plain"].rounds[0]["result"])
    gap = max(
        (torch.tensor(contestants[name].rounds[0]["result"]) / plain_logps - 1).abs().max().item() for name in ACTORS
    )
    if gap > 1e-4:
        sys.exit(f"the contestants' log-probabilities differ by {gap:.2g}")
    print(f"largest relative difference of a log-probability from plain scoring: {gap:.1g}")
    figures = {
        "vs_plain": seconds["plain"] / seconds["xlr"],
        "matmul_share": rates["xlr"] / rates["products"],
        "torch_matmul_share": rates["xlr"] / rates["torch_products"],
        "two_actors": seconds["xlr_thread"] / seconds["xlr_two"],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
