"""Learning what prompts and answers use."""

from __future__ import annotations

import json
import random
import struct
from statistics import median

from hypothesis import example, given
from hypothesis import strategies as st

from tollgate.domain.estimates import FIRST_ANSWER, Learned, Sample
from tollgate.domain.usage import BYTES_PER_TOKEN, MAX_TOKENS, Usage
from tollgate.services.bills import sample_of
from tollgate.services.estimates import ASK_EVERY_US, CAPACITY, TELL_EVERY_US, Estimates
from tollgate.wire.body import Body
from tollgate.wire.routes import ROUTES

counts = st.integers(0, 10**6) | st.integers(0, MAX_TOKENS)
samples = st.builds(Sample, st.integers(0, 10**7), counts, counts)
"""Up to what is believed of a provider's counts."""


def test_before_anything_is_known() -> None:
    assert (Learned().bytes_per_token, Learned().answer_tokens) == (BYTES_PER_TOKEN, FIRST_ANSWER)


def test_the_first_call_already_counts() -> None:
    known = Learned()
    known.add(Sample(300, 100, 40))
    assert (known.bytes_per_token, known.answer_tokens) == (3.0, 40)


def test_answers_converge_to_their_median_and_follow_when_it_moves() -> None:
    dice = random.Random(7)
    known = Learned()
    for middle in (100, 1_000, 50):
        answers = [round(middle * dice.lognormvariate(0, 0.5)) for _ in range(400)]
        for answer in answers:
            known.add(Sample(0, 0, answer))
        assert 0.7 < known.answer_tokens / median(answers) < 1.4


def test_the_ratio_fades() -> None:
    known = Learned()
    for _ in range(100):
        known.add(Sample(4_000, 1_000, 0))
    for _ in range(1_000):
        known.add(Sample(2_000, 1_000, 0))
    assert 2.0 <= known.bytes_per_token < 2.01


@given(st.lists(samples, max_size=30))
@example([Sample(0, 0, MAX_TOKENS)])
def test_whatever_is_seen_the_figures_stay_sane(seen: list[Sample]) -> None:
    known = Learned()
    for sample in seen:
        known.add(sample)
    assert 1 <= known.bytes_per_token <= 16
    assert 0 < known.answer_tokens <= 1_000_000
    assert Learned.unpacked(known.packed()) == known


@given(st.binary(max_size=40))
def test_foreign_bytes_are_not_believed(raw: bytes) -> None:
    known = Learned.unpacked(raw)
    assert known is None or 1 <= known.bytes_per_token <= 16


def test_nan_is_not_believed() -> None:
    assert Learned.unpacked(struct.pack("<4d", 1, float("nan"), 1, 1)) is None


def test_the_store_is_asked_and_told_now_and_then() -> None:
    estimates = Estimates()
    one = estimates.of("acme", "small")
    assert one.ask(0) == one.key
    estimates.hear(one, Learned(400, 100, 50, 1), 0)
    assert estimates.of("acme", "small").learned.answer_tokens == 50
    assert one.ask(ASK_EVERY_US - 1) == ""
    assert one.ask(ASK_EVERY_US) == one.key
    assert one.learn(Sample(4, 1, 0), 0)
    assert not one.learn(Sample(4, 1, 0), TELL_EVERY_US - 1)
    assert one.learn(Sample(4, 1, 0), TELL_EVERY_US)


def test_another_tenant_starts_with_what_is_known_of_the_model_and_soon_has_its_own() -> None:
    estimates = Estimates()
    estimates.hear(estimates.of("acme", "small"), Learned(200_000, 100_000, 900, 50), 0)
    other = estimates.of("globex", "small")
    assert (other.learned.bytes_per_token, other.learned.answer_tokens) == (2.0, 900)
    for _ in range(20):
        other.learn(Sample(4_000, 1_000, 100), 0)
    assert other.learned.answer_tokens < 200
    assert other.learned.bytes_per_token > 3.8


def test_what_callers_make_up_is_not_kept() -> None:
    estimates = Estimates()
    for i in range(CAPACITY):
        estimates.of("acme", f"made-up-{i}")
    assert not estimates._estimates
    for i in range(CAPACITY + 5):
        estimates.hear(estimates.of(f"tenant-{i}", "small"), None, 0)
    assert len(estimates._estimates) == CAPACITY


def test_a_short_prompt_teaches_nothing_and_neither_does_an_answer_of_limited_length() -> None:
    asked = {"model": "small", "messages": [{"role": "user", "content": "Hello"}]}
    free, limited = (
        ROUTES["/v1/chat/completions"].read(Body(json.dumps(body).encode()))
        for body in (asked, {**asked, "max_tokens": 9})
    )
    assert sample_of(free, Usage(12, output_tokens=7)) == Sample(free.prompt_bytes, 0, 7)
    assert sample_of(limited, Usage(12, output_tokens=7)) is None
