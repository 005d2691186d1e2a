"""A file of the user's in YAML, read with faults that name the field and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from autopeft.errors import RequestError


def read_yaml(path: Path, *, field: str, form: str = "not YAML") -> Any:
    """Read what a file holds; None if it is empty.

    Args:
        field: What a fault is told of.
        form: What a file is said to be that cannot be read as YAML.

    Raises:
        RequestError: If the file cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{field}: cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{field}: {path} is {form}: {error}") from None
