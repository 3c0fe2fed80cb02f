"""JAX: a scan over the steps, compiled; the input product before it, all of T at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import Data, OnHost, Run, first_reason, one_length, only_32_or_64_bits
from workloads import Workload

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)  # or it would make float32 of float64
# Every run is waited for, and without a thread in between that is up to twice as fast (most of all at T = 1).
jax.config.update("jax_cpu_enable_async_dispatch", False)

Weights = dict[str, Any]
State = tuple[Any, ...]  # h, for LSTM h and c


def lstm(w_hh: Any, _: Any, a: Any, state: State) -> State:
    h, c = state
    i, f, g, o = jnp.split(a + h @ w_hh, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(w_hh: Any, b_hh: Any, a: Any, state: State) -> State:
    (h,) = state
    a_r, a_z, a_n = jnp.split(a, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h @ w_hh + b_hh, 3, axis=-1)
    z = jax.nn.sigmoid(a_z + h_z)
    n = jnp.tanh(a_n + jax.nn.sigmoid(a_r + h_r) * h_n)
    return ((1 - z) * n + z * h,)


def rnn(w_hh: Any, _: Any, a: Any, state: State) -> State:
    (h,) = state
    return (jnp.tanh(a + h @ w_hh),)


CELLS = {"lstm": lstm, "gru": gru, "rnn": rnn}


def zeros(workload: Workload) -> State:
    shape = (workload.batch, workload.hidden_size)
    return (jnp.zeros(shape, workload.dtype),) * (2 if workload.cell == "lstm" else 1)


def input_product(workload: Workload, w_ih: Any, b_ih: Any, b_hh: Any, x: Any) -> Any:
    """W_ih x + b; only a GRU's b_hh has to wait for the recurrent product."""
    bias = b_ih if workload.cell == "gru" else b_ih + b_hh
    return (w_ih[x] if jnp.issubdtype(x.dtype, jnp.integer) else x @ w_ih) + bias


def forward(workload: Workload, weights: Weights, x: Any, reset: Any) -> Any:
    """All steps from a state of zeros: y [T, B, D*H]."""
    for layer in range(workload.num_layers):
        outputs = []
        for suffix in [f"_l{layer}", f"_l{layer}_reverse"][: workload.directions]:
            w_ih, w_hh = weights[f"weight_ih{suffix}"], weights[f"weight_hh{suffix}"]
            b_ih, b_hh = weights[f"bias_ih{suffix}"], weights[f"bias_hh{suffix}"]
            cell = partial(CELLS[workload.cell], w_hh, b_hh)

            def step(state: State, inputs: Any, cell: Any = cell) -> tuple[State, Any]:
                a, clear = inputs
                if clear is not None:
                    state = tuple(jnp.where(clear[:, None], 0, part) for part in state)
                state = cell(a, state)
                return state, state[0]

            inputs = (input_product(workload, w_ih, b_ih, b_hh, x), reset)
            outputs.append(jax.lax.scan(step, zeros(workload), inputs, reverse=suffix.endswith("reverse"))[1])
        x = outputs[0] if workload.directions == 1 else jnp.concatenate(outputs, axis=-1)
    return x


def step(workload: Workload, weights: Weights, x: Any, states: list[State]) -> list[State]:
    """One step of every layer, x [B, I]."""
    after = []
    for layer, state in enumerate(states):
        w_ih, w_hh, b_ih, b_hh = (
            weights[f"{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        after.append(CELLS[workload.cell](w_hh, b_hh, input_product(workload, w_ih, b_ih, b_hh, x), state))
        x = after[-1][0]
    return after


class Jax(OnHost):
    rival = "fastrnn"

    def __init__(self) -> None:
        self.version = jax.__version__

    def unable(self, workload: Workload) -> str:
        both = (workload.resets and workload.bidirectional, "resets in one direction only")
        return first_reason(only_32_or_64_bits(workload), one_length(workload), both)

    def prepare(self, workload: Workload, data: Data, threads: int) -> Run:
        # XLA's threads follow the affinity of the process: worker.py sets it.
        # Matrices are [I, G H] and [H, G H], or a single step would transpose them each time.
        own = {name: np.ascontiguousarray(array.T) for name, array in data.weights.items()}
        weights, x = jax.tree.map(jnp.asarray, (own, data.x))
        reset = None if data.reset is None else jnp.asarray(data.reset)
        make = {"forward": self.forward, "training": self.training, "streaming": self.streaming}
        return make[workload.run](workload, weights, x, reset)

    def forward(self, workload: Workload, weights: Weights, x: Any, reset: Any) -> Run:
        compiled = jax.jit(partial(forward, workload))
        return lambda: compiled(weights, x, reset).block_until_ready()

    def training(self, workload: Workload, weights: Weights, x: Any, reset: Any) -> Run:
        def loss(weights: Weights, x: Any) -> tuple[Any, Any]:
            y = forward(workload, weights, x, reset)
            return y.sum(), y  # whose gradient is dy = 1

        arguments = (0,) if workload.tokens else (0, 1)
        compiled = jax.jit(jax.value_and_grad(loss, arguments, has_aux=True))

        def run() -> dict[str, Any]:
            (_, y), (dw, *dx) = jax.block_until_ready(compiled(weights, x))
            result = {"y": y, "dw": lambda: dw["weight_hh_l0"].T}
            return result | {"dx": dx[0]} if dx else result

        return run

    def streaming(self, workload: Workload, weights: Weights, x: Any, reset: Any) -> Run:
        compiled = jax.jit(partial(step, workload))
        x = x[0]
        states = [zeros(workload)] * workload.num_layers

        def run() -> Any:
            nonlocal states
            states = compiled(weights, x, states)
            return states[-1][0].block_until_ready()

        return run
