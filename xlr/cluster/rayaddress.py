"""The address of a Ray cluster in RAY_ADDRESS."""

import os
import re
import socket

from xlr.errors import UserError

_SECONDS = 10
# NAME:PORT or [IPv6]:PORT, with ray:// before it for Ray's client.
_ADDRESS = re.compile(r"(ray://)?(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9][A-Za-z0-9._-]{0,252})):([0-9]{1,5})")
# What an HTTP/2 client says first, which gRPC is built on. A server answers with a frame of settings.
_SETTINGS = b"\x04"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)


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
    """Check that a gRPC server listens at a cluster's address: Ray itself may wait for most of ten minutes.

    Raises:
        OSError: none does.
        ValueError: the name cannot be one of a host.
    """
    match = _ADDRESS.fullmatch(address or "")
    if match is None:  # a local instance, or auto
        return
    with socket.create_connection((match[2] or match[3], int(match[4])), timeout=_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return  # the server speaks first in another way
        connection.sendall(_GREETING)
        if connection.recv(4)[3:] != _SETTINGS:
            raise ConnectionError("another program listens there")
