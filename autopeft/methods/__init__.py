"""The PEFT methods that a search can choose from: METHODS, one line each."""

from autopeft.methods import bitfit, bottleneck, full, hybrids, ia3, ln_tuning, lora, prompts
from autopeft.methods.method import Build, Method, Settings
from autopeft.registry import Table

METHODS: Table[Method] = Table(
    {
        m.name: m
        for m in (
            lora.METHOD,
            ia3.METHOD,
            ln_tuning.METHOD,
            prompts.PROMPT_TUNING,
            prompts.PREFIX_TUNING,
            prompts.P_TUNING,
            bottleneck.SERIAL,
            bottleneck.PARALLEL,
            bitfit.METHOD,
            full.FULL,
            full.TOP_LAYERS,
            *hybrids.HYBRIDS,
        )
    }
)

__all__ = ["METHODS", "Build", "Method", "Settings"]
