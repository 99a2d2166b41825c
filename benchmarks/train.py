"""Compares xlr's trainer (frozen and cached reference) with TRL's DPOTrainer: same model, pairs, order and ZeRO-3.

Needs `pip install "trl>=1.16,<2"`. Samples two responses per prompt with `xlr generate` (kept in the work folder),
makes pairs of sequences of up to 512 tokens, and trains a few steps in a new process for each contestant and round. The
first step of a process is a warm-up and is not timed. The last line is JSON; see README.md for figures.

    python benchmarks/train.py WORK --model models/smollm2-135m-instruct [--rounds 3] [--steps 3]
"""

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from xlr.chat.encoding import ChatEncoder, load_tokenizer
from xlr.model.products import compute_repeatably
from xlr.records import Response
from xlr.run.files import read_json, write_text
from xlr.run.manifests import rows_of
from xlr.shipped import RECIPES, shipped

SHARED_PROMPTS = Path(__file__).parents[2] / "shared" / "data" / "ultrafeedback_parallel"
GLOBAL_BATCH, MAX_LENGTH, MAX_PROMPT, RATE, SEED = 4, 512, 192, 1e-6, 42
LANGUAGES = ["en", "es", "de"]
CONTESTANTS = ("trl", "trl_recompute", "trl_products", "xlr_frozen", "xlr_cached")
TITLES = {
    "trl": "TRL, ref model",
    "trl_recompute": "TRL, ref model, gradient checkpointing",
    "trl_products": "TRL, ref model, with xlr's matrix products",
    "xlr_frozen": "xlr, reference_mode frozen",
    "xlr_cached": "xlr, reference_mode cached",
}


