"""The address of a Ray cluster in RAY_ADDRESS."""

import os
import re
import socket

from xlr.errors import UserError

_SECONDS = 10
# NAME:PORT or [IPv6]:PORT, with ray:// before it for Ray's client.
_ADDRESS = re.compile(r"(ray://)?(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9][A-Za-z0-9._-]{0,252})):([0-9]{1,5})")


def cluster() -> str | None:
    """The cluster to join: an address or `auto`; None to start Ray on this machine.

    Raises:
        UserError: RAY_ADDRESS holds something else.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if given in ("", "local"):
        return None
    match = _ADDRESS.fullmatch(given)
    if given == "auto" or (match and 0 < int(match[4]) < 1 << 16):
        return given
    raise UserError(
        f"RAY_ADDRESS={given[:100]!r}: not an address; set it to HOST:PORT of a Ray cluster's head, or unset it to use "
        "this machine"
    )


def require_listener(address: str | None) -> None:
    """Check that something listens at a cluster's address: Ray itself may wait for most of ten minutes.

    Raises:
        OSError: nothing does.
        ValueError: the name cannot be one of a host.
    """
    match = _ADDRESS.fullmatch(address or "")
    if match:  # else a local instance, or auto
        socket.create_connection((match[2] or match[3], int(match[4])), timeout=_SECONDS).close()
