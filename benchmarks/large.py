"""A model of Llama3-8B's shape exported and scored on a CPU, and a smaller one trained with ZeRO-3 in bfloat16.

    python benchmarks/large.py WORK [--parts make export score train] [--memory 18] [--limit 20]

Weights are random. Each part runs in processes of its own, whose memory is watched. `make` writes the 8B model (16 GB).
`export` opens it memory-mapped and writes it with the trainer's function, shard by shard (16 GB more), and reads it
back. `score` compares the two copies through a Ray worker that holds one model at a time. `train` takes Llama-3.2-1B's
shape, with as many layers as `xlr.maths.memory` lets into `--memory` GB: two steps with one and with two ranks, killed
once the checkpoint is complete, resumed to a third step, exported. The last line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import save_file

from xlr.cluster.ranks import RENDEZVOUS, Ranks
from xlr.cluster.raypool import Pool
from xlr.maths import memory
from xlr.maths.logprobs import CPU_CHUNK_TOKENS
from xlr.maths.memory import LLAMA3_8B, LLAMA32_1B, Shape, Zero
from xlr.model.weights import load_causal_lm
from xlr.packing.layout import default_attention
from xlr.records import Example, ScoreTask
from xlr.run.files import write_json, write_text
from xlr.settings.config import RayConfig
from xlr.settings.generateconfig import GenerateConfig
from xlr.settings.modelconfig import SHARED_PROMPT, ModelConfig
from xlr.shipped import RECIPES

SHARD_BYTES = 2_000_000_000
INDEX = "model.safetensors.index.json"
PARTS = ("make", "export", "score", "train")
STEPS, BATCH, TOKENS = 3, 16, 512
PROCESS = 600_000_000  # of a rank before it opens a model


def configuration(shape: Shape) -> Any:
    """The config.json of a shape; what the shape leaves open is as in Llama 3."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        dtype="bfloat16",
    )


def make_model(folder: Path, shape: Shape, tokenizer: Path) -> None:
    """Write random bfloat16 weights shard by shard, with another model's tokenizer. A model that exists is kept."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (folder / INDEX).exists():
        return
    config = configuration(shape)
    with torch.device("meta"):
        sizes = {name: one.shape for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shard_of: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def write() -> None:
        name = f"model-{len(set(shard_of.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        shard_of.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, size in sizes.items():
        if shard and sum(one.nbytes for one in shard.values()) + 2 * size.numel() > SHARD_BYTES:
            write()
        values = torch.empty(size, dtype=torch.bfloat16)
        shard[name] = values.fill_(1) if len(size) == 1 else values.normal_(std=0.02, generator=generator)
    write()
    total = sum(2 * size.numel() for size in sizes.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": shard_of})


@dataclass
class Watched:
    """The memory of a process and its descendants, in bytes: the highest sums of samples.

    A page that several processes share counts once. `own` leaves out pages of files, which the system can drop.
    """

    total: int = 0
    own: int = 0
    highest: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # process -> its own peak, files included

    def sample(self, root: int) -> None:
        """Take one sample."""
        total = own = 0
        for pid, pages in _pages(root):
            total += pages["Pss"]
            own += pages["Pss"] - pages["Pss_File"]
            self.highest[pid] = max(self.highest[pid], pages["Pss"])
        self.total, self.own = max(self.total, total), max(self.own, own)


def _pages(root: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Process id and proportional memory by kind, of a process and its descendants."""
    try:
        family = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue
        kinds = (line.split() for line in lines)
        yield process.pid, defaultdict(int, {kind.rstrip(":"): int(size) * 1024 for kind, size, _ in kinds})


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Watched]]:
    """Start a command and watch its memory until the block ends."""
    watched, ended = Watched(), threading.Event()
    with subprocess.Popen(command, stdout=sys.stderr) as process:

        def watch() -> None:
            while not ended.wait(0.5):
                watched.sample(process.pid)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield process, watched
        finally:
            process.kill()
            ended.set()
            thread.join()


