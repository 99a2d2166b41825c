"""Addresses of endpoints."""

from urllib.parse import urlsplit

from xlr.errors import UserError


def refuse_secrets(url: str | None, key: str) -> None:
    """Check that an endpoint's address is one, without credentials, which would be repeated in messages and files.

    Raises:
        UserError: it is not, without repeating it.
    """
    if url is None:
        return
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{key}: not an address; set it to http://HOST:PORT/v1 or https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"{key}: holds more than an address (a user, a password, or words after ? or #), which files and messages "
            "would repeat; remove it, and put the key into the environment variable that judge.api_key_variable names"
        )
