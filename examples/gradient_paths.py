"""Back-propagation through time, path by path and formula by formula, held against `layer.backward`.

Three paths.  Two hidden layers over two steps, h_t = tanh(U x_t + W h_{t-1}), s_t = tanh(A h_t + R s_{t-1}),
y = v s_2.  The weight U meets the loss by three ways, and dL/dU is their sum:

    x_2 -> h_2 -> s_2        x_1 -> h_1 -> h_2 -> s_2        x_1 -> h_1 -> s_1 -> s_2

A chain.  One layer, the loss after three steps:

    dL/dW = sum_k dL/ds_3 (ds_3/ds_k) (ds_k/dW),   ds_3/ds_k = prod_{j=k+1..3} diag(1 - s_j^2) W

All five.  h_t = tanh(b + W h_{t-1} + U x_t), o_t = c + V h_t, softmax and cross entropy at every step
(Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.2.2, equations 10.17 to 10.28):

    dL/do_t = p_t - 1_{y_t}          dL/dh_t = W^T diag(1 - h_{t+1}^2) dL/dh_{t+1} + V^T dL/do_t
    dL/dc = sum_t dL/do_t            dL/db = sum_t diag(1 - h_t^2) dL/dh_t
    dL/dV = sum_t dL/do_t h_t^T      dL/dW = sum_t diag(1 - h_t^2) dL/dh_t h_{t-1}^T
                                     dL/dU = sum_t diag(1 - h_t^2) dL/dh_t x_t^T
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastrnn
import numpy as np
from fastrnn.models import ManyToMany
from fastrnn.training import softmax_cross_entropy
from lecture import COLOURS, panels, parser, save


def error(found: Any, expected: Any) -> float:
    """Largest difference, relative to the largest entry."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def softmax(o: Any) -> Any:
    e = np.exp(o - o.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def three_paths() -> tuple[dict[str, Any], Any]:
    """dL/dU of L = y by each path, and as the layer's backward has it."""
    H = 3
    layer = fastrnn.RNN(2, H, num_layers=2, bias=False, dtype="float64", seed=0)
    W, A, R = (layer.parameters[name] for name in ("weight_hh_l0", "weight_ih_l1", "weight_hh_l1"))
    U = layer.parameters["weight_ih_l0"]
    x = np.random.default_rng(0).normal(size=(2, 1, 2))
    v = np.ones(H)

    # Forward by hand, for the slopes 1 - h^2 at each step.
    h_1 = np.tanh(U @ x[0, 0])
    h_2 = np.tanh(U @ x[1, 0] + W @ h_1)
    s_1 = np.tanh(A @ h_1)
    s_2 = np.tanh(A @ h_2 + R @ s_1)
    slope_h1, slope_h2, slope_s1, slope_s2 = (np.diag(1 - a**2) for a in (h_1, h_2, s_1, s_2))

    to_h2 = v @ slope_s2 @ A @ slope_h2
    paths = {
        "x2 h2 s2": np.outer(to_h2, x[1, 0]),
        "x1 h1 h2 s2": np.outer(to_h2 @ W @ slope_h1, x[0, 0]),
        "x1 h1 s1 s2": np.outer(v @ slope_s2 @ R @ slope_s1 @ A @ slope_h1, x[0, 0]),
    }
    y, _ = layer(x)
    dy = np.zeros_like(y)
    dy[-1] = v
    layer.backward(dy)
    return paths, layer.gradients["weight_ih_l0"]


def three_step_chain() -> tuple[list[Any], Any]:
    """What each of three steps adds to dL/dW, and dL/dW by the layer, for L = sum(s_3)."""
    H, T = 4, 3
    layer = fastrnn.RNN(2, H, bias=False, dtype="float64", seed=3)
    W = layer.parameters["weight_hh_l0"]
    rng = np.random.default_rng(1)
    x, start = rng.normal(size=(T, 1, 2)), rng.normal(size=(1, 1, H))
    s, _ = layer(x, start)
    states = [start[0, 0], *s[:, 0]]  # s_0 .. s_3
    terms = []
    chain = np.ones(H)  # dL/ds_3
    for k in range(T, 0, -1):
        before_tanh = chain * (1 - states[k] ** 2)
        terms.append(np.outer(before_tanh, states[k - 1]))  # ds_k/dW, with s_{k-1} held fixed
        chain = before_tanh @ W  # ds_k/ds_{k-1}
    dy = np.zeros_like(s)
    dy[-1] = 1
    layer.backward(dy)
    return terms, layer.gradients["weight_hh_l0"]


def all_formulas() -> dict[str, tuple[Any, Any]]:
    """Gradients of V, W, U, b and c: by the formulas, and by the model's backward."""
    T, inputs, H, outputs = 6, 3, 5, 4
    model = ManyToMany(fastrnn.RNN(inputs, H, dtype="float64", seed=4), outputs, seed=5)
    W, V = model.parameters["layer.weight_hh_l0"], model.parameters["readout.weight"]
    rng = np.random.default_rng(2)
    x, targets = rng.normal(size=(T, 1, inputs)), rng.integers(0, outputs, (T, 1))

    h = model.layer(x)[0][:, 0]
    o, _ = model(x)
    dL_do = softmax(o[:, 0]) - np.eye(outputs)[targets[:, 0]]
    slope = 1 - h**2
    dL_da = np.zeros_like(h)  # in the sum that tanh is taken of, diag(1 - h_t^2) dL/dh_t
    for t in reversed(range(T)):
        from_the_future = W.T @ dL_da[t + 1] if t + 1 < T else 0
        dL_da[t] = slope[t] * (from_the_future + V.T @ dL_do[t])
    h_before = np.vstack([np.zeros(H), h[:-1]])
    by_formula = {
        "V": dL_do.T @ h,
        "W": dL_da.T @ h_before,
        "U": dL_da.T @ x[:, 0],
        "b": dL_da.sum(axis=0),
        "c": dL_do.sum(axis=0),
    }

    _, do = softmax_cross_entropy(o, targets)
    model.backward(do * T)  # the loss is the mean over steps, the formulas have the sum
    names = ("readout.weight", "layer.weight_hh_l0", "layer.weight_ih_l0", "layer.bias_ih_l0", "readout.bias")
    return {
        letter: (formula, model.gradients[name])
        for (letter, formula), name in zip(by_formula.items(), names, strict=True)
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parser(__doc__).parse_args(argv)
    paths, by_layer = three_paths()
    terms, chained = three_step_chain()
    formulas = all_formulas()
    errors = {
        "three paths": error(sum(paths.values()), by_layer),
        "chain": error(sum(terms), chained),
        **{letter: error(*pair) for letter, pair in formulas.items()},
    }
    for name, path in paths.items():
        print(f"path {name:12} |dL/dU| = {np.linalg.norm(path):.4f}")
    for name, value in errors.items():
        print(f"{name:12} relative to layer.backward: {value:.1e}")

    figure, axes = panels(3, "Gradients by hand and by layer.backward")
    axes[0].bar([*paths, "sum"], [np.linalg.norm(p) for p in [*paths.values(), by_layer]], color=COLOURS[0])
    axes[0].set(title="|dL/dU|: three paths")
    axes[0].tick_params(axis="x", labelsize=8)
    names, adds = ("k = 3", "k = 2", "k = 1", "sum"), [np.linalg.norm(term) for term in [*terms, chained]]
    axes[1].bar(names, adds, color=COLOURS[2])
    axes[1].set(title="|dL/dW|: what each step adds")
    for colour, (letter, (formula, gradient)) in zip(COLOURS, formulas.items(), strict=True):
        axes[2].plot(formula.ravel(), gradient.ravel(), "o", ms=5, color=colour, alpha=0.7, label=letter)
    axes[2].axline((0, 0), slope=1, color="0.6", lw=0.8)
    axes[2].set(title="every entry of V, W, U, b, c", xlabel="formula", ylabel="layer.backward")
    axes[2].legend(fontsize=8)
    save(figure, options.out, __file__)
    return {"errors": errors, "paths": paths}


if __name__ == "__main__":
    main()
