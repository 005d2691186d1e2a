"""What the columns of the data mean: the layouts that are understood, and which of them the data has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.anatomy import Task
from autopeft.errors import SourceError


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to write a row down: the roles that columns must and may have."""

    task: Task
    roles: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The roles that the model is given, as opposed to what it must say."""
        answers = ("label", "label_text", "completion", "output")
        return tuple(role for role in (*self.roles, *self.optional) if role not in answers)


LAYOUTS = (
    Layout("text-classification", ("text", "label"), ("text_pair", "label_text")),
    Layout("causal-lm", ("messages",)),
    Layout("causal-lm", ("prompt", "completion")),
    Layout("causal-lm", ("instruction", "output"), ("input",)),
    Layout("causal-lm", ("text",)),
    Layout("seq2seq-lm", ("messages",)),
    Layout("seq2seq-lm", ("prompt", "completion")),
    Layout("seq2seq-lm", ("instruction", "output"), ("input",)),
)
"""Every layout; of those for one task that fit, the first is taken."""

ALIASES = {
    "text": ("sentence", "sentence1", "premise", "question1", "content", "review", "utterance"),
    "label": ("labels", "class", "category", "intent"),
    "prompt": ("question", "source", "query"),
    "completion": ("answer", "target", "response"),
    "output": ("response",),
    "messages": ("conversation",),
}
"""Role -> names that a column may have instead of the role's own, best first."""

_PARTNERS = {"sentence1": "sentence2", "premise": "hypothesis", "question1": "question2"}

Columns = Mapping[str, str]
"""Role -> column."""


def find_layout(
    found: Sequence[str], *, task: str, columns: Columns, answering: Task = "causal-lm"
) -> tuple[Layout, dict[str, str]]:
    """Decide what the columns found mean.

    Args:
        found: Names of the columns of the train split.
        task: A task, or "auto" to decide by the columns.
        columns: What the user said: role -> column; it comes before every guess.
        answering: The task that texts with answers are for where the columns decide; the model settles it.

    Returns:
        The layout, and the column of each of its roles that the data has.

    Raises:
        SourceError: If a named column is missing, nothing fits, or two tasks fit.
    """
    missing = {role: column for role, column in columns.items() if column not in found}
    if missing:
        named = ", ".join(f"{role}={column}" for role, column in missing.items())
        raise SourceError(f"columns: {named}: no such column; the data has {', '.join(found)}")
    tasks = ("text-classification", answering) if task == "auto" else (task,)
    fits = []
    for layout in LAYOUTS:
        if layout.task in tasks and (match := _match(layout, found, columns)) is not None:
            fits.append((layout, match))
    if not fits:
        raise SourceError(_nothing_fits(found, tasks, columns))
    if len({layout.task for layout, _ in fits if layout.roles != ("text",)}) > 1:
        first = {layout.task: ", ".join(match.values()) for layout, match in reversed(fits)}
        choices = " or ".join(f"--task {name} ({used})" for name, used in sorted(first.items()))
        raise SourceError(f"task: the data fits two tasks; choose {choices}")
    return fits[0]


def _match(layout: Layout, found: Sequence[str], columns: Columns) -> dict[str, str] | None:
    if not set(columns) <= {*layout.roles, *layout.optional}:
        return None
    match: dict[str, str] = {}
    for role in (*layout.roles, *layout.optional):
        names = (columns[role],) if role in columns else (role, *ALIASES.get(role, ()))
        if role == "text_pair" and role not in columns and (partner := _PARTNERS.get(match["text"])):
            names = (partner,)
        column = next((name for name in names if name in found and name not in match.values()), None)
        if column is not None:
            match[role] = column
        elif role in layout.roles:
            return None
    return match


def _nothing_fits(found: Sequence[str], tasks: Sequence[str], columns: Columns) -> str:
    wanted = [layout for layout in LAYOUTS if layout.task in tasks]
    needs = "; or ".join(" and ".join(layout.roles) for layout in wanted)
    given = f" with {', '.join(f'{r}={c}' for r, c in columns.items())}" if columns else ""
    roles = " ".join(f"--column {role}=NAME" for role in wanted[0].roles)
    alone = " A text alone has no target for an encoder-decoder to say." if "seq2seq-lm" in tasks else ""
    return (
        f"columns: the data has {', '.join(found)}, which{given} does not fit {' or '.join(tasks)}: needed are {needs}."
        f"{alone} Say which columns they are, e.g. {roles}"
    )
