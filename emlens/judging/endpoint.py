"""A client for OpenAI-compatible chat endpoints, shared by sampling and by judges.

    endpoint = Endpoint("http://localhost:8000/v1", "some-model", concurrency=8)
    # ChatRequests in any iterable; replies as they come, not in order
    for index, reply in endpoint.ask(requests):
        if reply.ok: ...  # else reply.failure says why, in a few stable words

At most `concurrency` requests are under way, or answered but not yet taken from `ask`. A caller
that writes each reply to disk before it takes the next one loses, and pays twice, at most that many
when it is killed. A request that fails for a passing reason (408, 409, 425, 429, 5xx, a timeout, a
cut connection, half a JSON, another content type) is tried again with exponential backoff and full
jitter (tenacity), then becomes a reply with `failure`; nothing is raised for one request. Only a
key that is refused (401) or a path or model that does not exist (404) raises: no request could
succeed.

The key is taken from an environment variable or `api_key=`, and is in no repr, log, error or reply
(`emlens.judging.keys`). The bytes of a reply are bounded after they are decoded
(`emlens.judging.transport`).
It works inside a running event loop, such as a notebook's: requests run in a thread of their own.
It needs the `judge` extra (httpx, tenacity).
"""

import asyncio
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from emlens.foundation.errors import InputError, MissingExtraError
from emlens.foundation.files import one_line
from emlens.judging.keys import Key
from emlens.judging.replies import ChatRequest, Fault, Reply, read_reply
from emlens.judging.transport import is_private, json_of, read_body

if TYPE_CHECKING:
    import httpx

