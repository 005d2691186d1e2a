"""Adapters that PEFT lacks: bottlenecks beside or behind a block, prefixes at chosen layers, and trained copies of the
base's own parameters.

Each is made by one function: (model, configuration) -> None, which changes the model in place, touches no original
parameter, and depends on no value of a tensor, so that it works on a model without storage too. `Resident.detach`
takes anything off again.
"""

from autopeft.trial.own.bottleneck import Bottleneck, attach_bottlenecks
from autopeft.trial.own.copies import attach_biases, copy_weights, train_copies
from autopeft.trial.own.prefix import Prefix, attach_prefixes

__all__ = [
    "Bottleneck",
    "Prefix",
    "attach_biases",
    "attach_bottlenecks",
    "attach_prefixes",
    "copy_weights",
    "train_copies",
]
