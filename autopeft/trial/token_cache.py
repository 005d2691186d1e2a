"""Tokens on disk: rows that were tokenised before, the same way, are read back in place of being tokenised again.

An entry is named by a hash of all that decides its content, the rows' own text among it; so nothing has to be thrown
away when data or tokenizer change. The folder is `autopeft/tokens` in `$XDG_CACHE_HOME`, else in `~/.cache`; it may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autopeft.records import canonical_json

LIMIT_BYTES = 2**30
"""Most that all entries take together; the ones not used for longest go first."""

_VERSIONS = tuple(version(package) for package in ("autopeft", "transformers", "tokenizers"))


def folder() -> Path:
    """Give the folder of the entries, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autopeft" / "tokens"


def tokens_of(encode: Callable[[], pa.Table], tokenizer: Any, *what: Any) -> pa.Table:
    """Give what `encode` gives, from disk if it gave it before.

    Args:
        tokenizer: Of transformers; one that is not of the library `tokenizers` says too little of itself, and its
            tokens are not kept.
        what: All else that the tokens depend on, as plain values.
    """
    fingerprint = _fingerprint(tokenizer)
    if fingerprint is None:
        return encode()
    content = canonical_json([_VERSIONS, fingerprint, what]).encode("utf-8", "surrogatepass")
    file = folder() / f"{hashlib.sha256(content).hexdigest()}.parquet"
    with contextlib.suppress(OSError, pa.ArrowException):  # it is not there, or damaged
        table = pq.read_table(file, page_checksum_verification=True)
        os.utime(file)
        return table
    table = encode()
    with contextlib.suppress(OSError):  # a disk that is full or read-only
        _write(table, file)
    return table


def _fingerprint(tokenizer: Any) -> list[Any] | None:
    """Say all that decides the tokens of a text; None where it cannot be said."""
    template = tokenizer.chat_template
    if not getattr(tokenizer, "is_fast", False) or "strftime_now" in str(template):  # it writes today's date
        return None
    backend = tokenizer.backend_tokenizer
    # What the last call left in it; each call sets its own.
    backend.no_truncation()
    backend.no_padding()
    sides = tokenizer.truncation_side, tokenizer.clean_up_tokenization_spaces
    names = type(tokenizer).__name__, list(tokenizer.model_input_names), tokenizer.special_tokens_map
    return [backend.to_str(), template, *sides, *names]


def _write(table: pa.Table, file: Path) -> None:
    """Write an entry whole or not at all, and drop the oldest ones that there is no room for."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    os.close(handle)
    try:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)
    entries = sorted(((path.stat(), path) for path in file.parent.iterdir()), key=lambda e: -e[0].st_mtime)
    held = 0
    for about, path in entries:
        held += about.st_size
        if held > LIMIT_BYTES:
            path.unlink(missing_ok=True)
