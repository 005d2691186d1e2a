"""The PEFT methods that a search can choose from: METHODS, one line each."""

from autopeft.methods import (
    adalora,
    beft,
    boft,
    c3a,
    cartridge,
    deft,
    delora,
    fourierft,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    miss,
    oft,
    osf,
    peanut,
    prompts,
    randlora,
    road,
    shira,
    supertuning,
    tinylora,
    unilora,
    vblora,
    vera,
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
            adalora.METHOD,
            loha.METHOD,
            lokr.METHOD,
            hira.METHOD,
            delora.METHOD,
            vera.VERA,
            vera.PVERA,
            randlora.METHOD,
            gralora.METHOD,
            shira.METHOD,
            miss.METHOD,
            osf.METHOD,
            vblora.METHOD,
            unilora.METHOD,
            tinylora.METHOD,
            peanut.METHOD,
            glora.METHOD,
            deft.METHOD,
            supertuning.METHOD,
            oft.METHOD,
            boft.METHOD,
            hra.METHOD,
            fourierft.METHOD,
            waveft.METHOD,
            c3a.METHOD,
            road.METHOD,
            beft.METHOD,
            cartridge.METHOD,
        )
    }
)

__all__ = ["METHODS", "Build", "Method", "Settings"]
