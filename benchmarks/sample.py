"""Compares sampling with vLLM and with transformers, on the same prompts and settings.

Needs vLLM (`make test-vllm` installs its CPU build in `.venv-vllm`). Each backend samples one batch in a new process,
like an actor of the generate stage. Loading and a first short call are not timed. The last line is JSON; see README.md
for figures.

    .venv-vllm/bin/python benchmarks/sample.py --model models/smollm2-135m-instruct [--rounds 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.data.prompts import load_prompts
from xlr.records import SampleRequest, SampleSettings
from xlr.settings.dataconfig import PromptsConfig
from xlr.settings.modelconfig import SHARED_PROMPT
from xlr.shipped import RECIPES

SHARED_PROMPTS = Path(__file__).parents[2] / "shared" / "data" / "ultrafeedback_parallel"
LANGUAGES = ["es", "ru"]
BACKENDS = ("transformers", "vllm")
MAX_PROMPT = 256


def main() -> None:
    """Run the backends in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=4, help="prompts per language")
    parser.add_argument("--samples", type=int, default=8, help="responses per prompt")
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--backend", choices=BACKENDS, help=argparse.SUPPRESS)  # internal: run one backend here
    arguments = parser.parse_args()
    if arguments.backend:
        return print(json.dumps(sample(arguments)))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in BACKENDS}
    for _ in range(arguments.rounds):
        for name in BACKENDS:
            command = [sys.executable, __file__, *sys.argv[1:], "--backend", name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
            print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)
    rates = {name: statistics.median(one["tokens"] / one["seconds"] for one in results[name]) for name in BACKENDS}
    print(f"{'':14} {'tokens/s':>9} {'responses':>10} {'tokens':>7} {'cut off':>8} {'load s':>7}")
    for name, (one, *_) in results.items():
        counts = f"{one['responses']:10} {one['tokens']:7} {one['cut_off']:8}"
        print(f"{name:14} {rates[name]:9.1f} {counts} {one['load_seconds']:7.1f}")
    print(json.dumps({"vllm_vs_transformers": round(rates["vllm"] / rates["transformers"], 3)}))


def sample(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sample with one backend in this process."""
    from xlr.model.vllmsampler import VllmSampler
    from xlr.model.worker import Worker

    encoder = ChatEncoder(load_tokenizer(arguments.model), arguments.model)
    source = SHARED_PROMPTS if SHARED_PROMPTS.is_dir() else RECIPES / "quickstart" / "prompts"
    prompts = load_prompts(PromptsConfig(path=str(source)), LANGUAGES)
    ids = {lang: [encoder.prompt(prompt.instruction) for prompt in prompts[lang]] for lang in LANGUAGES}
    short = [
        prompt for lang in LANGUAGES for prompt in [p for p in ids[lang] if len(p) <= MAX_PROMPT][: arguments.prompts]
    ]
    requests = [
        SampleRequest(prompt, len(short) * n + i) for i, prompt in enumerate(short) for n in range(arguments.samples)
    ]
    settings = SampleSettings(0.9, 1.0, 0, arguments.max_new_tokens, tuple(encoder.stop_ids([])))
    if arguments.backend == "vllm":
        sampler: Any = VllmSampler(arguments.threads, "float32", 1, 0.9, max_num_seqs=256)
    else:
        sampler = Worker(arguments.threads, "float32", SHARED_PROMPT)
    begun = time.monotonic()
    sampler.sample(arguments.model, requests[:1], replace(settings, max_new_tokens=2))
    loaded = time.monotonic()
    answers = sampler.sample(arguments.model, requests, settings)
    return {
        "seconds": time.monotonic() - loaded,
        "load_seconds": loaded - begun,
        "responses": len(answers),
        "tokens": sum(len(tokens) for tokens, _ in answers),
        "cut_off": sum(reason == "length" for _, reason in answers),
    }


if __name__ == "__main__":
    main()