def main() -> None:
    """Run the contestants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for samples, runs and results")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--checkpointing", choices=("false", "selective", "true"), default="true", help="of xlr")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)  # internal: run TRL in this process
    arguments = parser.parse_args()
    if arguments.peer:
        return trl(arguments.work, arguments.model, arguments.steps, arguments.peer)
    pairs = make_pairs(arguments.work, arguments.model, arguments.steps * GLOBAL_BATCH)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.contestants}
    for number in range(arguments.rounds):
        for name in results:
            result = run(name, arguments.work, arguments.model, arguments.steps, number, arguments.checkpointing)
            results[name].append(result)
            print(f"round {number + 1} {name}: {json.dumps(result)}", file=sys.stderr, flush=True)
    report(results, pairs)


def make_pairs(work: Path, model: Path, count: int) -> list[dict[str, Any]]:
    """Make pairs of real prompts with two sampled responses each, in the order in which xlr trains on them."""
    work.mkdir(parents=True, exist_ok=True)
    encoder = ChatEncoder(load_tokenizer(model), str(model))
    instructions = _short_prompts(work / "prompts", encoder, count // len(LANGUAGES) + 2)
    tree = {
        "run_dir": str(work / "samples"),
        "languages": LANGUAGES,
        "model": {"initial": str(model), "aligned": str(model)},
        "prompts": {"path": str(work / "prompts")},
        "generate": {"num_samples": 2, "max_new_tokens": MAX_LENGTH - MAX_PROMPT, "batch_size": 16},
    }
    write_text(work / "samples.yaml", yaml.safe_dump(tree))
    xlr("generate", str(work / "samples.yaml"), "--iteration", "1")
    samples: dict[tuple[str, str], list[str]] = {}
    for row in rows_of(work / "samples" / "iter1" / "responses", Response):
        samples.setdefault((row.lang, row.id), []).append(row.response)
    pairs = []
    for key, responses in samples.items():
        prompt = encoder.prompt(instructions[key])
        longest = max(len(encoder.response(response)) for response in responses)
        if len(prompt) + longest <= MAX_LENGTH and all(responses) and responses[0] != responses[1]:
            pairs.append({"id": " ".join(key), "prompt": instructions[key], "responses": responses})
    random.Random(0).shuffle(pairs)
    if len(pairs) < count:
        sys.exit(f"only {len(pairs)} of {count} pairs fit {MAX_LENGTH} tokens; lower --steps")
    pairs = pairs[:count]
    rows = [
        {
            "id": pair["id"],
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["responses"][0]}],
            "rejected": [{"role": "assistant", "content": pair["responses"][1]}],
        }
        for pair in pairs
    ]
    write_text(work / "pairs.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    # The order of xlr's epoch 0. TRL gets the pairs in this order and does not shuffle.
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(SEED * 1000)).tolist()
    ordered = []
    for index in order:
        prompt, (chosen, rejected) = pairs[index]["prompt"], pairs[index]["responses"]
        text = encoder.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = [encoder.prompt(prompt), encoder.response(chosen), encoder.response(rejected)]
        ordered.append({"prompt": text, "chosen": chosen, "rejected": rejected, "ids": ids})
    write_text(work / "ordered.json", json.dumps(ordered))
    return ordered


def _short_prompts(folder: Path, encoder: ChatEncoder, count: int) -> dict[tuple[str, str], str]:
    """Write the first instructions of at most `MAX_PROMPT` tokens in every language. Returns `(lang, id)` -> text."""
    source = SHARED_PROMPTS if SHARED_PROMPTS.is_dir() else RECIPES / "quickstart" / "prompts"
    texts: dict[str, dict[str, str]] = {}
    for lang in LANGUAGES:
        rows = map(json.loads, (source / f"{lang}.jsonl").read_text(encoding="utf-8").splitlines())
        texts[lang] = {str(row.get("instruction_id", row.get("id"))): row["instruction"] for row in rows}
    short = [
        key
        for key in texts[LANGUAGES[0]]
        if all(len(encoder.prompt(texts[lang][key])) <= MAX_PROMPT for lang in LANGUAGES)
    ][:count]
    for lang in LANGUAGES:
        lines = [json.dumps({"id": key, "instruction": texts[lang][key]}, ensure_ascii=False) for key in short]
        write_text(folder / f"{lang}.jsonl", "\n".join(lines) + "\n")
    return {(lang, key): texts[lang][key] for lang in LANGUAGES for key in short}


def xlr(*arguments: str) -> None:
    """Run an xlr command in a new process."""
    subprocess.run([sys.executable, "-m", "xlr", *arguments], check=True, stdout=sys.stderr)


def run(name: str, work: Path, model: Path, steps: int, number: int, checkpointing: str) -> dict[str, Any]:
    """One contestant in processes of its own: `{"seconds": [...], "losses": [...], "peak_gb": ...}`."""
    if name.startswith("trl"):
        output = work / f"{name}-{number}.json"
        command = [
            sys.executable,
            __file__,
            str(work),
            "--model",
            str(model),
            "--steps",
            str(steps),
            "--peer",
            str(output),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return dict(read_json(output))
    folder = work / f"{name}-{number}-{time.time_ns()}"
    tree = {
        "run_dir": str(folder),
        "seed": SEED,
        "languages": ["en"],
        "model": {"initial": str(model)},
        "prompts": {"path": str(RECIPES / "quickstart" / "prompts")},
        "align": {
            "preferences": str(work / "pairs.jsonl"),
            "reference_mode": name.removeprefix("xlr_"),
            "nll_weight": 0.0,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "global_batch_size": GLOBAL_BATCH,
            "micro_batch_tokens": 1536,  # two pairs, as in TRL's batches
            "gradient_checkpointing": yaml.safe_load(checkpointing),
            "max_length": MAX_LENGTH,
            "max_steps": steps,
            "ds_config": "zero3_cpu",
            "reference_ds_config": "reference_cpu",
            "save_steps": 0,
        },
    }
    write_text(work / f"{name}.yaml", yaml.safe_dump(tree))
    cache_seconds = 0.0
    if name == "xlr_cached":
        begun = time.monotonic()
        xlr("reference", str(work / f"{name}.yaml"), "--iteration", "0")
        cache_seconds = time.monotonic() - begun
    xlr("align", str(work / f"{name}.yaml"))
    rows = [json.loads(line) for line in (folder / "iter0" / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": [row["num_tokens"] / row["perf/tokens_per_second"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "peak_gb": max(row["perf/peak_memory_gb"] for row in rows),
        "cache_seconds": cache_seconds,
    }


def trl(work: Path, model: Path, steps: int, output: Path) -> None:
    """Train with TRL's DPOTrainer in this process and write the result to `output`."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29533",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    import deepspeed

    if "products" in output.name:
        compute_repeatably()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as in xlr: it needs compilation at the start
    ds_config = read_json(shipped("ds_configs", "zero3_cpu.json"))
    ds_config |= {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    ds_config["optimizer"] = {
        "type": "AdamW",
        "params": {
            "lr": "auto",
            "betas": "auto",
            "eps": "auto",
            "weight_decay": "auto",
            "torch_adam": True,
            "fused": True,
        },
    }
    ordered = read_json(work / "ordered.json")
    arguments = DPOConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=GLOBAL_BATCH // 2,
        max_steps=steps,
        max_length=MAX_LENGTH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        beta=0.1,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing="recompute" in output.name,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        deepspeed=ds_config,
        seed=SEED,
        model_init_kwargs={"dtype": "float32"},
    )
    dataset = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ordered])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.monotonic())

    trainer = DPOTrainer(
        model=str(model),
        args=arguments,
        train_dataset=dataset,
        processing_class=load_tokenizer(model),
        callbacks=[Clock()],
    )
    tokenised: Any = trainer.train_dataset
    for row, ours in zip(tokenised, ordered, strict=True):
        assert [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] == ours["ids"], "the tokens differ"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "seconds": [after - before for before, after in itertools.pairwise(ends)],
        "losses": losses,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    write_text(output, json.dumps(result))


