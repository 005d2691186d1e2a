"""Which tokens are the answer: prompt and completion, whole texts, and conversations under real chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from autopeft.errors import SourceError
from autopeft.request_fields import make_request
from autopeft.trial.columns import LAYOUTS
from autopeft.trial.data import prepare
from autopeft.trial.demo import demo_model
from autopeft.trial.prepared import IGNORED
from autopeft.trial.tokens import encode_answers, prompt_and_answer

SHARED = Path(__file__).parents[2] / "../shared/data"
MODEL = SHARED / "stories260k-llama-hf"
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the folder ../shared/data is not here")

MESSAGES, PAIR, INSTRUCTION, TEXT = (layout for layout in LAYOUTS if layout.task == "causal-lm")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llama():
    return AutoTokenizer.from_pretrained(MODEL)


def encode(tokenizer, row, layout, max_length=512):
    return encode_answers([row], [1], tokenizer, layout=layout, max_length=max_length).to_pylist()[0]


def answer(tokenizer, row):
    assert len(row["labels"]) == len(row["input_ids"])
    said = [(token, label) for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert all(token == label for token, label in said)
    return tokenizer.decode([token for token, _ in said])


def asked(tokenizer, row):
    return tokenizer.decode([t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED])


@pytest.mark.parametrize("name", ["e2e_nlg", "nl2bash"])
def test_answer_tokens_decode_to_completion_and_eos(llama, name):
    request = make_request({"data": str(SHARED / name), "eval_rows": 100, "max_length": 512})
    prepared = prepare(request, llama, max_positions=512)
    found = [json.loads(line) for line in (SHARED / name / "train.jsonl").read_text().splitlines()]
    prompt, completion = ("source", "target") if name == "e2e_nlg" else ("prompt", "completion")
    for row in prepared.train.slice(0, 200).to_pylist():
        source = found[row["row"] - 1]
        if len(row["input_ids"]) < 512:
            assert answer(llama, row) == source[completion] + "</s>"
            assert row["answer_bytes"] == len(source[completion].encode())
        # The prompt has the tokens that it has when the model is asked.
        given = llama(source[prompt] + "\n")["input_ids"]
        assert row["input_ids"][: len(given)] == given
        assert row["labels"][: len(given)] == [IGNORED] * len(given)


@pytest.mark.parametrize(
    ("row", "layout", "parts"),
    [
        ({"prompt": "a", "completion": "b"}, PAIR, ("a\n", "b")),
        ({"prompt": "a ", "completion": "b"}, PAIR, ("a ", "b")),
        ({"prompt": "a", "completion": " b"}, PAIR, ("a", " b")),
        ({"instruction": "do", "input": "x", "output": "y"}, INSTRUCTION, ("do\nx\n", "y")),
        ({"instruction": "do", "input": "", "output": "y"}, INSTRUCTION, ("do\n", "y")),
        ({"text": "t"}, TEXT, ("", "t")),
    ],
)
def test_prompt_and_answer_are_parted_by_white_space(row, layout, parts):
    assert prompt_and_answer(row, layout) == parts


def test_a_whole_text_is_all_answer_after_bos(llama):
    row = encode(llama, {"text": "Once upon a time"}, TEXT)
    assert row["input_ids"][0] == llama.bos_token_id
    assert asked(llama, row) == "<s>"
    assert answer(llama, row) == "Once upon a time</s>"
    assert row["answer_bytes"] == 16


def test_bytes_are_those_of_the_predicted_text(llama):
    text = "Zoë saw a 🐶 today"
    assert encode(llama, {"text": text}, TEXT)["answer_bytes"] == len(text.encode()) == 21
    cut = encode(llama, {"prompt": "a", "completion": "the cat sat on the mat"}, PAIR, max_length=8)
    assert len(cut["input_ids"]) == 8
    assert "the cat sat on the mat".startswith(answer(llama, cut))
    assert cut["answer_bytes"] == len(answer(llama, cut)) > 0


def test_without_bos_the_first_token_is_context_only():
    """Nothing comes before it, so nothing predicts it; its bytes do not count."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer._tokenizer.post_processor = None
    row = encode(tokenizer, {"text": "the cat"}, TEXT)
    assert row["input_ids"][0] != tokenizer.bos_token_id
    assert row["labels"][0] == IGNORED
    first = tokenizer.decode(row["input_ids"][:1])
    assert row["answer_bytes"] == len("the cat") - len(first)


