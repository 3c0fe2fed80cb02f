"""Does every kernel of a device compute what the CPU does?  Few small calls and no other library, so that
compute-sanitizer can look at every access of every kernel in a minute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import _device
from fastrnn.layouts import Spec
from nested import arrays
from shapes import NOISE, VARIANTS, make_spec
from tolerances import FACTOR, chain, size

pytestmark = pytest.mark.cuda

T, B, IN, H = 4, 5, 7, 19  # no multiple of anything that a kernel is cut into
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
CLASSES: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}


@pytest.fixture(autouse=True)
def device() -> None:
    """Skip, with the reason, where there is no device."""
    try:
        fastrnn.LSTM(1, 1, device="cuda")
    except RuntimeError as error:
        pytest.skip(str(error))


def build(variant: str, dtype: str, device: str, **options: Any) -> Any:
    spec = make_spec(variant, IN, H, **options)
    given = {name: getattr(spec, name) for name in VARIANTS[variant] | options if name != "cell"}
    return CLASSES[spec.cell](IN, H, **given, dtype=dtype, device=device, seed=3)


def pair(variant: str, dtype: str, **options: Any) -> tuple[Any, Any]:
    """A layer on the device, and one of the CPU in float64 that has the same parameters."""
    there = build(variant, dtype, "cuda", **options)
    here = build(variant, "float64", "cpu", **options)
    here.load_state_dict({name: host(value) for name, value in there.state_dict().items()})
    return there, here


def host(value: Any) -> np.ndarray:
    """A result of either layer in float64."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value).astype("float64")


def compare(
    results: Any,
    references: Any,
    spec: Spec,
    dtype: str,
    *,
    backward: bool,
    steps: int = T,
    eps: float | None = None,
) -> None:
    """Compare results of one family: gradients, say, whose rounding is that of the largest.

    The 16-bit formats sum in float32.  What they round is x, h, y and, backward, the gradients of the gates:
    four times in a step of a layer.  `eps` is that of the products, where they are coarser than the dtype.
    """
    roundings = (
        4 * steps * spec.num_layers if EPS[dtype] > EPS["float32"] else chain(spec, steps, B * backward)
    )
    results, references = arrays(results), arrays(references)
    allowed = FACTOR * (eps or EPS[dtype]) * np.sqrt(roundings) * size(*references)
    for result, reference in zip(results, references, strict=True):
        assert np.shape(result) == np.shape(reference)
        assert np.abs(host(result) - reference).max(initial=0.0) <= allowed


def draw(rng: np.random.Generator, dtype: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """The same numbers for the device, which takes float32 for bfloat16, and for the CPU."""
    values = rng.standard_normal(shape)
    given = values.astype("float32" if dtype == "bfloat16" else dtype)
    return given, given.astype("float64")


EVERYTHING = [(variant, "float32") for variant in VARIANTS]
FORMATS = [(cell, dtype) for cell in ("lstm", "gru", "rnn-tanh") for dtype in EPS if dtype != "float32"]


MASKS = pytest.mark.parametrize("masks", [{}, NOISE["both"]], ids=["plain", "noise"])


@MASKS
@pytest.mark.parametrize(("variant", "dtype"), EVERYTHING + FORMATS)
def test_training_step(variant: str, dtype: str, masks: dict[str, Any], rng: np.random.Generator) -> None:
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.3} | masks
    there, here = pair(variant, dtype, **options)
    spec = make_spec(variant, IN, H, **options)
    x = draw(rng, dtype, T, B, IN)
    state = [draw(rng, dtype, *shape) for shape in spec.state_shapes(B)]
    lengths, reset = np.array([4, 0, 3, 1, 4]), rng.random((T, B)) < 0.3
    dy = draw(rng, dtype, T, B, spec.output_size)
    results = []
    for layer, i in ((there, 0), (here, 1)):
        given = tuple(array[i] for array in state)
        given = given if spec.cell == "lstm" else given[0]
        forward = layer(x[i], given, lengths=lengths, reset=reset)
        backward = layer.backward(dy[i], given)  # as good as any gradient
        results.append((forward, (backward, tuple(layer.gradients.values()))))
    compare(results[0][0], results[1][0], spec, dtype, backward=False)
    compare(results[0][1], results[1][1], spec, dtype, backward=True)


