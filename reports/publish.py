"""Publishes a run under reports/: its front as a table, CSV and picture, with the command, the versions and the commit.

    python reports/publish.py RUN_DIR NAME "COMMAND"

The whole interactive report stays in the run directory: it is 5 MB, and the command makes it again.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from autopeft.labels import describe, show_value
from autopeft.objectives import DEFAULT_METRIC
from autopeft.report import front_svg, write_csv
from autopeft.result import Result
from autopeft.units import show_percent, show_seconds


def page(result: Result, name: str, command: str, commit: str) -> str:
    """Give the page of a run as Markdown."""
    info, objectives = result.info, result.objectives
    by_number = {r.number: r for r in result.records}
    picks: dict[int, list[str]] = {}
    for pick_name, pick in result.picks.items():
        picks.setdefault(pick.record.number, []).append(pick_name)
    states = [r.state for r in result.records]
    complete = [r for r in result.records if r.state == "complete"]
    lines = [
        f"# {name}",
        "",
        f"```\n{command}\n```",
        "",
        f"Commit {commit}, {info.created_at[:10]}. "
        + ", ".join(f"{package} {version}" for package, version in info.versions.items())
        + f". {info.hardware.get('cpu', '')}, {info.hardware['cores']} cores.",
        "",
        f"Trials: {', '.join(f'{states.count(s)} {s}' for s in dict.fromkeys(states))}; "
        f"median time of one {show_seconds(sorted(r.seconds for r in complete)[len(complete) // 2])}. "
        f"Budget {info.parameter_limit:,} parameters"
        f" ({show_percent(info.parameter_limit / info.anatomy['base_params'])} of the model), "
        f"{sum(info.anatomy['head'].values()):,} of which a new task head takes.",
        "",
        "![front](front.svg)",
        "",
        "| trial | pick | " + " | ".join(o.name for o in objectives) + " | configuration |",
        "|---|---|" + "---|" * len(objectives) + "---|",
    ]
    for number in (int(n) for n in result.front["trial"]):
        record = by_number[number]
        values = " | ".join(show_value(record.values[o.name], o.unit) for o in objectives)
        lines.append(f"| {number} | {', '.join(picks.get(number, []))} | {values} | {describe(record)} |")
    metric = result.info.request["metric"] or DEFAULT_METRIC[info.data["task"]]
    lines += ["", f"Quality is {metric} on the validation split, one seed: small differences are noise.", ""]
    return "\n".join([*lines, *finalists(result)])


def finalists(result: Result) -> list[str]:
    """Give what the finalists gave with other seeds, and the verdict, as lines of Markdown; none without repeats."""
    if not result.verdict:
        return []
    head = ("trial", "configuration", "search", "validation", "test", "gain over tuned LoRA")
    lines = ["## The finalists, trained again", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in result.finalists.to_dict("records"):
        means = [_and(row[split], f" ± {row[f'{split}_spread']:.3f}") for split in ("validation", "test")]
        gain = _and(row["gain"], f" ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})", sign="+")
        cells = (row["trial"], row["configuration"], f"{row['search']:.3f}", *means, gain)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    seeds = int(result.finalists["seeds"].max())
    return [*lines, "", f"Mean and deviation of {seeds} new seeds, where there was time for them. {result.verdict}", ""]


def _and(value: float, spread: str, *, sign: str = "") -> str:
    """Show a value with what is said of its spread, where there is either."""
    if pd.isna(value):
        return ""
    return f"{value:{sign}.3f}" + ("" if "nan" in spread else spread)


def main() -> None:
    """Write the page, the CSV and the picture."""
    run_dir, name, command = sys.argv[1:4]
    result, folder = Result(run_dir), Path(__file__).parent / name
    folder.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    (folder / "README.md").write_text(page(result, name, command, commit.strip()), encoding="utf-8")
    (folder / "front.svg").write_text(front_svg(result.info, result.records, result.objectives), encoding="utf-8")
    named = {name: pick.record.number for name, pick in result.picks.items()}
    write_csv(result.records, result.objectives, folder / "front.csv", named=named)


if __name__ == "__main__":
    main()
