"""Sunspots: a forecast of a real series against the naive ones, with intervals from sampled runs.

The yearly numbers of sunspots, 1700 to 2008 (from statsmodels), as square roots, which makes their errors
about as large at high numbers as at low ones.  A GRU reads the series and says the next year's number:

    o_t = V h_t + c,    L = mean (o_t - x_{t+1})^2

It is trained on the years to 1888 and judged on those from 1929 on: one year ahead, against the naive
forecasts "as this year" and "as a cycle, eleven years, ago"; and a cycle ahead, fed with its own outputs.
Runs with errors added to what is fed back give the intervals; the errors are drawn from those that it made
one year ahead from 1889 to 1928, which it was not trained on (Hyndman & Athanasopoulos, "Forecasting:
principles and practice", 2021, section 5.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.models import ManyToMany
from fastrnn.sampling import forecast
from fastrnn.training import Adam, cosine_learning_rate, fit, mean_squared_error
from lecture import COLOURS, panels, parser, save

TRAINED, TESTED = 1888, 1928  # the last year of each part
CYCLE, WINDOW = 11, 45


def train(series: Any, steps: int) -> ManyToMany:
    """Fit to windows of the series, (T, 1, 1), drawn at random."""
    model = ManyToMany(fastrnn.GRU(1, 16, seed=0), 1, seed=1)
    rng = np.random.default_rng(0)

    def batches(epoch: int) -> Iterator[Any]:
        for _ in range(100):
            starts = rng.integers(len(series) - WINDOW, size=32)
            x = np.concatenate([series[start : start + WINDOW + 1] for start in starts], axis=1)
            yield x[:-1], x[1:]

    fit(
        model,
        batches,
        loss=mean_squared_error,
        optimizer=Adam([model]),
        steps=steps,
        learning_rate=lambda k: cosine_learning_rate(k / steps, 0.01),
        clip=1.0,
    )
    return model.eval()


def root_mean_square(errors: Any) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=200, help="updates")
    options = arguments.parse_args(argv)
    from statsmodels.datasets import sunspots

    data = sunspots.load_pandas().data
    years, numbers = data["YEAR"].to_numpy().astype(int), data["SUNACTIVITY"].to_numpy()
    roots = np.sqrt(numbers)
    mean, deviation = roots[years <= TRAINED].mean(), roots[years <= TRAINED].std()
    series = ((roots - mean) / deviation).astype("float32")[:, None, None]

    def as_numbers(values: Any) -> Any:
        return np.maximum(values * deviation + mean, 0) ** 2

    model = train(series[years <= TRAINED], options.steps)
    o, _ = model(series[:-1])  # o[t] is for years[t + 1]
    later, unseen = years[1:] > TESTED, (years[1:] > TRAINED) & (years[1:] <= TESTED)
    one_year = {
        "GRU": root_mean_square(as_numbers(o[later, 0, 0]) - numbers[1:][later]),
        "as this year": root_mean_square(np.diff(numbers)[later]),
        "as a cycle ago": root_mean_square((numbers[CYCLE:] - numbers[:-CYCLE])[years[CYCLE:] > TESTED]),
    }
    for name, error in one_year.items():
        print(f"one year ahead, {name:14} root mean square error {error:.1f}")

    # All origins at once, each with the 100 years before it as its history.
    origins = np.flatnonzero((years >= TESTED) & (years <= years[-1] - CYCLE))
    history = np.stack([series[origin - 99 : origin + 1, 0] for origin in origins], axis=1)
    residuals = (series[1:] - o)[unseen, 0]
    found = forecast(model, history, CYCLE, samples=300, noise=residuals, quantiles=(0.05, 0.95), seed=0)
    truth = np.stack([numbers[origin + 1 : origin + 1 + CYCLE] for origin in origins], axis=1)
    low, high = as_numbers(found.intervals[..., 0])
    inside = float(((low <= truth) & (truth <= high)).mean())
    path = as_numbers(found.path[..., 0])
    again = np.stack([numbers[origin + 1 - CYCLE : origin + 1] for origin in origins], axis=1)
    forecasts = {"GRU": path, "as this year": numbers[origins], "as a cycle ago": again}
    cycle = {name: root_mean_square(made - truth) for name, made in forecasts.items()}
    for name, error in cycle.items():
        print(f"1 to {CYCLE} years ahead, {name:14} {error:.1f}")
    print(f"{inside:.0%} of the numbers are inside the intervals of 90 %")

    figure, axes = panels(2, "Sunspots: forecasts after 1928 of a GRU trained up to 1888")
    figure.set_size_inches(12, 4)
    shown = years > 1880
    axes[0].plot(years[shown], numbers[shown], color="0.4", label="sunspots")
    for i in (20, 45, 60):
        ahead = years[origins[i]] + 1 + np.arange(CYCLE)
        axes[0].fill_between(ahead, low[:, i], high[:, i], color=COLOURS[0], alpha=0.25, lw=0)
        axes[0].plot(ahead, path[:, i], color=COLOURS[0], lw=2, label="forecast, 90 %" if i == 20 else None)
    axes[0].axvspan(TRAINED, TESTED, color=COLOURS[3], alpha=0.15, lw=0, label="errors measured")
    axes[0].set(title="a cycle ahead", xlabel="year", ylabel="sunspots")
    axes[0].legend(fontsize=8, loc="upper left")
    for colour, (name, made) in zip(COLOURS, forecasts.items(), strict=False):
        errors = [root_mean_square(error) for error in made - truth]
        axes[1].plot(1 + np.arange(CYCLE), errors, "o-", color=colour, label=name)
    axes[1].set(title="root mean square error", xlabel="years ahead", ylim=(0, None))
    axes[1].legend()
    save(figure, options.out, __file__)
    return {"one_year": one_year, "cycle": cycle, "inside": inside}


if __name__ == "__main__":
    main()