LENGTH_NAMES = ("max_tokens", "max_completion_tokens")
"""What servers call the greatest length of an answer, in the order in which they are tried."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_HOPELESS = frozenset({401, 404})
_LONGEST_WAIT = 60.0
_warned: set[str] = set()
"""Hosts of which it was said that they are asked over plain http."""

logger = logging.getLogger("emlens")


@dataclass
class Usage:
    """What an endpoint has been asked so far.

    Args:
        requests: sent, repeated ones included.
        repeats: how many of them were repeats.
        prompt_tokens, completion_tokens: as the server reports them.
    """

    requests: int = 0
    repeats: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Endpoint:
    """An OpenAI-compatible endpoint and the limits it is used under.

    Args:
        base_url: up to and including the version, such as `https://api.example.org/v1`; no key in
            it.
        model: the model's name there.
        key_env: environment variable that holds the key, read when requests are sent; unset means
            no key.
        api_key: the key itself, instead of `key_env`.
        concurrency: requests under way at once.
        timeout: seconds for one attempt, from connecting to the last byte, however slowly it drips.
        attempts: how often a request is tried in all.
        backoff: seconds; the n-th wait is uniform between 0 and backoff · 2ⁿ (at most 60), or what
            `Retry-After` asks for if longer.
        requests_per_minute: rate limit over all requests, evenly spaced; None for none.
        max_requests: budget of requests, repeated ones included; when it is spent, all further
            requests fail with `"budget"`.
        max_tokens_in_all: budget of reported tokens; requests under way may overshoot it.

    Raises:
        InputError: no URL, a URL with a key in it, or a limit out of range.
        MissingExtraError: httpx or tenacity is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_env: str = "OPENAI_API_KEY",
        api_key: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        attempts: int = 6,
        backoff: float = 0.5,
        requests_per_minute: float | None = None,
        max_requests: int | None = None,
        max_tokens_in_all: int | None = None,
    ):
        if not isinstance(model, str) or not model:
            raise InputError(f"model={model!r} must be the model's name at the endpoint")
        _require_count("concurrency", concurrency, 1)
        _require_count("attempts", attempts, 1)
        _require_count("max_requests", max_requests, 0)
        _require_count("max_tokens_in_all", max_tokens_in_all, 0)
        _require_positive("timeout", timeout)
        _require_positive("requests_per_minute", requests_per_minute)
        if not 0 <= backoff < float("inf"):
            raise InputError(f"backoff={backoff!r} must be 0 or more seconds")
        try:
            import httpx  # noqa: F401
            import tenacity  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                f"endpoints need {error.name}: pip install 'misalignment-lens[judge]'"
            ) from None
        self.base_url = _checked_url(base_url)
        _warn_of_plain_http(self.base_url)
        self.model = model
        self.concurrency = concurrency
        self.usage = Usage()
        self._key_env = key_env
        self._given_key = Key(api_key, "api_key")
        self._timeout, self._attempts, self._backoff = float(timeout), attempts, float(backoff)
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._max_requests, self._max_tokens = max_requests, max_tokens_in_all
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._length = LENGTH_NAMES[0]

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r}, concurrency={self.concurrency})"

    def describe(self) -> dict[str, Any]:
        """For provenance: the address and the model, never the key."""
        return {"base_url": self.base_url, "model": self.model}

    def allow(self, requests: int) -> None:
        """Let at most `requests` more be sent, repeated ones included; replaces `max_requests`."""
        _require_count("requests", requests, 0)
        self._max_requests = self.usage.requests + requests

    def ask(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[int, Reply]]:
        """Yield (number of the request, its reply) as replies come.

        Requests are taken from the iterable only as they are sent.
        Closing the iterator, or an error in the loop that reads it, cancels what is under way.

        Raises:
            InputError: the endpoint refuses the key, or knows neither path nor model.
        """
        import httpx

        key = self._given_key
        if not key.headers():
            key = Key(os.environ.get(self._key_env), self._key_env)
        waiting = enumerate(requests)
        answered: queue.SimpleQueue[tuple[int, Future[Reply]]] = queue.SimpleQueue()
        with key.kept_out_of_logs(), _loop_in_a_thread() as submit:
            limits = httpx.Limits(
                max_connections=self.concurrency, max_keepalive_connections=self.concurrency
            )
            # without it, reading the certificates would only cost time
            secure = self.base_url.startswith("https:")
            client = httpx.AsyncClient(
                timeout=self._timeout,
                limits=limits,
                headers={"Accept-Encoding": "identity", **key.headers()},
                verify=secure,
            )
            under_way: set[Future[Reply]] = set()
            open_slots = self.concurrency
            try:
                while True:
                    while open_slots and (item := next(waiting, None)) is not None:
                        index, request = item
                        future = submit(self._answered(client, key, request))
                        under_way.add(future)
                        future.add_done_callback(partial(_put, answered, index))
                        open_slots -= 1
                    if not under_way:
                        return
                    index, future = answered.get()
                    under_way.discard(future)
                    yield index, future.result()
                    open_slots += 1
            finally:
                for future in under_way:
                    future.cancel()
                with suppress(Exception):
                    submit(client.aclose()).result(timeout=5)

    async def _answered(self, client: "httpx.AsyncClient", key: Key, request: ChatRequest) -> Reply:
        import tenacity

        jitter = tenacity.wait_random_exponential(multiplier=self._backoff, max=_LONGEST_WAIT)

        def wait(state: tenacity.RetryCallState) -> float:
            fault = state.outcome.exception() if state.outcome else None
            at_least = fault.retry_after if isinstance(fault, Fault) else 0.0
            return max(float(jitter(state)), at_least)

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=wait,
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, Fault) and error.passing
            ),
            sleep=asyncio.sleep,
            reraise=True,
        )
        tried = 0
        try:
            async for attempt in retrying:
                with attempt:
                    await self._may_start(repeated=tried > 0)
                    tried += 1
                    reply = await self._once(client, key, request)
            with self._lock:
                self.usage.prompt_tokens += reply.prompt_tokens
                self.usage.completion_tokens += reply.completion_tokens
            return replace(reply, attempts=tried)
        except Fault as fault:
            return Reply(
                failure=fault.kind, detail=one_line(key.hidden(fault.detail)), attempts=tried
            )

    async def _may_start(self, *, repeated: bool) -> None:
        """Wait for this request's turn under the rate limit, and count it against the budget."""
        with self._lock:
            spent = self.usage.prompt_tokens + self.usage.completion_tokens
            if self._max_requests is not None and self.usage.requests >= self._max_requests:
                raise Fault("budget", f"the budget of {self._max_requests} requests is spent")
            if self._max_tokens is not None and spent >= self._max_tokens:
                raise Fault("budget", f"the budget of {self._max_tokens} tokens is spent")
            self.usage.requests += 1
            self.usage.repeats += repeated
            start = max(time.monotonic(), self._next_start)
            if self._interval:
                self._next_start = start + self._interval
        await asyncio.sleep(max(0.0, start - time.monotonic()))

    async def _once(self, client: "httpx.AsyncClient", key: Key, request: ChatRequest) -> Reply:
        import httpx

        length = self._length
        try:
            async with asyncio.timeout(self._timeout):
                async with client.stream(
                    "POST",
                    f"{self.base_url}/chat/completions",
                    json=request.body(self.model, length),
                ) as response:
                    body = await read_body(response)
        except (TimeoutError, httpx.TimeoutException):
            raise Fault(
                "timeout", f"no whole answer within {self._timeout:g} s", passing=True
            ) from None
        except httpx.HTTPError as error:  # connecting failed, or the connection was cut
            raise Fault("connection", f"{type(error).__name__}: {error}", passing=True) from None
        if response.status_code != 200:
            self._refuse(response, body, key, length)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise Fault("not JSON", f"content type {kind or 'missing'!r}", passing=True)
        # the one place where a reply's texts come from: the key is in none of them
        return read_reply(json_of(body, key))

    def _refuse(self, response: "httpx.Response", body: bytes, key: Key, length: str = "") -> None:
        # hidden first: half a key, cut off, would still be one
        message = one_line(key.hidden_in_error(body), 160)
        status = response.status_code
        if status in _HOPELESS:
            suspect = f"base_url and the model's name {one_line(self.model, 60)!r}"
            if status == 401:
                suspect = f"the key in {self._key_env} (or api_key=)"
            raise InputError(
                f"endpoint {self.base_url} answered {status} ({message}); check {suspect}"
            )
        # newer models refuse `max_tokens`; from then on the other name is sent
        if status == 400 and length == LENGTH_NAMES[0] and length in message:
            self._length = LENGTH_NAMES[1]
            raise Fault("refused", f"status {status}: {message}", passing=True)
        pause = _retry_after(response.headers.get("retry-after"))
        if status == 429 and pause:
            with self._lock:
                self._next_start = max(self._next_start, time.monotonic() + pause)
        kind = "refused"
        if status == 429:
            kind = "rate limited"
        elif status >= 500:
            kind = "server error"
        passing = status in _PASSING or status >= 500
        raise Fault(kind, f"status {status}: {message}", passing=passing, retry_after=pause)


