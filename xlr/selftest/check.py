"""One check of a machine or a cluster: what was found and, if it failed, what to do."""

from dataclasses import dataclass

from xlr.terminal.console import console


@dataclass(frozen=True)
class Check:
    """The result of a check. It failed if `remedy` is not empty."""

    check: str
    found: str
    remedy: str = ""


def show(check: Check) -> None:
    """Print a check."""
    console.print(f"{'FAILED' if check.remedy else 'ok':8}{check.check}: {check.found}")
    if check.remedy:
        console.print(f"        -> {check.remedy}")