def run(command: list[str]) -> Watched:
    """Run a command to its end, and return its memory.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.monotonic()
    with started(command) as (process, watched):
        if code := process.wait():
            raise RuntimeError(f"{command} ended with code {code}")
    one, seconds = max(watched.highest.values()), time.monotonic() - begun
    print(
        f"{Path(command[-1]).name}: {seconds:.0f} s; peak GB: all processes {watched.total / 1e9:.2f}, "
        f"without pages of files {watched.own / 1e9:.2f}, one process {one / 1e9:.2f}",
        flush=True,
    )
    return watched


def export_model(source: Path, target: Path) -> None:
    """Write a memory-mapped model as the trainer writes a trained one. There is no optimizer beside it."""
    from xlr.training.export import export
    from xlr.zero import engine

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {RENDEZVOUS: str(Path(folder) / "ranks"), "GLOO_SOCKET_IFNAME": "lo"}
        engine.init_distributed(Ranks(0, 1, 0))
        causal_lm = load_causal_lm(source, torch.bfloat16, default_attention(SHARED_PROMPT))
        export(SimpleNamespace(module=SimpleNamespace(causal_lm=causal_lm)), str(source), target, "random weights\n")
        engine.close_distributed()


def score_models(models: tuple[Path, Path]) -> None:
    """Score a few responses like `xlr score` with `ray.one_model_at_a_time`: all by one model, then by the other.

    Raises:
        RuntimeError: the models, which hold the same weights, give other log-probabilities.
    """
    draw = random.Random(0)
    ids = [tuple(draw.randrange(LLAMA3_8B.vocabulary) for _ in range(length)) for length in (60, 70, 40, 90, 50, 30)]
    examples = (Example(ids[0], (ids[1], ids[2])), Example(ids[3], (ids[4], ids[5])))
    settings = RayConfig(actors=1, one_model_at_a_time=True)
    pool = Pool(settings, ModelConfig(initial=str(models[0]), dtype="bfloat16"), GenerateConfig())
    logps = []
    try:
        for model in models:
            begun = time.monotonic()
            ((_, found),) = pool.map([(0, ScoreTask((str(model),), examples, "bfloat16"))])
            logps.append([logp for scored in found for (logp,) in scored.logps])
            (worker,) = pool.workers
            print(
                f"{model.name}: {time.monotonic() - begun:.0f} s, of which loading {worker.load_seconds:.0f} and "
                f"computing {worker.compute_seconds:.0f}; log-probabilities {logps[-1]}",
                flush=True,
            )
    finally:
        pool.close()
    if logps[0] != logps[1]:
        raise RuntimeError("the exported model gives other log-probabilities than the model")


def formula(shape: Shape, ranks: int) -> dict[str, int]:
    """The memory of a rank in `train`, by component: what is kept, and the larger of the two phases of a step."""
    return {"interpreter and libraries": PROCESS} | memory.peak(
        shape, ranks, TOKENS, True, True, CPU_CHUNK_TOKENS, Zero()
    )


def deepest(shape: Shape, budget: float, ranks: int) -> Shape:
    """The shape with as many layers as fit `budget` bytes, which the ranks share.

    Raises:
        ValueError: not even one layer fits.
    """
    for layers in range(shape.layers, 0, -1):
        fewer = replace(shape, layers=layers)
        if ranks * sum(formula(fewer, ranks).values()) <= budget:
            return fewer
    raise ValueError(f"one layer with {ranks} ranks does not fit {budget / 1e9:g} GB")


def train_model(work: Path, model: Path, ranks: int) -> tuple[Watched, Watched, list[dict[str, Any]]]:
    """Train, kill the training after its checkpoint of step 2, and run it to its end.

    Returns:
        Memory of the first and of the second process, and the rows of metrics.jsonl.
    """
    folder = work / f"train-{ranks}"
    shutil.rmtree(folder, ignore_errors=True)
    tree = {
        "run_dir": str(folder),
        "iterations": 1,
        "languages": ["en"],
        "model": {"initial": str(model), "dtype": "bfloat16"},
        "prompts": {"path": str(RECIPES / "quickstart" / "prompts")},
        "align": {
            "preferences": str(RECIPES / "quickstart" / "preferences.jsonl"),
            "max_steps": STEPS,
            "global_batch_size": BATCH,
            "micro_batch_tokens": TOKENS,
            "max_length": TOKENS,
            "gradient_checkpointing": True,
            "processes": ranks,
            "save_steps": STEPS - 1,
            "report_to": [],
        },
    }
    configuration = folder.with_suffix(".yaml")
    write_text(configuration, yaml.safe_dump(tree))
    command = [sys.executable, "-m", "xlr", "align", str(configuration)]
    with started(command) as (process, first):
        while not list(folder.glob(f"**/step-{STEPS - 1:08d}-ranks-{ranks}")):
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended with code {process.returncode} before its checkpoint")
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    second = run(command)
    rows = [json.loads(line) for line in (folder / "iter0" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    shutil.rmtree(folder)
    return first, second, rows


def report_training(shape: Shape, ranks: int, first: Watched, second: Watched, rows: list[dict[str, Any]]) -> float:
    """Print the measured memory beside the formula. Returns the peak of a rank up to the second step, in GB."""
    expected = formula(shape, ranks)
    peak = rows[STEPS - 2]["perf/peak_memory_gb"]
    total = sum(expected.values()) / 1e9
    print(f"\n{ranks} ranks, {shape.layers} layers, {shape.parameters / 1e9:.2f} billion parameters; GB a rank:")
    for name, size in expected.items():
        print(f"{name:45} {size / 1e9:6.2f}")
    print(f"{'formula':45} {total:6.2f}")
    print(f"{'measured, to the end of step 2':45} {peak:6.2f}  ({(peak - total) / total:+.0%})")
    print(f"{'resumed, to the end of step 3':45} {rows[-1]['perf/peak_memory_gb']:6.2f}")
    for name, watched in (("with the checkpoint written", first), ("resumed and exported", second)):
        print(f"{name + ', all processes':45} {watched.total / 1e9:6.2f}")
    print("losses", [round(row["loss"], 4) for row in rows], flush=True)
    return float(peak)


def train(work: Path, tokenizer: Path, budget: float) -> dict[str, float]:
    """Train with one and with two ranks, each as many layers as fit, and return the figures."""
    figures: dict[str, float] = {}
    for ranks in (1, 2):
        shape = deepest(LLAMA32_1B, budget, ranks)
        model = work / f"1b-{shape.layers}"
        make_model(model, shape, tokenizer)
        figures[f"train_peak_gb_{ranks}"] = report_training(shape, ranks, *train_model(work, model, ranks))
        figures[f"train_formula_gb_{ranks}"] = sum(formula(shape, ranks).values()) / 1e9
    return figures


def alone(part: str, work: Path, tokenizer: Path) -> None:
    """Run a part in this process."""
    model, exported = work / "8b", work / "8b-exported"
    if part == "make":
        make_model(model, LLAMA3_8B, tokenizer)
    elif part == "export":
        export_model(model, exported)
    else:
        score_models((model, exported))


def main() -> None:
    """Run the parts, and print the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the models; needs 40 GB")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tokenizer", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--memory", type=float, default=18, help="GB that the training may take, all ranks together")
    parser.add_argument("--limit", type=float, default=20, help="GB within which the 8B model must be scored")
    parser.add_argument("--alone", choices=PARTS[:3], help=argparse.SUPPRESS)  # internal: run a part in this process
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    if arguments.alone:
        return alone(arguments.alone, work, arguments.tokenizer)
    work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    for part in arguments.parts:
        if part == "train":
            figures |= train(work, arguments.tokenizer, arguments.memory * 1e9)
        else:
            watched = run([sys.executable, __file__, str(work), "--alone", part])
            figures[f"{part}_peak_gb"] = watched.total / 1e9
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
    if figures.get("score_peak_gb", 0) > arguments.limit:
        sys.exit(f"scoring took more than {arguments.limit:g} GB")


if __name__ == "__main__":
    main()
