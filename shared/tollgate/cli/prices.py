"""``tollgate price``: what models cost, which have no price, and what a public data set says of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.connect import with_tables
from tollgate.cli.failures import FAILED, NOT_FOUND, Fail
from tollgate.cli.output import echo_json, json_option, table
from tollgate.cli.values import SPAN

if TYPE_CHECKING:
    from tollgate.domain.policy import Policy, UpstreamSpec
    from tollgate.domain.prices import Place, Price, Tariff

KINDS = (
    "input",
    "cached_input",
    "cache_write",
    "cache_write_long",
    "audio_input",
    "output",
    "reasoning",
    "audio_output",
)
FILE = click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))


@click.group()
def price() -> None:
    """What models cost: of the policy that runs, or of a FILE.

    Prices are US dollars per million tokens. They stand in the policy: at the model (`price`), or in a table by
    upstream, model and date (`prices`). What has neither is held and billed at the policy's `ceiling_price`.

    \b
      tollgate price list
      tollgate price check policy.yaml
    """


@price.command(name="list")
@FILE
@json_option
def list_(file: str | None, as_json: bool) -> None:
    """List what every model costs now, wherever it is served, and what is about to change.

    \b
      tollgate price list
      tollgate price list policy.yaml --json
    """
    from tollgate.domain.prices import at, places

    now = _now_us()
    rows = []
    for place in places(_policy(file)):
        rows += [_row(place, t, now) for t in place.schedule if t is at(place.schedule, now) or t.since_us > now]
    _show(rows, as_json)


@price.command()
@click.argument("model")
@FILE
@json_option
def show(model: str, file: str | None, as_json: bool) -> None:
    """Show every price of a model, past and to come, with the name that usage records have for it.

    \b
      tollgate price show small
    """
    from tollgate.domain.prices import places

    now = _now_us()
    found = [place for place in places(_policy(file)) if place.model == model]
    if not found:
        raise Fail(f"there is no model {model!r}: see `tollgate price list`", NOT_FOUND)
    _show([_row(place, tariff, now) for place in found for tariff in place.schedule], as_json)


@price.command()
@FILE
@click.option("--ahead", type=SPAN, default="30d", show_default=True, help="How far ahead changes are told.")
@click.option("--offline", is_flag=True, help="Do not compare with the data set.")
@json_option
@click.pass_context
def check(ctx: click.Context, file: str | None, ahead: timedelta, offline: bool, as_json: bool) -> None:
    """Say which models have no price, which prices are about to change, and which differ from what is publicly known.

    Exit code 1 if a model has no price. What is publicly known is the data set of the package genai-prices as it is
    installed here; nothing is fetched, and no gateway reads it.

    \b
      tollgate price check
      tollgate price check policy.yaml --ahead 7d
    """
    from tollgate.domain.prices import at, places

    policy, now = _policy(file), _now_us()
    soon = now + int(ahead.total_seconds() * 1e6)
    known = None if offline else _DataSet.installed()
    findings: list[dict[str, str]] = []
    for place in places(policy):
        told = {"model": place.model, "upstream": place.route.upstream, "upstream_model": place.route.model}
        tariff = at(place.schedule, now)
        public = known.price(policy.upstreams[place.route.upstream], place.route.model) if known is not None else None
        if tariff.priced == "ceiling":
            hint = f"; the data set has {_flow(public.figures)}" if public is not None else ""
            findings.append({**told, "finding": "no price", "detail": f"billed at the ceiling price{hint}"})
        elif public is not None and (differences := _differences(tariff.price, public)):
            findings.append({**told, "finding": "differs", "detail": ", ".join(differences)})
        if public is not None and public.tiers:
            detail = f"costs more above {public.tiers:,} tokens of input, which a price here cannot say"
            findings.append({**told, "finding": "tiers", "detail": detail})
        for later in place.schedule:
            if now < later.since_us <= soon:
                detail = f"from {_day(later)} on: {_flow(_dollars(later.price, tariff.price))}"
                findings.append({**told, "finding": "changes", "detail": detail})
    missing = sum(finding["finding"] == "no price" for finding in findings)
    if as_json:
        echo_json({"ok": not missing, "compared_with": known.name if known is not None else None, "findings": findings})
    else:
        if findings:
            columns = ("model", "upstream", "upstream_model", "finding", "detail")
            click.echo(table(columns, [[finding[name] for name in columns] for finding in findings]))
        else:
            click.echo("every model has a price, and nothing changes soon")
        if known is not None:
            click.echo(f"compared with {known.name}", err=True)
        elif not offline:
            click.echo("not compared: `pip install genai-prices` has the data set", err=True)
    if missing:
        ctx.exit(FAILED)


# -- what is shown -------------------------------------------------------------------------------------------------


def _policy(file: str | None) -> Policy:
    if file is None:
        return with_tables(lambda tables: tables.edited())
    import os

    from tollgate.adapters.policy_file import load

    return load(file, os.environ)


def names_without_price(policy: Policy) -> list[str]:
    """Models that are billed at the ceiling price now, wherever or somewhere."""
    from tollgate.domain.prices import unpriced

    return list(dict.fromkeys(place.model for place in unpriced(policy, _now_us())))


def _now_us() -> int:
    return int(datetime.now(UTC).timestamp() * 1e6)


def _row(place: Place, tariff: Tariff, now_us: int) -> dict[str, Any]:
    return {
        "model": place.model,
        "upstream": place.route.upstream,
        "upstream_model": place.route.model,
        "from": _day(tariff),
        "in_force": tariff.since_us <= now_us,
        "priced": tariff.priced,
        "id": tariff.id,
        **{kind: _usd(getattr(tariff.price, kind)) for kind in KINDS},
    }


def _show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        echo_json({"prices": rows})
        return
    some = [kind for kind in KINDS if any(_says_more(row, kind) for row in rows)]
    columns = ("model", "upstream", "from", *some, "id")
    click.echo(table(columns, [[row[name] or "-" for name in columns] for row in rows]))


def _says_more(row: dict[str, Any], kind: str) -> bool:
    """Whether a kind of token costs other than what it is a part of."""
    whole = "output" if kind in ("reasoning", "audio_output") else "input"
    return kind in ("input", "output") or row[kind] != row["cache_write" if kind == "cache_write_long" else whole]


def _day(tariff: Tariff) -> str:
    if not tariff.since_us:
        return ""
    return datetime.fromtimestamp(tariff.since_us / 1e6, UTC).isoformat().removesuffix("T00:00:00+00:00")


def _usd(pico: int) -> str:
    """Dollars per million tokens, exactly, of pico-dollars per token."""
    exact = Decimal(pico) / 1_000_000
    return f"{exact:.2f}" if exact == round(exact, 2) else f"{exact.normalize():f}"


def _dollars(price: Price, other: Price | None = None) -> dict[str, str]:
    """The figures of a price; only those that are not the other's, if there is one."""
    figures = {kind: getattr(price, kind) for kind in KINDS}
    return {kind: _usd(pico) for kind, pico in figures.items() if other is None or pico != getattr(other, kind)}


