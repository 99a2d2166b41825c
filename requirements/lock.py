#!/usr/bin/env python3
"""Write the exact versions and SHA-256 digests of everything that pip installs here for some requirements.

    requirements/lock.py REQUIREMENT...

The folder beside this file is named after the platform and the Python release, such as `linux-x86_64-py311`. It gets
two files: `wheels.txt`, which pip unpacks without running any of their code, and `sources.txt`, the packages that have
no wheel and are built with the tools in `wheels.txt`. No address of a package index is written.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main(requirements: list[str]) -> None:
    """Resolve the requirements with pip, without installing them, and write the files."""
    folder = (
        HERE / f"{platform.system()}-{platform.machine()}-py{sys.version_info.major}{sys.version_info.minor}".lower()
    )
    folder.mkdir(exist_ok=True)
    found = [package for package in resolve(requirements) if "archive_info" in package["download_info"]]
    for name, is_wheel in (("wheels.txt", True), ("sources.txt", False)):
        lines = sorted(line(package) for package in found if from_wheel(package) is is_wheel)
        (folder / name).write_text("\n".join(["# Written by `make lock`.", *lines, ""]), encoding="utf-8")
        print(f"{folder.name}/{name}: {len(lines)} packages")


def resolve(requirements: list[str]) -> list[dict[str, Any]]:
    """The packages that pip would install into an empty environment, as its installation report describes them."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    dry_run = ["install", "--dry-run", "--ignore-installed", "--report", "-", *requirements]
    report = subprocess.run([*pip, *dry_run], check=True, stdout=subprocess.PIPE, text=True).stdout
    return list(json.loads(report)["install"])


def line(package: dict[str, Any]) -> str:
    """The package's line of a requirements file."""
    about, digest = package["metadata"], package["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{about['name'].lower().replace('_', '-')}=={about['version']} --hash=sha256:{digest}"


def from_wheel(package: dict[str, Any]) -> bool:
    """Whether pip found a wheel of the package."""
    return str(package["download_info"]["url"]).endswith(".whl")


if __name__ == "__main__":
    main(sys.argv[1:])
