"""The PEFT methods that a search can choose from: METHODS, one line each."""

from autopeft.methods import (
    adaption_prompt,
    beft,
    boft,
    c3a,
    cartridge,
    fourierft,
    frod,
    hra,
    ia3,
    ln_tuning,
    lora,
    oft,
    prompts,
    road,
    trainable_tokens,
    waveft,
)
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
            oft.METHOD,
            boft.METHOD,
            hra.METHOD,
            fourierft.METHOD,
            waveft.METHOD,
            c3a.METHOD,
            road.METHOD,
            beft.METHOD,
            cartridge.METHOD,
            adaption_prompt.METHOD,
            trainable_tokens.METHOD,
            frod.METHOD,
        )
    }
)

__all__ = ["METHODS", "Build", "Method", "Settings"]
