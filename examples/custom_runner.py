"""A space and a training of your own: autopeft proposes, keeps the budget, and finds the front.

The "training" here fits noisy polynomials to a sine by least squares; any function of a candidate and a number of
steps that returns a Measurement will do, such as a call of your own training script.
"""

import sys

import numpy as np

import autopeft as ap

SPACE = {
    "description": "Degree and regularisation of a polynomial.",
    "parameters": {
        "basis": {"choices": ["monomial", "chebyshev"]},
        "degree": {"ordinal": [1, 2, 3, 5, 7, 9, 12, 15], "size": True},
        "ridge": {"low": 1e-8, "high": 1.0, "log": True},
        "domain": {"low": 1.0, "high": 2.0, "when": {"basis": ["chebyshev"]}},
    },
    "start": [{"degree": 3, "ridge": 1e-4}],
}


def train(candidate: ap.Candidate, steps: int) -> ap.Measurement:
    """Fit to `steps` noisy points; the quality is minus the squared error on points without noise."""
    rng = np.random.default_rng(0)
    degree = int(candidate["degree"])

    def features(x: np.ndarray) -> np.ndarray:
        if candidate["basis"] == "chebyshev":
            return np.polynomial.chebyshev.chebvander(x / float(candidate["domain"]), degree)
        return np.polynomial.polynomial.polyvander(x, degree)

    x = rng.uniform(-1, 1, steps)
    y = np.sin(4 * x) + 0.1 * rng.standard_normal(steps)
    a = features(x)
    weights = np.linalg.solve(a.T @ a + float(candidate["ridge"]) * np.eye(degree + 1), a.T @ y)
    grid = np.linspace(-1, 1, 200)
    error = float(np.mean((features(grid) @ weights - np.sin(4 * grid)) ** 2))
    return ap.Measurement(
        quality=-error, trainable_params=degree + 1, metrics={"multiplications": multiplications(candidate)}
    )


def parameters(candidate: ap.Candidate) -> int:
    """What the budget is held to, before anything is trained."""
    return int(candidate["degree"]) + 1


def multiplications(candidate: ap.Candidate) -> float:
    """What a prediction costs; Chebyshev polynomials take two a degree."""
    return float(candidate["degree"]) * (2 if candidate["basis"] == "chebyshev" else 1)


@ap.objective(goal="minimize", known=multiplications)  # exact before any training: nothing to learn
def prediction_cost(measurement: ap.Measurement) -> float:
    return measurement.metrics["multiplications"]


def main(out: str | None = None) -> ap.Result:
    result = ap.search(
        runner=train,
        cost=parameters,
        space=SPACE,
        budget=10,
        objectives=["quality", "params", prediction_cost],
        steps=60,
        trials=30,
        out=out,
    )
    print(result.front[["trial", "quality", "params", "prediction_cost", "basis", "degree"]])
    return result


if __name__ == "__main__":
    main(*sys.argv[1:2])
