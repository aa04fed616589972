"""The request's whole way: who calls, what they ask, whether they may, the model's answer, and what it cost.

    identify -> read the body -> admit -> usage.open -> forward -> relay -> settle -> usage.close

Once the answer has begun nothing is raised any more: a broken stream ends with an error event, and whatever happens
the hold is settled and the usage recorded before the last message, because Lambda freezes the process after it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson

from tollgate.adapters import telemetry
from tollgate.adapters.http_message import TimedOut, UpstreamError
from tollgate.domain.identity import (
    ADMIN,
    INVOKE,
    MODELS_READ,
    USAGE_READ,
    Identity,
    KeysUnavailable,
    TooManyFailures,
    Unauthorized,
)
from tollgate.domain.policy_document import PolicyErrors
from tollgate.domain.records import Outcome
from tollgate.domain.restrictions import Restrictions, restrictions
from tollgate.domain.usage import Usage, estimate
from tollgate.ports import Response, SecretUnavailable, UsageLog
from tollgate.services.account import Account
from tollgate.services.administration import PREFIX as ADMIN_PREFIX
from tollgate.services.administration import Administration
from tollgate.services.admit import Admitter, Request
from tollgate.services.answers import answer_error, api_of, respond
from tollgate.services.bills import Bills, Job
from tollgate.services.estimates import Estimates
from tollgate.services.exchange import Disconnected, Exchange, Header
from tollgate.services.forward import NEXT_ROUTE, Forwarder, failure, refused
from tollgate.services.refusals import RefusalCounts
from tollgate.wire import errors, eventstream
from tollgate.wire.body import Body
from tollgate.wire.capabilities import cut_short
from tollgate.wire.converse import route_of as converse_route
from tollgate.wire.credentials import TwoCredentials
from tollgate.wire.errors import ApiError
from tollgate.wire.headers import USE_CASE_HEADER, from_upstream, to_upstream, use_case
from tollgate.wire.models import model_entry, model_list
from tollgate.wire.routes import KEYED_PREFIX, ROUTES, Route
from tollgate.wire.usage import UsageReader, reader_for

MAX_BODY = 4 * 1024 * 1024
"""Bytes of a request: Lambda's 6 MB payload limit, less what escaping may add."""
MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer that is not streamed (a batch of embeddings is the largest)."""
LEAVE_US = 5_000_000
"""How long before the function's deadline the upstream is stopped, to settle and record."""
LONGEST_US = 15 * 60 * 1_000_000
"""How long a call may take where no deadline says so."""

_STREAMS = (b"text/event-stream", eventstream.CONTENT_TYPE)

Identify = Callable[[Exchange], Awaitable[tuple[Identity, str]]]
"""Who calls, and from which address."""


