"""A small world for the tests of the faces: texts about fruits, a tokenizer that knows their words, the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
SMALL: Mapping[str, Any] = {
    "executor": "local", "space": "tiny", "budget": "none",
    "trials": 3, "steps": 2, "batch_size": 4, "max_length": 16, "eval_rows": 12,
    "final_seeds": 0,
}  # fmt: skip
"""A search of a second: the three configurations with which the space "tiny" starts."""

FRUITS = {"apple": "red green round sweet", "lemon": "yellow sour oval", "plum": "blue violet small"}
_WORDS = ["[PAD]", "</s>", "[UNK]", "[CLS]", "[SEP]", "<s>", *FRUITS, *" ".join(FRUITS.values()).split()]
_WORDS += ["a", "the", "fruit", "is", "what", "it", "and", "with", "which", "name", "user", "assistant", ":", ".", "?"]


_CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []  # read before a fixture says otherwise


def options(fields: Mapping[str, Any]) -> list[str]:
    """Write fields of a request as options of the command line."""
    return [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def fruit_rows(count: int) -> list[dict[str, str]]:
    """Make distinct texts with the fruit that they are of."""
    rows = []
    for number in range(count):
        fruit = list(FRUITS)[number % len(FRUITS)]
        looks = FRUITS[fruit].split()
        words = [looks[number % len(looks)], "fruit", *("a" if number >> bit & 1 else "the" for bit in range(6))]
        rows.append({"text": " ".join(words), "label": fruit})
    return rows


def write_jsonl(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tokenizer(folder: Path) -> None:
    """Put a tokenizer of a few dozen words beside a model, with a chat template."""
    ids = {word: number for number, word in enumerate(dict.fromkeys(_WORDS))}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", model_max_length=64
    ).save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def program() -> str:
    """Give the program that a user starts."""
    return str(Path(sys.executable).with_name("autopeft"))


def _on_one_core() -> None:
    """Keep to a core: two threads that wait for each other on a busy machine take minutes."""
    at = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # others may start a program, too
    if _CORES:
        os.sched_setaffinity(0, {_CORES[at % len(_CORES)]})


def run_program(*arguments: object, folder: Path) -> Ended:
    """Run the program in a folder, as a user would."""
    ended = subprocess.run(
        [program(), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
        preexec_fn=_on_one_core,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def start_program(*arguments: object, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the program with a process group of its own, as a shell does; its stderr goes to a file."""
    with log.open("wb") as errors:
        return subprocess.Popen(
            [program(), *map(str, arguments)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_on_one_core,
        )


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a log holds a text; the process must still run then."""
    deadline = time.monotonic() + 120
    while text not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
