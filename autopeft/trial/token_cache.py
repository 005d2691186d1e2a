"""Tokens on disk: rows that were tokenised before, the same way, are read back in place of being tokenised again.

An entry is named by a hash of all that decides its content, the rows' own text and the code that encodes them among it;
so nothing has to be thrown away when these change. It is the SHA-256 of a table in Parquet, then that table. The folder
is `autopeft/tokens` in `$XDG_CACHE_HOME`, else in `~/.cache`; it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autopeft.plain import canonical_json

LIMIT_BYTES = 2**30
"""Most that all entries take together; the ones not used for longest go first."""

_VERSIONS = tuple(version(package) for package in ("transformers", "tokenizers", "jinja2"))
_ENCODING = ("columns", "data", "prepared", "selection", "targets", "tokens")
"""Modules beside this one whose code decides the tokens of rows; autopeft's version says nothing between releases."""
_OF_NO_MATTER = {"name_or_path", "verbose"}
"""Attributes of a tokenizer that change no tokens."""
_DIGEST_BYTES = hashlib.sha256().digest_size


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
    content = canonical_json([_VERSIONS, _code(), fingerprint, what]).encode("utf-8", "surrogatepass")
    file = folder() / f"{hashlib.sha256(content).hexdigest()}.tokens"
    table = _read(file)
    if table is None:
        table = encode()
        with contextlib.suppress(OSError):  # a disk that is full or read-only
            _write(table, file)
    return table


@cache
def _code() -> str:
    """Hash the code that encodes rows."""
    sources = (files("autopeft.trial").joinpath(f"{module}.py").read_bytes() for module in _ENCODING)
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _fingerprint(tokenizer: Any) -> list[Any] | None:
    """Say all that decides the tokens of a text; None where it cannot be said."""
    template = tokenizer.chat_template
    if not getattr(tokenizer, "is_fast", False) or "strftime_now" in str(template):  # it writes today's date
        return None
    backend = tokenizer.backend_tokenizer
    # What the last call left in it; each call sets its own.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    # Side to cut, split_special_tokens, languages, ...: what each class needs is among its plain attributes.
    plain = {n: v for n, v in vars(tokenizer).items() if isinstance(v, bool | int | str) and n not in _OF_NO_MATTER}
    names = type(tokenizer).__name__, list(tokenizer.model_input_names), tokenizer.special_tokens_map
    return [backend.to_str(), template, plain, *names]


def _read(file: Path) -> pa.Table | None:
    """Read an entry; None where it is not there, or damaged."""
    with contextlib.suppress(OSError, ValueError, pa.ArrowException):
        content = memoryview(file.read_bytes())
        if hashlib.sha256(content[_DIGEST_BYTES:]).digest() == content[:_DIGEST_BYTES]:
            table = pq.read_table(pa.BufferReader(content[_DIGEST_BYTES:]))
            with contextlib.suppress(OSError):  # a folder that is read-only
                os.utime(file)
            return table
    return None


def _write(table: pa.Table, file: Path) -> None:
    """Write an entry whole or not at all, and drop the oldest ones that there is no room for."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue()
    if _DIGEST_BYTES + content.size > LIMIT_BYTES:
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.sha256(content).digest())
            out.write(content)
        os.replace(partial, file)
    finally:
        Path(partial).unlink(missing_ok=True)
    entries = sorted(((path.stat(), path) for path in file.parent.iterdir()), key=lambda e: -e[0].st_mtime)
    held = 0
    for about, path in entries:
        held += about.st_size
        if held > LIMIT_BYTES:
            path.unlink(missing_ok=True)
