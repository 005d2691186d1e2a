"""Search from Python, look at the front, load the pick.

Without arguments this searches the embedded model and data for a minute; with your own, write
`ap.search(model="...", data="...", budget="0.5%", trials=24)`.
"""

import sys

import autopeft as ap


def main(out: str | None = None, **fields: object) -> ap.Result:
    result = ap.search(budget="0.5%", time="60s", out=out, **fields)
    print(result.front[["trial", "quality", "params", "memory", "configuration"]])

    pick = result.best("knee")
    print("use", pick.candidate.values)
    model = pick.load()  # a PEFT model on its base; the same as PeftModel.from_pretrained(base, pick.adapter_dir)
    print(f"{type(model).__name__} with {model.num_parameters(only_trainable=False):,} parameters")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
