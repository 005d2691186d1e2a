"""What of PEFT a search does not offer, and why; `tests/contracts/test_not_offered.py` shows that each reason holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NotOffered:
    """A method of PEFT that does not pass the contract.

    Attributes:
        peft_type: Its name in PEFT.
        source: Where it comes from.
        reason: What of the contract it breaks.
    """

    peft_type: str
    title: str
    source: str
    reason: str


NOT_OFFERED = (
    NotOffered(
        "MULTITASK_PROMPT_TUNING",
        "Multitask prompt tuning",
        "arXiv:2303.02861",
        "it fails without a task id for every row, and a search has one task",
    ),
    NotOffered(
        "POLY",
        "Polytropon",
        "arXiv:2202.13914",
        "it fails without a task id for every row, and a search has one task",
    ),
    NotOffered(
        "XLORA",
        "X-LoRA",
        "arXiv:2402.07148",
        "it mixes LoRA adapters that were trained before; without them its loss depends on nothing that is trained",
    ),
    NotOffered(
        "CPT",
        "Context-aware prompt tuning",
        "arXiv:2410.17222",
        "its loss is not a number unless each token of its context is marked as template, input or label by hand",
    ),
    NotOffered(
        "ADAMSS",
        "AdaMSS",
        "PEFT's own documentation",
        "how much it trains depends on a clustering of the weights, so that it is not known before they are read",
    ),
    NotOffered(
        "LILY",
        "Lily",
        "PEFT's own documentation",
        "what it shares between layers goes by the end of a name; of modules that are named whole, it shares nothing",
    ),
    NotOffered(
        "SHADOW",
        "ShadowPEFT",
        "PEFT's own documentation",
        "what it adds to the last layer never gets a gradient, so that its count is not of what is trained",
    ),
    NotOffered(
        "PSOFT",
        "PSOFT",
        "openreview FSHrinMArK",
        "what it rotates is decomposed anew when it is loaded, and another library's singular vectors have other signs",
    ),
    NotOffered(
        "ADAMSS",
        "AdaMSS",
        "PEFT's own documentation",
        "which outputs belong together is computed anew when it is loaded, and is another on a base of other bits",
    ),
    NotOffered(
        "LILY",
        "Lily",
        "arXiv:2407.09946",
        "its router takes the mean over all rows, so that an answer depends on what else is in the batch",
    ),
)
