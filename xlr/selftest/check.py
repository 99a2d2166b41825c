"""One check of a machine or a cluster: what was found and, if it failed, what to do."""

from collections.abc import Iterable
from dataclasses import dataclass

from xlr.errors import UserError
from xlr.terminal.console import console


@dataclass(frozen=True)
class Check:
    """The result of a check. It failed if `remedy` is not empty."""

    check: str
    found: str
    remedy: str = ""


def show_all(checks: Iterable[Check]) -> None:
    """Print each check as it is made.

    Raises:
        UserError: some failed.
    """
    failed = 0
    for check in checks:
        console.print(f"{'FAILED' if check.remedy else 'ok':8}{check.check}: {check.found}")
        if check.remedy:
            console.print(f"        -> {check.remedy}")
            failed += 1
    if failed:
        raise UserError(f"{failed} checks failed; see their remedies above")
