"""How do figures that compare.py has stored look as a table for a page?

    python benchmarks/report.py benchmarks/figures/NAME.json [--scenario d1,d16] [--servers wspy,picows]

prints Markdown: the minimum of each server, how the first server compares with the best of the others, and how long the
answers were of servers that compress.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

Figures = dict[str, list[float]]


def figures(scenario: dict[str, Any]) -> Figures:
    """Return what each server has of the compared figure, in the order of the runs."""
    key = scenario["figure"]
    return {
        name: [run[key] for run in server["runs"] if "error" not in run] for name, server in scenario["servers"].items()
    }


def amount(value: float) -> str:
    """Write a number with three digits that mean something."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def cell(values: list[float] | None) -> str:
    """Write a minimum; nothing for a server that did not take part."""
    if values is None:
        return ""
    return amount(min(values)) if values else "failed"


def comparison(first: list[float] | None, others: list[list[float]]) -> str:
    """Write the ratio of the first server's minimum to the least of the others'."""
    rivals = [min(values) for values in others if values]
    if not first or not rivals or not min(rivals):
        return ""
    return f"{min(first) / min(rivals):.2f}"


def row(name: str, scenario: dict[str, Any], servers: list[str]) -> str:
    """Write the line of one scenario."""
    found = figures(scenario)
    first, *others = servers
    rivals = [values for server, values in found.items() if server in others and not server.startswith(f"{first}-")]
    cells = [
        f"`{name}`: {scenario['title']}",
        scenario["unit"],
        *(cell(found.get(server)) for server in servers),
        comparison(found.get(first), rivals),
    ]
    return f"| {' | '.join(cells)} |"


def sizes(name: str, scenario: dict[str, Any], servers: list[str]) -> str:
    """Say how long compressed answers were, which is what their CPU time has bought."""
    found = []
    for server in filter(scenario["servers"].__contains__, servers):
        values = [run["output_bytes"] for run in scenario["servers"][server]["runs"] if "output_bytes" in run]
        if values:
            found.append(f"{server} {statistics.median(values):,.0f}")
    return f"Bytes of an answer in `{name}`: {', '.join(found)}."


def spread(scenarios: list[dict[str, Any]], servers: list[str]) -> str:
    """Say how far the medians are from the minima, which tells how quiet the machine was."""
    ratios = [
        statistics.median(values) / min(values)
        for scenario in scenarios
        for server, values in figures(scenario).items()
        if server in servers and values and min(values) > 0
    ]
    if not ratios:
        return "Nothing was measured."
    percent = [(ratio - 1) * 100 for ratio in ratios]
    return (
        f"Half of the medians are within {statistics.median(percent):.0f} % of their minimum, "
        f"and all within {max(percent):.0f} %."
    )


def versions(scenarios: list[dict[str, Any]], servers: list[str]) -> str:
    """Say which version each server in the table had, by the package that its name begins with."""
    found = set()
    for scenario in scenarios:
        for name in filter(scenario["servers"].__contains__, servers):
            installed = scenario["servers"][name]["versions"]
            wanted = {name, name.partition("-")[0], "python", "uvloop"}
            found |= {f"{package} {number}" for package, number in installed.items() if package in wanted}
    return ", ".join(sorted(found))


def table(stored: dict[str, Any], names: list[str], servers: list[str]) -> str:
    """Return the whole page: the conditions, the table, and the spread."""
    scenarios = [stored["scenarios"][name] for name in names]
    machine = stored["machine"]
    origin = [
        f"{machine['processor']}, {machine['kernel']}",
        versions(scenarios, servers),
        f"commit {stored['commit']}, {stored['date'][:10]}",
        f"the least of {stored['rounds']} rounds",
    ]
    if stored["seconds"] or stored["most_connections"]:
        origin.append("shortened, so that these figures are no result")
    titles = ["", "", *servers, f"{servers[0]} to the best other"]
    lines = [
        f"{'; '.join(origin)}.",
        "",
        f"| {' | '.join(titles)} |",
        f"| --- | --- |{' ---: |' * (len(servers) + 1)}",
        *(row(name, stored["scenarios"][name], servers) for name in names),
        "",
        spread(scenarios, servers),
    ]
    compressed = [name for name in names if "--deflate" in stored["scenarios"][name]["load"].split()]
    lines += [sizes(name, stored["scenarios"][name], servers) for name in compressed]
    return "\n".join(lines)


def main() -> int:
    """Print the table of a file of figures; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--scenario", help="some of those in the file, in the order wanted")
    parser.add_argument("--servers", help="some of those in the file, in the order wanted; the first one is compared")
    arguments = parser.parse_args()
    stored = json.loads(arguments.file.read_text(encoding="utf-8"))
    names = arguments.scenario.split(",") if arguments.scenario else list(stored["scenarios"])
    if unknown := [name for name in names if name not in stored["scenarios"]]:
        parser.error(f"{arguments.file} has no figures of {', '.join(unknown)}")
    everybody = dict.fromkeys(server for name in names for server in stored["scenarios"][name]["servers"])
    servers = arguments.servers.split(",") if arguments.servers else list(everybody)
    print(table(stored, names, servers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
