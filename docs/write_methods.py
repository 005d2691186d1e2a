"""Writes docs/methods.md from the table of methods and the contract tests' own cases; --check fails if it is stale."""

import re
import sys
from collections import Counter, defaultdict
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "contracts")]

import test_bits  # noqa: E402
import test_export  # noqa: E402
import test_methods  # noqa: E402
from configurations import candidates  # noqa: E402
from families import LABELS, TOKENS, make_model  # noqa: E402

from autopeft.anatomy import Anatomy  # noqa: E402
from autopeft.candidates import Candidate  # noqa: E402
from autopeft.labels import show_rate  # noqa: E402
from autopeft.methods import METHODS  # noqa: E402
from autopeft.methods.capabilities import capabilities  # noqa: E402
from autopeft.methods.not_offered import NOT_OFFERED  # noqa: E402
from autopeft.plans import unfit  # noqa: E402
from autopeft.trial.model import ModelSource  # noqa: E402
from autopeft.trial.reading import read_anatomy  # noqa: E402

HEAD = """# Methods

Written by `make docs` from the table of methods and from the contract tests; do not edit.

A method is here only if it trains, exports, is loaded again to the same logits, leaves the base bit for bit as it was,
and has on a quantised base the gradients of the dense base that this stands for. `autopeft methods` prints this too.
"""


def row(*cells: object) -> str:
    """Give one line of a table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


def table(columns: list[str], rows: list[list[object]]) -> str:
    """Give a whole table."""
    return row(*columns) + "|---" * len(columns) + "|\n" + "".join(row(*cells) for cells in rows)


def offered() -> str:
    """Give what each method can do."""
    rows: list[list[object]] = []
    for method in METHODS.values():
        can = capabilities(method)
        learning_rate = f"{show_rate(method.learning_rate)}: {method.learning_rate_source}"
        rows.append(
            [
                f"`{method.name}` {method.title}",
                *(", ".join(map(str, can[name])) for name in ("bits", "tasks", "may differ per")),  # type: ignore[call-overload]
                *("yes" if can[name] else "no" for name in ("mergeable", "starts at identity")),
                learning_rate,
                method.source,
            ]
        )
    columns = ["method", "bits", "tasks", "may differ per", "merges", "starts at identity", "learning rate", "source"]
    return table(columns, rows)


def settings() -> str:
    """Give what can be set of each method."""
    lines = []
    for method in METHODS.values():
        for name, meaning in method.settings.items():
            per = f" (per {', '.join(method.spread[name])})" if name in method.spread else ""
            lines.append(f"| `{method.name}.{name}` | {meaning}{per} |\n")
    return "| setting | meaning |\n|---|---|\n" + "".join(lines)


@cache
def anatomy_of(family: str, task: str) -> Anatomy:
    """Describe one of the tests' small models."""
    folder = make_model(family, task, Path(mkdtemp()))
    labels = LABELS if task == "text-classification" else ()
    return read_anatomy(ModelSource(str(folder), task, labels)).on_data(TOKENS)  # type: ignore[arg-type]


def tried() -> list[tuple[Candidate, str, str]]:
    """Give every case of the contract tests: (candidate, family, task)."""
    cases = [(candidates(method)[i], family, task) for family, task, method, i in test_methods.CASES]
    cases += [(test_bits.candidate_for(name, bits), family, task) for family, task, name, bits in test_bits.CASES]
    gradients = product(test_bits.PAIRS, test_bits.CONFIGURATIONS, (8, 4))
    cases += [(test_bits.candidate_for(name, bits), *pair) for pair, name, bits in gradients]
    for bits in ((32, 16), (32, 8, 4)):
        cases += [
            (Candidate({**test_export.CONFIGURATIONS[name], "bits": b}), *pair)
            for pair, name, b in test_export.product_of(bits)
        ]
    return cases


def contract() -> str:
    """Count the pairs of method, family, task and bits that the contract tests try, and those that are refused."""
    reasons: dict[tuple[str, str, str, int], list[str]] = defaultdict(list)
    for candidate, family, task in tried():
        pair = (str(candidate["method"]), family, task, int(candidate["bits"]))
        reasons[pair].append(unfit(candidate, anatomy_of(family, task)))
    run = Counter(method for (method, *_), said in reasons.items() if not all(said))
    refused: dict[str, Counter[str]] = defaultdict(Counter)
    for (method, *_), said in reasons.items():
        if all(said):
            refused[method][re.sub(r"'[^']*'", "...", said[0])] += 1
    total = len(reasons)
    passed = sum(run.values())
    rows: list[list[object]] = [
        [
            f"`{method}`",
            run[method],
            sum(refused[method].values()),
            "; ".join(f"{reason} ({n})" for reason, n in refused[method].items()),
        ]
        for method in METHODS
    ]
    return (
        f"Of {total} pairs of a method with a family, a task and bits, {passed} are tried by the tests; the other "
        f"{total - passed} are refused before any training, with the reason that stands here. "
        "Not every one is tried in every way: `tests/contracts` says which.\n\n"
        + table(["method", "tried", "refused", "why"], rows)
    )


def page() -> str:
    """Give the whole page."""
    kept_out = table(["method", "source", "why"], [[m.title, m.source, m.reason] for m in NOT_OFFERED])
    return (
        f"{HEAD}\n{offered()}\n## Settings\n\n{settings()}"
        f"\n## Methods of PEFT that are not offered\n\n{kept_out}\n## The contract in numbers\n\n{contract()}"
    )


def main() -> None:
    """Write the page, or check it."""
    path = Path(__file__).with_name("methods.md")
    text = page()
    if "--check" in sys.argv:
        if not path.exists() or path.read_text() != text:
            sys.exit("docs/methods.md is stale; run `make docs`")
    else:
        path.write_text(text)


if __name__ == "__main__":
    main()
