"""Asks an OpenAI-compatible endpoint (`POST .../chat/completions`), with the standard library alone.

Every question ends within its deadline, with the reply's text or with the reason why there is none; nothing
is raised for what a network does.  Time-outs, broken connections, 408, 409, 425, 429 and 5xx are tried again
with growing pauses (`Retry-After` is heeded); other statuses are final.  Redirects are not followed: they
would carry the key to another host.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from onebase.errors import UserError

RETRIED = {408, 409, 425, 429}
REPLY_BYTES = 4 << 20
LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a question has no answer; one line."""

    why: str


@dataclass(frozen=True)
class Endpoint:
    url: str
    """Up to and with the version, as in https://host/v1; or the whole address of chat/completions."""
    model: str
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself belongs in no recipe."""
    max_tokens: int = 1024
    seconds: float = 120.0
    """For one question, pauses and further tries included."""
    retries: int = 4
    """Further tries after the first."""
    concurrency: int = 16
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the request's body."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"judge: url {self.url!r}: expected http://... or https://...")
        if not (self.seconds > 0 and self.retries >= 0 and self.max_tokens > 0 and self.concurrency > 0):
            raise UserError(
                f"judge: seconds={self.seconds} max_tokens={self.max_tokens} "
                f"concurrency={self.concurrency} must be above 0, retries={self.retries} at least 0"
            )
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise UserError(
                f"judge: the environment variable {self.api_key_env} (api_key_env) is not set\n"
                f"  set it: export {self.api_key_env}=..., or leave api_key_env out for an open endpoint"
            )

    def ask(self, prompts: Sequence[str]) -> list[str | Failure]:
        """One reply for each prompt, `concurrency` of them at a time."""
        if len(prompts) == 1:
            return [self._ask_one(prompts[0])]
        with ThreadPoolExecutor(min(self.concurrency, max(1, len(prompts)))) as threads:
            return list(threads.map(self._ask_one, prompts))

    def _ask_one(self, prompt: str) -> str | Failure:
        deadline = time.monotonic() + self.seconds
        tries = 0
        while True:
            tries += 1
            found = self._try(prompt, deadline)
            if isinstance(found, str) or not found.again:
                return found if isinstance(found, str) else Failure(found.why)
            pause = min(LONGEST_PAUSE, found.pause if found.pause is not None else 0.5 * 2 ** (tries - 1))
            if tries > self.retries or time.monotonic() + pause >= deadline:
                return Failure(f"{found.why} (after {tries} tries)")
            time.sleep(pause)

    def _try(self, prompt: str, deadline: float) -> str | _Fault:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            **self.extra,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.api_key_env, '')}"
        address = self.url.rstrip("/")
        address += "" if address.endswith("/chat/completions") else "/chat/completions"
        # A lone surrogate in a completion is escaped here; it has no UTF-8.
        data = json.dumps(body).encode("ascii")
        request = urllib.request.Request(address, data, headers, method="POST")
        left = deadline - time.monotonic()
        try:
            with _OPENER.open(request, timeout=max(0.1, left)) as response:
                return _content(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                told = _printable(error.read(300))
            again = error.code in RETRIED or error.code >= 500
            return _Fault(f"HTTP {error.code}: {told}", again, _seconds(error.headers.get("Retry-After")))
        except TimeoutError:
            return _Fault(f"no reply within {self.seconds:g} s", True)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            return _Fault(f"{type(error).__name__}: {_printable(str(error).encode())}", True)


@dataclass(frozen=True, slots=True)
class _Fault:
    why: str
    again: bool
    pause: float | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read(response: Any, deadline: float) -> bytes:
    """The body; in pieces, so that one that drips does not outlive the deadline."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > REPLY_BYTES:
            raise OSError(f"the reply is larger than {REPLY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _content(body: bytes) -> str | _Fault:
    try:
        choice = json.loads(body)["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _Fault(f"the reply is no chat completion: {_printable(body[:200])}", True)
    if reason == "length":
        return _Fault("the reply was cut off; raise max_tokens", False)
    if not isinstance(text, str):
        return _Fault("the reply has no text", False)
    return text


def _seconds(header: str | None) -> float | None:
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or "")))
    except ValueError:
        return None


def _printable(data: bytes) -> str:
    return " ".join(data.decode("utf-8", "replace").split())[:200]