@MASKS
@pytest.mark.parametrize(("variant", "dtype"), EVERYTHING + FORMATS)
def test_inference_and_stream(
    variant: str, dtype: str, masks: dict[str, Any], rng: np.random.Generator
) -> None:
    """With zoneout's expectation."""
    there, here = pair(variant, dtype, num_layers=2, **masks)
    there.eval(), here.eval()
    spec = make_spec(variant, IN, H, num_layers=2)
    x = draw(rng, dtype, T, B, IN)
    expected = here(x[1])
    compare(there(x[0]), expected, spec, dtype, backward=False)
    stream = there.stream(batch=B)
    steps = tuple(host(stream.step(x[0][t])) for t in range(T))
    compare((np.stack(steps), stream.state), expected, spec, dtype, backward=False)


@pytest.fixture
def choices() -> Iterator[None]:
    """Put back what a test sets of how calls are computed."""
    before = fastrnn.get_float32_products()
    yield
    fastrnn.set_float32_products(before)
    for backward in (False, True):
        _device.module().set_wish(backward=backward)


@pytest.mark.usefixtures("choices")
@pytest.mark.parametrize("wish", ["", "cluster"], ids=["chosen", "cluster"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("variant", ["lstm", "lstm-diagonal", "gru", "rnn-tanh"])
def test_persistent_kernels(variant: str, dtype: str, wish: str, rng: np.random.Generator) -> None:
    """Which are worth their start for calls of many steps; a cluster, for so few units, only if asked for."""
    steps = 6 if wish else 24
    there, here = pair(variant, dtype, bidirectional=True)
    spec = make_spec(variant, IN, H, bidirectional=True)
    x, dy = draw(rng, dtype, steps, B, IN), draw(rng, dtype, steps, B, spec.output_size)
    fastrnn.set_float32_products("bf16x3")  # float32's only ones on chip, and not chosen for so few units
    eps = 2.0**-16 if dtype == "float32" else None
    network = there._backend.network(there._spec)
    for backward in (False, True):
        if wish and wish not in {launch["strategy"] for launch in network.launches(steps, B, backward)}:
            pytest.skip("this device has no clusters")
        _device.module().set_wish(wish, backward=backward)
    report = there.explain(x[0])
    expected = {wish} if wish else {"cta", "cluster"}
    assert report["strategy"] in expected
    assert report["backward_strategy"] in expected
    lengths, reset = np.array([steps, 0, 3, 1, steps]), rng.random((steps, B)) < 0.1
    results = []
    for layer, i in ((there, 0), (here, 1)):
        forward = layer(x[i], lengths=lengths, reset=reset)
        dx, _ = layer.backward(dy[i])
        results.append((forward, (dx, tuple(layer.gradients.values()))))
    compare(results[0][0], results[1][0], spec, dtype, backward=False, steps=steps, eps=eps)
    compare(results[0][1], results[1][1], spec, dtype, backward=True, steps=steps, eps=eps)


@pytest.mark.parametrize("variant", ["lstm", "gru", "rnn-tanh"])
def test_tokens(variant: str, rng: np.random.Generator) -> None:
    there, here = pair(variant, "float32")
    spec = make_spec(variant, IN, H)
    tokens = rng.integers(0, IN, (T, B))
    dy = draw(rng, "float32", T, B, H)
    results = []
    for layer, i in ((there, 0), (here, 1)):
        y, _ = layer(tokens)
        layer.backward(dy[i])
        results.append((y, tuple(layer.gradients.values())))
    compare(results[0][0], results[1][0], spec, "float32", backward=False)
    compare(results[0][1], results[1][1], spec, "float32", backward=True)
