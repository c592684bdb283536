"""Who is let in, how often, and how many at once. What is not let in is refused before its body is read."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Mapping
from typing import Any

from tristage.gateway.settings import Settings

__all__ = ["RETRY_AFTER", "Admission", "Place", "Refusal", "problem"]

RETRY_AFTER = {"Retry-After": "1"}


class Refusal(Exception):
    """A request that gets no answer but a reason.

    Attributes:
        status: the HTTP status.
        reason: what is wrong and what to do.
        code: the kind of refusal in one word, which metrics count.
        column: the column at fault, where one is.
        row: the row at fault (0-based), where one is.
        headers: what the answer carries besides.
    """

    def __init__(
        self,
        status: int,
        code: str,
        reason: str,
        *,
        column: str | None = None,
        row: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.column = column
        self.row = row
        self.headers = dict(headers or {})


class Admission:
    """The door: keys, rates, the number of requests inside and the bytes of their bodies. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokens: dict[str, tuple[float, float]] = {}  # caller -> requests left, and when that was counted
        self.in_flight = 0
        self.held = 0  # bytes of bodies

    def identify(self, authorization: str) -> str:
        """The caller's name, "" where no keys are asked for.

        Args:
            authorization: the header of that name, "" where it is missing.

        Raises:
            Refusal: 401, the key is missing or wrong.
        """
        if not self._settings.keys:
            return ""
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        found = ""
        for name, digest in self._settings.keys.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(digest, given):
                found = name
        if scheme.lower() != "bearer" or not found:
            raise Refusal(
                401,
                "unauthorized",
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def spend(self, caller: str, now: float | None = None) -> None:
        """Count one request of a caller against its rate; up to a second's worth may come at once.

        Raises:
            Refusal: 429, the caller's rate is used up.
        """
        rate = self._settings.rate
        if rate is None:
            return
        now = time.monotonic() if now is None else now
        most = max(rate, 1.0)
        left, counted = self._tokens.get(caller, (most, now))
        left = min(most, left + (now - counted) * rate)
        self._tokens[caller] = (left - 1.0 if left >= 1.0 else left, now)
        if left < 1.0:
            raise Refusal(
                429,
                "rate",
                f"more than {rate:g} requests a second; send fewer, with more rows each",
                headers={"Retry-After": str(math.ceil((1.0 - left) / rate))},
            )

    def full(self, late: int = 0, size: int = 0) -> Refusal | None:
        """Why no other request is taken now: 503; None where one is.

        Args:
            late: places taken by requests that nobody waits for any more.
            size: bytes of its body, as far as they are known.
        """
        if self.in_flight + late >= self._settings.max_in_flight:
            reason = f"{self.in_flight + late} requests are being answered already; try again in a second"
        elif self.held and self.held + size > self._settings.max_held:
            reason = f"{self.held} bytes of requests are held already; try again in a second"
        else:
            return None
        return Refusal(503, "full", reason, headers=RETRY_AFTER)

    def slot(self, late: int = 0) -> Place:
        """A place for one request, until the `with` block ends.

        Args:
            late: places taken by requests that nobody waits for any more.

        Raises:
            Refusal: 503, all places are taken.
        """
        refusal = self.full(late)
        if refusal is not None:
            raise refusal
        return Place(self)


class Place:
    """One request's place, and the bytes of its body that are held.

    Attributes:
        size: how many.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.size = 0

    def __enter__(self) -> Place:
        self._admission.in_flight += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._admission.in_flight -= 1
        self._admission.held -= self.size

    def hold(self, size: int) -> None:
        """Hold so many bytes in all.

        Raises:
            Refusal: 503, all requests together would hold too many.
        """
        more = size - self.size
        if more <= 0:
            return
        refusal = self._admission.full(-self._admission.in_flight, more)  # it has its place
        if refusal is not None:
            raise refusal
        self._admission.held += more
        self.size = size


def problem(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """The body of a refusal."""
    return {
        "error": refusal.code,
        "reason": refusal.reason,
        "column": refusal.column,
        "row": refusal.row,
        "request_id": request_id,
    }
