"""Trainable tokens: the embeddings of a few tokens are trained, those that the training data uses most.

Where the model's output layer shares the embedding's weight, it uses the trained rows too.

Source: PEFT (https://huggingface.co/docs/peft/package_reference/trainable_tokens); it has no paper.
"""

from __future__ import annotations

from autopeft.anatomy import Anatomy
from autopeft.methods.linears import one_size
from autopeft.methods.method import Build, Method, Settings, is_count


def _tokens(settings: Settings) -> int:
    return one_size(settings, "tokens", 16)


def build(settings: Settings, anatomy: Anatomy) -> Build:
    """Train ``tokens * token_dim`` scalars: the rows of the most frequent tokens, by falling frequency."""
    vocabulary = anatomy.vocabulary
    tokens = list(vocabulary.frequent[: _tokens(settings)])
    config = {"peft_type": "TRAINABLE_TOKENS", "target_modules": [vocabulary.embedding], "token_indices": tokens}
    places = (vocabulary.embedding, *vocabulary.tied)
    return Build({name: len(tokens) for name in places}, len(tokens) * anatomy.prompt.token_dim, config)


def refuses(settings: Settings, bits: int, anatomy: Anatomy) -> str:
    """The data must have that many tokens, and PEFT must find every place where the embedding is read."""
    vocabulary, tokens = anatomy.vocabulary, _tokens(settings)
    if vocabulary.copies:
        first = ", ".join(vocabulary.copies[:2])
        return f"the embedding {vocabulary.embedding!r} is read through {first} too, which PEFT does not train with it"
    known = len(vocabulary.frequent)
    return f"the training data has {known} different tokens; {tokens} cannot be trained" if tokens > known else ""


METHOD = Method(
    name="trainable_tokens",
    title="Trainable tokens",
    source="PEFT's own",
    learning_rate=1e-3,
    learning_rate_source="as for P-tuning: it too trains embeddings",
    settings={"tokens": "how many of the training data's most frequent tokens"},
    allowed={"tokens": is_count},
    build=build,
    refuses=refuses,
    # PEFT trains no new head beside it.
    tasks=("causal-lm",),
    reaches_kinds=False,
)
