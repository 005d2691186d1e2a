"""An objective of your own: seconds of training, beside quality and parameters."""

import sys

import autopeft as ap


@ap.objective(goal="minimize", unit="s")
def seconds_a_step(measurement: ap.Measurement) -> float:
    """Any function of a Measurement will do; see its fields."""
    return measurement.train_seconds / measurement.steps


def main(out: str | None = None, **fields: object) -> ap.Result:
    result = ap.search(budget="0.5%", time="60s", objectives=["quality", "params", seconds_a_step], out=out, **fields)
    print(result.front[["trial", "quality", "params", "seconds_a_step", "configuration"]])
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