def report(results: dict[str, list[dict[str, Any]]], pairs: list[dict[str, Any]]) -> None:
    """Print the table, and the figures as one line of JSON."""
    per_step = [
        sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in (p["ids"] for p in step))
        for step in (pairs[i : i + GLOBAL_BATCH] for i in range(0, len(pairs), GLOBAL_BATCH))
    ]
    timed_tokens = sum(per_step[1:])
    timed_pairs = GLOBAL_BATCH * len(per_step[1:])
    print(f"{'':42} {'pairs/s':>8} {'tokens/s':>9} {'peak GB':>8}  losses")
    rates, peaks = {}, {}
    for name, rounds in results.items():
        rates[name] = statistics.median(timed_pairs / sum(one["seconds"][1:]) for one in rounds)
        peaks[name] = statistics.median(one["peak_gb"] for one in rounds)
        losses = " ".join(f"{loss:.5f}" for loss in rounds[0]["losses"])
        tokens = rates[name] / timed_pairs * timed_tokens
        print(f"{TITLES[name]:42} {rates[name]:8.4f} {tokens:9.1f} {peaks[name]:8.2f}  {losses}")
    peers = [name for name in ("trl", "trl_recompute") if name in results]  # TRL without xlr's matrix products
    if not peers or not {"xlr_frozen", "xlr_cached"} <= results.keys():
        return
    fastest, leanest = max(rates[name] for name in peers), min(peaks[name] for name in peers)
    gap = max(
        abs(ours - theirs)
        for name in ("xlr_frozen", "xlr_cached")
        for ours, theirs in zip(results[name][0]["losses"], results[peers[0]][0]["losses"], strict=True)
    )
    print(f"cache of the reference: {statistics.median(one['cache_seconds'] for one in results['xlr_cached']):.1f} s")
    figures = {
        "frozen_vs_trl": rates["xlr_frozen"] / fastest,
        "cached_vs_trl": rates["xlr_cached"] / fastest,
        "memory_vs_trl": max(peaks["xlr_frozen"], peaks["xlr_cached"]) / leanest,
        "first_loss_gap": gap,
    }
    print(json.dumps({name: round(value, 6) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
