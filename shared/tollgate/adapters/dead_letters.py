"""Dead letters: usage records that cannot be entered, on an SQS queue, from where they can be replayed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tollgate.adapters import telemetry
from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.http import UpstreamError
from tollgate.ports import StoreUnavailable
from tollgate.services.meter import DeadLetter

MAX_BODY = 250_000
"""Bytes of a message; SQS takes 256 KB. No usage record is nearly as long."""
CUT_TO = 20_000
"""Characters that are kept of a longer line; each takes 12 bytes at most."""


class LoggedDeadLetters:
    """Says that there is one, in the log; without its content, which may be anything."""

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            telemetry.log("ERROR", "a usage record cannot be entered", reason=letter.told, characters=len(letter.line))


class QueuedDeadLetters(LoggedDeadLetters):
    """Sends them to a queue, and says so."""

    def __init__(self, sqs: AwsClient, queue_url: str) -> None:
        self._sqs = sqs
        self._queue_url = queue_url

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        await super().send(letters)
        for letter in letters:
            body = json.dumps({"reason": letter.reason, "record": letter.line})
            if len(body) > MAX_BODY:
                body = json.dumps({"reason": letter.reason, "record": letter.line[:CUT_TO], "cut": True})
            try:
                await self._sqs.call("SendMessage", {"QueueUrl": self._queue_url, "MessageBody": body}, retry=True)
            except (AwsError, UpstreamError) as error:
                raise StoreUnavailable(f"the dead-letter queue does not take a message: {error}") from error
