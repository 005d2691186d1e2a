"""What of PEFT a search does not offer, and why; `tests/contracts/test_not_offered.py` shows that each reason holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NotOffered:
    """A method of PEFT, or an option of one that is offered, that does not pass the contract.

    Attributes:
        peft_type: Its name in PEFT.
        source: Where it comes from.
        reason: What of the contract it breaks.
        option: The field and value of the method's configuration, where only that is not offered.
    """

    peft_type: str
    title: str
    source: str
    reason: str
    option: str = ""


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
        "it clusters the weights: how much it trains is not known before they are read, and on a base of other bits "
        "the clusters are others",
    ),
    NotOffered(
        "LILY",
        "Lily",
        "arXiv:2407.09946",
        "its router takes the mean over all rows, so that an answer depends on what else is in the batch; modules that "
        "are named whole share nothing",
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
        "openreview:FSHrinMArK",
        "what it rotates is decomposed anew when it is loaded, and another device's singular vectors have other signs",
    ),
    NotOffered(
        "FROD",
        "FRoD",
        "doi:10.1609/aaai.v40i31.39813",
        "it saves one factor of each weight and computes the other anew when it is loaded, from eigenvectors that have "
        "other signs on another device",
    ),
    NotOffered(
        "DEFT",
        "DEFT projected by QR",
        "PEFT 0.21 (DeftConfig)",
        "what stands in the subspace is trained for the signs of a decomposition that is done anew when it is loaded; "
        "the other projection is offered",
        "decomposition_method=qr",
    ),
    NotOffered(
        "LORA",
        "LoRA begun by CorDA",
        "arXiv:2406.05223",
        "it fails unless every weight was decomposed before with the covariance of its inputs, which takes square "
        "matrices as large as the weights; eva begins with the inputs too and is offered",
        "init_lora_weights=corda",
    ),
    NotOffered(
        "LORA",
        "LoRA begun by LoRA-GA",
        "arXiv:2407.05000",
        "it needs the gradient of every weight, the memory of full fine-tuning, and without one begins as plain LoRA "
        "and says nothing",
        "init_lora_weights=lora_ga",
    ),
    NotOffered(
        "LORA",
        "LoRA begun by MiCA",
        "arXiv:2604.01694",
        "it trains one of the two factors, so that it would be a method of its own with half the count",
        "init_lora_weights=mica",
    ),
    NotOffered(
        "LORA",
        "LoRA with all biases",
        "arXiv:2106.09685",
        "PEFT trains the biases of the whole model in place; `lora.bias: linears` trains those of what is adapted, and "
        "`lora+bitfit` those that the user chooses",
        "bias=all",
    ),
)
