"""Draw what `python -m bench.simulator --json FILE` measured: ``plot.py FILE FOLDER``. Needs matplotlib and no more."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

INK, GREY, BLUE, GREEN, ORANGE, RED, PURPLE = (
    "#222222", "#9aa0a6", "#1f6fb4", "#2a9d5c", "#e08a1e", "#c8372d", "#7a4fa3",
)  # fmt: skip
LOAD = (("offered", GREY, 1.0), ("ideal", INK, 1.0), ("admitted", BLUE, 1.6))
REFUSED = (
    ("refused by the store", ORANGE, 1.2),
    ("refused locally", PURPLE, 1.2),
    ("failed", GREY, 1.2),
    ("falsely refused", RED, 1.6),
)
STORES = (("redis", BLUE, 1.4), ("writes", ORANGE, 1.4), ("throttled", RED, 1.4), ("loads", GREEN, 1.0))
DECIDED = (("decided by redis", BLUE, 1.4), ("decided by dynamodb", ORANGE, 1.4))
NAMES = {
    "ideal": "an ideal limiter admits",
    "redis": "Redis calls",
    "decided by redis": "Redis",
    "decided by dynamodb": "DynamoDB",
    "writes": "DynamoDB writes",
    "throttled": "writes turned away",
    "loads": "budgets asked of the ledger",
    "refused locally": "refused by the container's memory",
    "failed": "failed (5xx)",
    "falsely refused": "refused, though the ideal limiter admits it",
}
Axes = Any
Run = dict[str, Any]


def draw(run: Run, file: Path) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(12, 7.6), layout="constrained")
    figure.suptitle(f"{run['scenario']}: {run['says']}", fontsize=14, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(textwrap.fill(says(run), 165), fontsize=10, x=0.01, ha="left", color=INK)
    (load, refusals), (stores, last) = panels
    lines(load, run, LOAD, "Requests", "requests/s")
    lines(refusals, run, REFUSED, "Refusals", "requests/s")
    lines(stores, run, STORES, "What the stores are asked", "calls/s")
    if "outage" in run:
        lines(last, run, DECIDED, "Who decides", "admissions/s")
        start, seconds = run["outage"]["start_s"], run["outage"]["seconds"]
        for panel in panels.flat:
            panel.axvspan(start, start + seconds, color=RED, alpha=0.08, lw=0)
            panel.annotate(
                "Redis is away", (start + seconds / 2, 1.0), xycoords=("data", "axes fraction"), xytext=(0, -3),
                textcoords="offset points", color=RED, fontsize=8.5, ha="center", va="top",
            )  # fmt: skip
    else:
        holds(last, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(file, optimize=True)  # a quarter of the bytes


def lines(panel: Axes, run: Run, wanted: tuple[tuple[str, str, float], ...], title: str, unit: str) -> None:
    """Some of the run's series over time, per second."""
    width = run["minutes"] * 60 / len(run["series"]["offered"])
    for name, colour, weight in wanted:
        if any(values := run["series"].get(name, [])):
            at = [(i + 0.5) * width for i in range(len(values))]
            # the last interval also has what happened after the load ended
            rates = [value / width for value in values][:-1]
            panel.plot(at[:-1], rates, color=colour, lw=weight, label=NAMES.get(name, name))
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel("seconds of virtual time")
    panel.set_ylabel(unit)
    panel.set_ylim(0, panel.get_ylim()[1] * 1.12)
    finish(panel)


def holds(panel: Axes, run: Run) -> None:
    """How much was held for each token that was used."""
    for kind, colour, label in (
        ("guessed", BLUE, "length guessed"),
        ("given", ORANGE, "max_tokens given: held whole, unless it is used up"),
    ):
        found = run["hold_error"][kind]
        if found["requests"]:
            panel.plot(found["curve"], range(1, 100), color=colour, lw=1.6, label=label)
    panel.axvline(1.0, color=GREY, lw=1, ls="--")
    panel.set_xscale("log")
    panel.set_xlim(0.3, 10)
    panel.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    panel.minorticks_off()
    panel.set_title("Tokens held before the call / tokens used", loc="left", fontsize=11)
    panel.set_xlabel("held / used (1: exact; less: debt)")
    panel.set_ylabel("% of requests below")
    panel.set_ylim(0, 100)
    finish(panel)


def finish(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#e6e6e6", lw=0.6)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8.5, loc="best")


def says(run: Run) -> str:
    """What one sees, in a sentence or two."""
    groups = run["groups"]
    requests = sum(group["requests"] for group in groups.values())
    missing = "; ".join(f"{name} {100 * group['missing_share']:.2f} %" for name, group in groups.items())
    beyond = {kind: verdict for kind, verdict in run["over_admission"].items() if verdict["beyond"]}
    found = (
        f"{requests:,} requests of {run['tenants']:,} tenants to {run['containers']:,} containers. "
        f"Missing of what an ideal limiter gives each tenant: {missing}. "
    )
    if not beyond:
        return found + "Nothing was admitted beyond a limit."
    worst = "; ".join(
        f"{kind}: {verdict['beyond']:,} by up to {100 * verdict['worst']['share']:.0f} % of {verdict['worst']['limit']}"
        for kind, verdict in beyond.items()
    )
    return found + f"Admitted beyond {worst}."


def main() -> int:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for run in json.loads(source.read_text(encoding="utf-8")):
        draw(run, folder / f"{run['scenario']}.png")
        print(folder / f"{run['scenario']}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
