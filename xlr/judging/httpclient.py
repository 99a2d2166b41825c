"""An HTTP client that bounds what an endpoint can do: no redirects, and a limit on a reply's size and time."""

import time
from typing import Any

import httpx

_MOST_BYTES = 8 << 20  # of a reply


class TooLargeError(Exception):
    """A reply is larger than a verdict can be."""


class BoundedClient(httpx.Client):
    """A client whose replies are read whole, within a size and a time.

    Proxies come from the environment, as in any client of httpx.

    Args:
        seconds: time for a whole reply.
    """

    def __init__(self, seconds: float):
        # A compressed reply could grow without bound when it is unpacked.
        super().__init__(timeout=seconds, follow_redirects=False, headers={"Accept-Encoding": "identity"})
        self._seconds = seconds

    def send(self, request: httpx.Request, **settings: Any) -> httpx.Response:
        """Send a request and read the reply.

        Raises:
            httpx.TimeoutException: the reply is not there in time.
            TooLargeError: it is too large, or compressed.
        """
        until = time.monotonic() + self._seconds
        settings |= {"stream": True, "follow_redirects": False}
        response = super().send(request, **settings)
        body = bytearray()
        try:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise TooLargeError("a compressed reply, which was not asked for")
            for more in response.iter_raw():
                body += more
                if len(body) > _MOST_BYTES:
                    raise TooLargeError(f"a reply of more than {_MOST_BYTES >> 20} MiB")
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the reply does not end in time", request=request)
        finally:
            response.close()
        return httpx.Response(response.status_code, headers=response.headers, content=bytes(body), request=request)
