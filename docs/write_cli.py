"""Writes docs/cli.md from the command line's own help; with --check, fails if the file says something else."""

import sys
from pathlib import Path

from typer.main import get_command

from autopeft.cli import app

HEAD = """# The command line

Written by `make docs` from the program's own help; do not edit.

| exit code | means |
|---|---|
| 0 | done |
| 2 | the request is wrong: each fault is named, with its remedy |
| 3 | nothing fits the budget: the smallest configuration is named, with its size |
| 4 | the model or the data cannot be read or used |
| 5 | the run directory is damaged or in use |
| 6 | every trial failed: the first traceback is shown |
| 7 | the time ran out before a first full trial |
| 130 | interrupted: `autopeft resume DIR` goes on |

`autopeft --install-completion` installs shell completion.
"""


def page() -> str:
    """Give the whole page."""
    parts = [HEAD]
    group = get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        parts.append(f"\n## autopeft {name}\n\n{command.help}\n\n| option | meaning |\n|---|---|\n")
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            shown = (
                ", ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else str(parameter.name).upper()
            )
            meaning = getattr(parameter, "help", None) or ""
            parts.append(f"| `{shown}` | {meaning} |\n")
    return "".join(parts)


def main() -> None:
    """Write the page, or check it."""
    path = Path(__file__).with_name("cli.md")
    if "--check" in sys.argv:
        if not path.exists() or path.read_text() != page():
            sys.exit("docs/cli.md is stale; run `make docs`")
    else:
        path.write_text(page())


if __name__ == "__main__":
    main()