class Gateway:
    """Serves every route. One per process, for any number of requests at once."""

    def __init__(
        self,
        *,
        identify: Identify,
        account: Account,
        administration: Administration,
        admitter: Admitter,
        forwarder: Forwarder,
        usage_log: UsageLog,
        clock: Callable[[], int],
        name: Callable[[Exchange], str],
        deadline: Callable[[Exchange], int | None],
        status: Callable[[], dict[str, object]],
        close: Callable[[], Awaitable[None]],
        max_in_flight: int = 0,
        max_body: int = MAX_BODY,
    ) -> None:
        """`name`: what a request is called. `deadline`: when this process will be stopped, in µs, or None.
        `status`: what /healthz tells. `max_in_flight`: requests at once before 503; 0: as many as come."""
        self._identify = identify
        self._account = account
        self._administration = administration
        self._admitter = admitter
        self._forwarder = forwarder
        self._clock = clock
        self._name = name
        self._deadline = deadline
        self._status = status
        self._close_adapters = close
        self._max_in_flight = max_in_flight
        self._max_body = max_body
        self._in_flight = 0
        self._estimates = Estimates()
        self._refusals = RefusalCounts(usage_log, clock)
        self._bills = Bills(admitter, usage_log, clock)

    async def aclose(self) -> None:
        """Say what is still to be said, and close what the gateway was made with."""
        self._refusals.flush()
        await self._close_adapters()

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request, whatever happens."""
        request_id = self._name(exchange)
        route = ROUTES.get(exchange.path)
        if route is None and exchange.path.startswith(KEYED_PREFIX):
            exchange.path = exchange.path.removeprefix("/anthropic")
            route = ROUTES.get(exchange.path)
        elif route is None:
            route = converse_route(exchange.path)
        self._in_flight += 1
        try:
            if 0 < self._max_in_flight < self._in_flight and exchange.path != "/healthz":
                raise errors.unavailable("The gateway is serving as many requests as it can. Try again shortly.")
            if route is not None and exchange.method == "POST":
                await self._model_call(exchange, route, request_id)
            else:
                await self._other(exchange, request_id)
        except ApiError as error:
            self._refusals.count(error, exchange.who, exchange.address, request_id)
            await answer_error(exchange, error, route, request_id)
        except Disconnected:
            return  # before anything was taken, and nobody is there to be told
        except Exception as error:  # noqa: BLE001 - the last resort: no caller may see a broken connection
            what, where = type(error).__name__, telemetry.where(error)
            telemetry.log("ERROR", "request failed", request_id=request_id, error=what, where=where)
            await answer_error(exchange, errors.internal_error(), route, request_id)
        finally:
            self._in_flight -= 1

    # -- the main path

    async def _model_call(self, exchange: Exchange, route: Route, request_id: str) -> None:
        started = self._clock()
        who, ip = await self._known(exchange, INVOKE, started)
        label = use_case(exchange.headers.get(USE_CASE_HEADER))
        body = Body(await exchange.body(self._max_body))
        call = route.read(body)
        deadline = self._deadline(exchange)
        longest = LONGEST_US if deadline is None else max(deadline - started, 0)
        likely = self._estimates.of(who.tenant, call.model)
        learned = likely.learned
        wanted = Request(
            request_id,
            route.api,
            call.model,
            call.prompt_estimate(learned.bytes_per_token),
            call.max_output,
            longest,
            call.answers,
            call.max_output_field,
            call.retained,
            likely.ask(started),
            call,
            body.fields,
        )
        grant = await self._admitter.admit(who, ip, wanted, call.answers * learned.answer_tokens)
        if wanted.ask:
            self._estimates.hear(likely, grant.decision.told, started)
        degraded = grant.request.degraded
        if degraded is not None and degraded.max_output is not None:
            call.changes |= cut_short(call, body.fields, degraded.max_output)
        job = Job(exchange, who, route, call, body, grant, likely, label, started)
        self._bills.open(job)
        try:
            await self._forward(job, deadline)
        finally:
            if not job.closed:  # cancelled (the process is stopping), or a mistake of ours
                usage = None
                if job.reader is not None:
                    usage = estimate(job.reader.finish(), wanted.input_tokens, job.reader.produced_bytes)
                await self._bills.close(job, "upstream_closed", 0, usage)

    async def _known(self, exchange: Exchange, scope: str, now_us: int) -> tuple[Identity, str]:
        """Who calls; 401 for everyone else, 429 for a flood of forgeries, 403 for who lacks the scope.

        Both `exp` and the scope are checked at every use: the authorizer's answer may be a minute old, and was given
        for another route."""
        try:
            who, ip = await self._identify(exchange)
        except TooManyFailures as error:
            raise errors.rate_limit_exceeded(
                "Too many invalid tokens from this address.", error.retry_after_s * 1_000_000, "Local-IP"
            ) from error
        except TwoCredentials as error:
            message = "Two different credentials were sent, as Authorization and as x-api-key. Send one."
            raise errors.invalid_api_key(message) from error
        except Unauthorized as error:
            raise errors.invalid_api_key() from error
        except KeysUnavailable as error:
            raise errors.unavailable("The gateway cannot verify tokens at the moment.") from error
        if who.expired(now_us / 1_000_000):
            raise errors.invalid_api_key("The token has expired.")
        exchange.who = who
        if scope not in who.scopes:
            raise errors.insufficient_scope(scope)
        if who.restrictions and not _restrictions(who).allows_route(exchange.path):
            raise errors.key_not_allowed(f"the route {exchange.path}", "route_not_allowed")
        return who, ip

    async def _forward(self, job: Job, deadline_us: int | None) -> None:
        """Send the call to the model's first route, or to the next where that one cannot serve; relay the answer.

        A call that an upstream may have worked on is not sent again: it would be paid for twice.
        """
        policy, routes = job.grant.entitlement.policy, job.grant.entitlement.routes
        headers = to_upstream(job.exchange.raw_headers, job.route.api)
        problem: ApiError | None = None
        outcome: Outcome = "not_sent"
        for attempt, candidate in enumerate(routes):
            if attempt:
                job.also = await self._admitter.admit_upstream(job.grant, candidate.upstream, attempt)
                if job.also is None:
                    continue
                self._bills.send(job, candidate)
            upstream, path = policy.upstreams[candidate.upstream], job.route.sent_to(candidate.model)
            body = _body(job, candidate.model)
            seconds = LONGEST_US / 1e6
            if deadline_us is not None:
                seconds = max((deadline_us - LEAVE_US - self._clock()) / 1e6, 0.1)
            try:
                response = await self._forwarder.send(upstream, path, headers, body, seconds)
            except (UpstreamError, SecretUnavailable) as error:
                problem = failure(error)
                if isinstance(error, UpstreamError) and error.sent:
                    outcome = "timed_out" if isinstance(error, TimedOut) else "upstream_closed"
                    break
                await self._bills.give_back(job)
                continue
            if response.status < 300:
                try:
                    await self._relay(job, response)
                finally:
                    response.close()  # cancelled: the connection must not wait for its timeout
                return
            if response.status not in NEXT_ROUTE or attempt + 1 == len(routes):
                await self._relay_refusal(job, response)
                return
            response.close()
            await self._bills.give_back(job)
        if problem is None:  # no route had room
            problem = errors.upstream_error()
        await self._bills.close(job, outcome, problem.status, None)
        raise problem

    def _relay(self, job: Job, response: Response) -> Awaitable[None]:
        """Pass the model's answer on, and read its usage on the way."""
        job.first_byte_us = self._clock() - job.started_us
        streams = (response.header(b"content-type") or b"").startswith(_STREAMS)
        reader = job.reader = reader_for(job.call, event_stream=streams, loads=orjson.loads)
        headers = [*from_upstream(response.headers), *self._own_headers(job)]
        if streams:
            return self._relay_stream(job, response, reader, headers)
        return self._relay_whole(job, response, reader, headers)

    async def _relay_stream(self, job: Job, response: Response, reader: UsageReader, headers: list[Header]) -> None:
        exchange = job.exchange
        await exchange.start(response.status, headers, streams=True)
        outcome: Outcome = "ok"
        problem: ApiError | None = None
        try:
            async for chunk in response:
                if passed := reader.feed(chunk):
                    await exchange.send(passed)
            if rest := reader.rest():
                await exchange.send(rest)
        except UpstreamError as error:
            outcome = "timed_out" if isinstance(error, TimedOut) else "upstream_closed"
            problem = failure(error)
        status, usage = response.status, reader.finish()
        if problem is not None and not (reader.saw_done and usage is not None):
            usage = estimate(usage, job.grant.request.input_tokens, reader.produced_bytes)
        elif usage is None:
            if reader.saw_done or reader.produced_bytes:
                usage = estimate(None, job.grant.request.input_tokens, reader.produced_bytes)
            else:  # it ended in order, but nothing of it was an answer
                outcome, status = "upstream_error", 502
                problem = None if reader.error else errors.upstream_error()
        if problem is not None:
            gap = b"\n\n" if reader.mid_event else b""
            await exchange.send(gap + problem.event(job.route.api, job.grant.request.id))
        await self._bills.close(job, outcome, status, usage)
        await exchange.finish()

    async def _relay_whole(self, job: Job, response: Response, reader: UsageReader, headers: list[Header]) -> None:
        exchange = job.exchange
        try:
            answer = await response.read(MAX_ANSWER)
        except UpstreamError as error:
            problem = failure(error)
            outcome: Outcome = "timed_out" if isinstance(error, TimedOut) else "upstream_closed"
            await self._bills.close(job, outcome, problem.status, None)
            raise problem from error
        reader.feed(answer)
        usage = reader.finish()
        if not reader.saw_done:
            await self._bills.close(job, "upstream_error", 502, None)
            raise errors.upstream_error("The model provider's answer is not JSON.")
        if usage is None:
            usage = estimate(None, job.grant.request.input_tokens, reader.produced_bytes)
        headers.append((b"content-length", str(len(answer)).encode()))
        await exchange.start(response.status, headers)
        await exchange.send(answer)
        await self._bills.close(job, "ok", response.status, usage)
        await exchange.finish()

    async def _relay_refusal(self, job: Job, response: Response) -> None:
        """The upstream refused: what the caller can mend is passed on as it is, the rest is told in our words."""
        try:
            problem, passed = await refused(response)
        except UpstreamError as error:
            problem, passed = failure(error), b""
        status = response.status if problem is None else problem.status
        await self._bills.close(job, "upstream_error", status, Usage())
        if problem is not None:
            raise problem
        headers = [*from_upstream(response.headers), *self._own_headers(job)]
        await job.exchange.start(status, [*headers, (b"content-length", str(len(passed)).encode())])
        await job.exchange.send(passed)
        await job.exchange.finish()

    def _own_headers(self, job: Job) -> list[Header]:
        grant = job.grant
        own = grant.entitlement.told.of(grant.decision.values, grant.decision.now_us)
        own.append((b"x-request-id", grant.request.id.encode()))
        if grant.request.degraded is not None:
            own.append((b"x-tollgate-degraded", grant.request.degraded.header))
        return own

    # -- everything else

    async def _other(self, exchange: Exchange, request_id: str) -> None:
        """GET /healthz, /v1/models, /v1/models/{model}, /v1/usage, /admin/v1/...; 404 or 405 for all else."""
        path, method = exchange.path, exchange.method
        if path.startswith(ADMIN_PREFIX):
            who, _ = await self._known(exchange, ADMIN, self._clock())
            await respond(exchange, 200, await self._administration.read(who, method, path), request_id)
            return
        known = path in ("/healthz", "/v1/models", "/v1/usage") or path.startswith("/v1/models/")
        if not known and path not in ROUTES:
            raise errors.not_found(method, path)
        if method != "GET" or path in ROUTES:
            raise errors.method_not_allowed(method, path, "POST" if path in ROUTES else "GET")
        if path == "/healthz":
            await respond(exchange, 200, self._status(), request_id)
            return
        scope = USAGE_READ if path == "/v1/usage" else MODELS_READ
        who, _ = await self._known(exchange, scope, self._clock())
        if path == "/v1/usage":
            await respond(exchange, 200, await self._account.usage(who), request_id)
            return
        api = api_of(exchange, None)
        names = await self._account.models(who, api)
        if path == "/v1/models":
            await respond(exchange, 200, model_list(names, api), request_id)
            return
        wanted = path.removeprefix("/v1/models/")
        if wanted not in names:
            raise errors.model_not_found(wanted)
        await respond(exchange, 200, model_entry(wanted, api), request_id)


def _restrictions(who: Identity) -> Restrictions:
    """What an API key is narrowed down to. 403 where that cannot be read: somebody edited it by hand."""
    try:
        return restrictions(who.restrictions)
    except PolicyErrors as problem:
        telemetry.log("ERROR", "an API key's restrictions cannot be read", key=who.key, problem=str(problem))
        raise errors.forbidden("This API key is not set up correctly.", "invalid_key_setup") from problem


def _body(job: Job, upstream_model: str) -> bytes:
    """The body as the upstream gets it: the caller's bytes, with the model's name and what the route asks for."""
    changes = job.call.changes
    if upstream_model != job.call.model and not job.route.model:
        changes = {**changes, "model": orjson.dumps(upstream_model).decode()}
    return job.body.splice(changes)
