"""A run's figures, for programs and for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.simulator.simulation import Simulation
from bench.simulator.tally import ratio

Figures = dict[str, Any]


def figures(world: Simulation) -> Figures:
    """Everything that was measured; the same for the same seed."""
    tally, scenario = world.tally, world.scenario
    containers = [container.dynamodb for container in world.made]
    found: Figures = {
        "scenario": scenario.name,
        "says": scenario.says,
        "minutes": scenario.minutes,
        "tenants": scenario.tenants,
        "containers": len(world.made),
        "turned_away": tally.turned_away,
        "groups": {name: group.as_dict() for name, group in sorted(tally.groups.items())},
        "over_admission": {kind: verdict.as_dict() for kind, verdict in world.judge.verdicts().items()},
        "hold_error": tally.hold_error(),
        "admission_ms": tally.admission_ms(),
        "writes_per_subject": ratio(sum(c.writes for c in containers), sum(c.subjects for c in containers)),
        "hottest_items": [[_kind(pk), round(units)] for pk, units in world.items.units_by_item.most_common(6)],
        "throttled_items": [[_kind(pk), count] for pk, count in world.items.throttled_by_item.most_common(8)],
        "one_budget_loaded": max(world.loading.values(), default=0),
        "series": tally.series,
    }
    if (away := scenario.outage or scenario.partition) is not None:
        at, length_s = away
        found["outage"] = {
            "start_s": round(at * world.seconds, 3),
            "seconds": length_s,
            "decided_by_dynamodb_afterwards": tally.span(tally.late),
        }
    if scenario.boost is not None:
        found["outdated_records_used"] = tally.span(tally.outdated)
    return found


def _kind(pk: str) -> str:
    """An item without its names: ``r#{g}…``, ``b#{tenant}…``."""
    kind, _, rest = pk.partition("#")
    whose = "everyone" if rest.startswith("{g}") else "address" if rest.startswith("{i") else "tenant"
    if whose == "tenant" and not rest.endswith("}") and "}u" in rest:
        whose = "user"
    names = {"s": "limits", "r": "rates", "b": "budget", "c": "slots", "h": "marker", "v": "version"}
    return f"{names.get(kind, kind)} of {whose}"


def table(runs: Sequence[Figures]) -> str:
    """Two tables in Markdown, what callers met and what it did to limits and stores; then remarks."""
    callers = [_caller_columns(run["scenario"], name, group) for run in runs for name, group in run["groups"].items()]
    return "\n\n".join((_markdown(callers), _markdown([_limit_columns(run) for run in runs]), *_remarks(runs)))


def _caller_columns(scenario: str, callers: str, group: Figures) -> dict[str, str]:
    each = group["per_request"]
    return {
        "scenario": scenario,
        "callers": callers,
        "requests": f"{group['requests']:,}",
        "ideal admits": f"{group['ideal_admits']:,}",
        "admitted": f"{group['admitted']:,}",
        "5xx": f"{group['failed']:,}",
        "falsely refused": _percent(group["falsely_refused_share"]),
        "missing": _percent(group["missing_share"]),
        "refused locally": _percent(group["refused_locally_share"]),
        "Redis calls": f"{each['redis_calls']:.2f}",
        "DynamoDB writes": f"{each['dynamodb_writes']:.2f}",
        "budgets loaded": f"{each['budgets_loaded']:.2f}",
        "calls per container and s": (
            f"{group['mean_calls_per_container_second']:.1f}, at most {group['most_calls_per_container_second']}"
        ),
    }


def _limit_columns(run: Figures) -> dict[str, str]:
    beyond, held, took = run["over_admission"], run["hold_error"], run["admission_ms"]
    return {
        "scenario": run["scenario"],
        "containers": f"{run['containers']:,}",
        **{f"beyond {kind}": _beyond(beyond[kind]) for kind in ("rates", "budgets", "slots")},
        "held/used, guessed: p50 / p95": f"{held['guessed']['p50']:.2f} / {held['guessed']['p95']:.2f}",
        "with max_tokens": f"{held['given']['p50']:.2f} / {held['given']['p95']:.2f}",
        "writes per subject": f"{run['writes_per_subject']:.2f}" if run["writes_per_subject"] else "",
        "admission ms: p50 / p99": f"{took['p50']:.0f} / {took['p99']:.0f}",
        "one budget loaded": f"{run['one_budget_loaded']}",
    }


def _remarks(runs: Iterable[Figures]) -> list[str]:
    found = []
    for run in runs:
        if "outage" in run:
            after = run["outage"]["decided_by_dynamodb_afterwards"]
            found.append(
                f"{run['scenario']}: DynamoDB decided {after['count']} admissions after Redis was back, "
                f"the last one {after['max_s']:.1f} s after it."
            )
        if "outdated_records_used" in run:
            old = run["outdated_records_used"]
            found.append(
                f"{run['scenario']}: {old['count']} admissions used a record that had been changed, "
                f"the last one {old['max_s']:.1f} s after the change."
            )
        if run["hottest_items"]:
            items = ", ".join(f"{name} ({units:,})" for name, units in run["hottest_items"])
            found.append(f"{run['scenario']}: write units of the busiest items: {items}.")
        if run["throttled_items"]:
            items = ", ".join(f"{name} ({count:,})" for name, count in run["throttled_items"])
            found.append(f"{run['scenario']}: writes turned away by items: {items}.")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _beyond(verdict: Figures) -> str:
    if not verdict["beyond"]:
        return "0"
    worst = verdict["worst"]
    return f"{verdict['beyond']:,} (by up to {_percent(worst['share'])}, {worst['limit']})"


def _markdown(rows: Sequence[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