def _require_count(name: str, value: int | None, least: int) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and (not is_integer or value < least):
        raise InputError(f"{name}={value!r} must be an integer of {least} or more")


def _require_positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise InputError(f"{name}={value!r} must be above 0")


def _checked_url(base_url: str) -> str:
    import httpx

    try:
        parts = httpx.URL(base_url)
        is_http = parts.scheme in ("http", "https") and bool(parts.host)
        is_url = is_http and not any(map(str.isspace, base_url))
    except (httpx.InvalidURL, TypeError):
        is_url = False
    if not is_url:
        # not shown: there may be a key in it
        raise InputError(
            "base_url is not an http(s) URL; pass one such as 'http://localhost:8000/v1'"
        )
    if parts.userinfo or parts.query or parts.fragment:
        raise InputError(
            "base_url carries a user, a password or a query,"
            " which may be a key and would be logged; pass the key as api_key= or by key_env="
        )
    return base_url.rstrip("/")


def _warn_of_plain_http(base_url: str) -> None:
    """Say once for each host that anybody on the way can read key and answers."""
    import httpx

    parts = httpx.URL(base_url)
    if is_private(parts.scheme, parts.host) or parts.host in _warned:
        return
    _warned.add(parts.host)
    logger.warning(
        "%s is asked over plain http: key, questions and answers can be read on the way; use https",
        one_line(parts.host, 80),
    )


def _retry_after(value: str | None) -> float:
    """Seconds that a `Retry-After` header asks for, at most a minute; 0 where it says nothing.

    The header is a number of seconds, or a date.
    """
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    if math.isnan(seconds):
        return 0.0
    return min(max(0.0, seconds), _LONGEST_WAIT)


@contextmanager
def _loop_in_a_thread() -> Iterator[Callable[[Coroutine[Any, Any, Any]], "Future[Any]"]]:
    """An event loop in a thread, whatever loop the caller runs in.

    Yields the function that submits a coroutine to it.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="emlens-endpoint", daemon=True)
    thread.start()

    async def end_tasks() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop)
    finally:
        asyncio.run_coroutine_threadsafe(end_tasks(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _put(answered: "queue.SimpleQueue[Any]", index: int, done: Any) -> None:
    answered.put((index, done))
