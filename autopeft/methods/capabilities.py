"""What each method can do, as plain values: the same for the command line and for the docs."""

from __future__ import annotations

from autopeft.methods.method import Method


def capabilities(method: Method) -> dict[str, object]:
    """Give a method's row of the table of methods."""
    return {
        "name": method.name,
        "title": method.title,
        "bits": list(method.bits),
        "tasks": list(method.tasks),
        "mergeable": method.mergeable,
        "starts at identity": method.starts_at_identity,
        "may differ per": sorted({per for pers in method.spread.values() for per in pers}, reverse=True),
        "learning rate": method.learning_rate,
        "learning rate from": method.learning_rate_source,
        "source": method.source,
    }