def test_a_tokenizer_with_cls_and_without_eos():
    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    row = encode(tokenizer, {"prompt": "hello", "completion": "world"}, PAIR)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "hello", "world"]
    assert answer(tokenizer, row) == "world"


# --- conversations ---

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
# As of reasoning models: thoughts of earlier turns are left out, the last turn has an empty one where it has none.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip() %}"
    "{% if loop.last %}<think>\n{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[0].split('<think>')[-1] }}"
    "{% endif %}{{ '\n' }}</think>\n\n{% endif %}{{ said }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no ' + m.role) }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

CHAT = [
    {"role": "user", "content": "one and one?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "two? I said two"},
]


@pytest.fixture
def chat(llama):
    llama.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})

    def chat(template, messages):
        llama.chat_template = template
        return encode(llama, {"messages": messages}, MESSAGES), llama

    return chat


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, "two<|im_end|>two? I said two<|im_end|>"),
        (THINKING, "two<|im_end|>two? I said two<|im_end|>"),
        (LLAMA2, "two </s>two? I said two </s>"),
        (PLAIN, "twotwo? I said two</s>"),
    ],
)
def test_answers_of_every_turn_and_their_closing(chat, template, said):
    row, tokenizer = chat(template, CHAT)
    assert answer(tokenizer, row).replace(" ", "") == said.replace(" ", "")
    assert row["answer_bytes"] == len("two") + len("two? I said two")
    whole = tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert row["input_ids"][: len(whole) - 1] == whole[: len(row["input_ids"])][: len(whole) - 1]


def test_marked_template_and_found_answers_agree(chat):
    marked, tokenizer = chat(MARKED, CHAT)
    found, _ = chat(CHATML, CHAT)
    assert tokenizer.decode(marked["input_ids"]) == tokenizer.decode(found["input_ids"])
    assert answer(tokenizer, marked) == answer(tokenizer, found)
    assert marked == found


def test_thoughts_belong_to_the_answer_where_the_template_keeps_them(chat):
    messages = [CHAT[0], {"role": "assistant", "content": "<think>hm</think>two"}]
    row, tokenizer = chat(THINKING, messages)
    assert answer(tokenizer, row) == "hm\n</think>\n\ntwo<|im_end|>"


def test_a_conversation_that_ends_with_the_user(chat):
    row, tokenizer = chat(CHATML, CHAT[:3])
    assert answer(tokenizer, row) == "two<|im_end|>"
    row, tokenizer = chat(PLAIN, CHAT[:3])
    assert answer(tokenizer, row) == "two"


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (None, CHAT, "no chat template; take an instruct model"),
        (LLAMA2, [{"role": "system", "content": "x"}, *CHAT], "refuses row 1 (no system); change or remove"),
    ],
)
def test_conversations_that_cannot_be_rendered(chat, template, messages, says):
    with pytest.raises(SourceError) as error:
        chat(template, messages)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "messages",
    [[], None, "hello", CHAT[:1], [{"role": "assistant", "content": ""}], [{"role": "assistant", "content": None}]],
)
def test_rows_without_a_turn_to_learn_are_named(llama, tmp_path, messages):
    llama.chat_template = CHATML
    good = {"messages": CHAT}
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in [good, {"messages": messages}, good]))
    with pytest.raises(SourceError, match=r"train: row 2 has no messages \(turns with role and text"):
        prepare(make_request({"data": str(tmp_path / "a.jsonl")}), llama, max_positions=512)


def test_conversations_from_a_file(llama, tmp_path):
    llama.chat_template = PLAIN
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i}", "extra": i}]}
        for i in range(30)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    prepared = prepare(make_request({"data": str(tmp_path / "a.jsonl")}), llama, max_positions=512)
    assert prepared.task == "causal-lm"
    assert prepared.validation.num_rows == 3
    for row in prepared.train.to_pylist():
        assert answer(llama, row) == f"{row['row'] - 1}</s>"
