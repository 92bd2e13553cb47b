"""Tells a server of the web what a refresh found, signed so that it knows who tells it.

    >>> headers = signed_headers("msg_1", b"{}", b"x" * 24, 1614265330)
    >>> headers["webhook-signature"][:3], headers["webhook-timestamp"]
    ('v1,', '1614265330')

The headers are those of Standard Webhooks (https://www.standardwebhooks.com), for which many
languages have a library that checks them: the id of the message, which stays the same if it is sent
again, or found again that hour, the time in seconds, and an HMAC-SHA256 of both and of the body.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from time import time as now
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from pipeline import storage
from pipeline.catalogue import software
from pipeline.errors import DeliveryError, UsageError, VdnaError

SECRET_PREFIX = "whsec_"
"""What may stand before a secret, and is no part of it."""

LEAST_SECRET = 24
"""How many bytes a secret must have at least."""

EVENT = "vdna.refresh"
"""What the body says that happened."""


def _web_url(url: str) -> str:
    try:
        return storage.require_web(url)
    except UsageError as error:
        raise PydanticCustomError("url", "{problem}", {"problem": str(error)}) from error


class Webhook(BaseModel):
    """A server that is told what each refresh found.

    Attributes:
        url: Where to.
        secret_env: The name of the environment variable that holds the secret.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[str, AfterValidator(_web_url)]
    secret_env: str

    def secret(self) -> bytes:
        """Reads the secret, which is kept nowhere.

        Returns:
            The key of the signature.

        Raises:
            UsageError: The variable does not hold one. The message quotes neither, as someone may
                have written the secret in place of the name.
        """
        text = os.environ.get(self.secret_env, "").removeprefix(SECRET_PREFIX)
        try:
            key = b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) < LEAST_SECRET:
            raise UsageError(
                f"the environment variable that webhook.secret_env names must hold {LEAST_SECRET} "
                "bytes or more in base64, as `openssl rand -base64 32` prints. "
                "Write the name of the variable in the file, and never the secret"
            )
        return key


def signed_headers(message: str, body: bytes, secret: bytes, seconds: int) -> dict[str, str]:
    """Signs a message.

    Args:
        message: The id of the message.
        body: What is sent.
        secret: The key.
        seconds: The time, in seconds since 1970.

    Returns:
        The headers that a receiver checks.
    """
    signed = b".".join((message.encode(), str(seconds).encode(), body))
    signature = b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{signature}",
    }


def message_id(outcome: Mapping[str, Any], now: datetime) -> str:
    """Returns the id of the message on an outcome: the same one for what is found again that hour.

    A refresh that is tried again is told again, and its receiver knows by the id that it is. What
    differs between two tries, such as what they cost, is not in it.

    Args:
        outcome: What was found.
        now: The time.

    Returns:
        The id.
    """
    found: list[Any] = [outcome.get(name) for name in ("catalogue", "config", "commit", "failed")]
    found += [outcome.get("other_error"), outcome.get("summary", {}).get("alarms")]
    found += [(bound["name"], bound["outcome"]) for bound in outcome.get("gate", ())]
    found += [row["dataset"] for row in outcome.get("datasets", ())]  # of another file, others
    told = json.dumps([f"{now.astimezone(UTC):%Y-%m-%dT%H}", *found])
    return f"msg_{hashlib.sha256(told.encode()).hexdigest()[:32]}"


def send_outcome(webhook: Webhook, outcome: Mapping[str, Any]) -> None:
    """Sends what a refresh found, again and again while the server does not answer properly.

    Each try is signed anew, as receivers refuse a message that is minutes old.

    Args:
        webhook: Where to, and how it is signed.
        outcome: What was found.
    """
    secret, began = webhook.secret(), datetime.now(UTC)
    message = message_id(outcome, began)
    told = {"type": EVENT, "timestamp": began.isoformat(), "data": outcome}
    body = json.dumps(told, allow_nan=False).encode()
    plain = {"Content-Type": "application/json", "User-Agent": software().replace(" ", "/")}

    def headers() -> dict[str, str]:
        return plain | signed_headers(message, body, secret, int(now()))

    storage.deliver(webhook.url, body, headers)


def not_told(error: VdnaError) -> DeliveryError:
    """Returns the error of a refresh that is done, and whose outcome could not be handed over."""
    return DeliveryError(f"the refresh is done, but was not told: {error}")