def _flow(figures: dict[str, str]) -> str:
    """As it is written in the policy."""
    return "{" + ", ".join(f"{kind}: {value}" for kind, value in figures.items()) + "}"


# -- the data set ----------------------------------------------------------------------------------------------------


class _Public:
    """What is publicly known of a price: its figures (dollars per million tokens), and from how many tokens of input on
    it is another (0: never)."""

    def __init__(self, figures: dict[str, str], tiers: int) -> None:
        self.figures = figures
        self.tiers = tiers


class _DataSet:
    """The package genai-prices (MIT licence): prices of many providers, found by their URLs and models' names."""

    _NAMES = {  # noqa: RUF012 - a constant
        "input": "input_mtok",
        "cached_input": "cache_read_mtok",
        "cache_write": "cache_write_mtok",
        "cache_write_long": "cache_write_1h_mtok",
        "audio_input": "input_audio_mtok",
        "output": "output_mtok",
        "reasoning": "output_reasoning_mtok",
        "audio_output": "output_audio_mtok",
    }

    def __init__(self, providers: Any, version: str) -> None:
        self._providers = providers
        self.name = f"genai-prices {version}"

    @classmethod
    def installed(cls) -> _DataSet | None:
        from importlib.metadata import version

        try:
            from genai_prices.data import providers
        except ImportError:
            return None
        return cls(providers, version("genai-prices"))

    def price(self, upstream: UpstreamSpec, model: str) -> _Public | None:
        """What the provider behind an upstream's URL takes for a model; None if that is not known."""
        import re

        provider = next((p for p in self._providers if re.match(p.api_pattern, upstream.url)), None)
        found = provider.find_model(model, all_providers=self._providers) if provider is not None else None
        if found is None:
            return None
        prices = found.get_prices(datetime.now(UTC))
        figures, tiers = {}, 0
        for kind, name in self._NAMES.items():
            value: Any = getattr(prices, name, None)
            if hasattr(value, "tiers"):
                tiers, value = value.tiers[0].start, value.base
            if value is not None:
                figures[kind] = f"{Decimal(value).normalize():f}"
        return _Public(figures, tiers) if figures else None


def _differences(price: Price, public: _Public) -> list[str]:
    found = []
    for kind, value in public.figures.items():
        ours = Decimal(getattr(price, kind)) / 1_000_000
        if ours != Decimal(value):
            found.append(f"{kind} {_usd(getattr(price, kind))} here, {value} there")
    return found
