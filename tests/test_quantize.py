"""Is quantised inference what it says: rounded operands, exact or float32 sums, and nothing else changed?

One step of one layer is compared with the float64 reference, whose products then round as the kernels do.
All else is bits: many steps equal single ones, a stack its layers, a batch its rows.  (Many steps cannot be
compared with the reference directly: an h that differs in its last bit may round the other way.)
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn import _core, functional, reference
from fastrnn._backends import CPU
from problems import Guarded, Problem, apart, flat, in_cuts, like_state, make_problem
from shapes import LANES, SHAPES, VARIANTS, Shape, make_spec
from tolerances import assert_close, assert_same_bits, chain, size

pytestmark = pytest.mark.kernels

FORMATS = ("bfloat16", "int8")


@pytest.fixture(params=[True, False], ids=["dot", "widened"])
def products(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Run the test with the instructions for quantised products that there are, and without."""
    _core.allow_dot_instructions(request.param)
    yield request.param
    _core.allow_dot_instructions(True)


# ------------------------------------------------------------------------------------- the oracle


def round_bfloat16(v: np.ndarray) -> np.ndarray:
    """Round to the nearest number whose float32 has zeros in its lower half, ties to even bits."""
    bits = np.asarray(v, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def quantize_int8(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return integers q (rows, K) and scales (rows, 1), computed in float32 as the kernels do."""
    v = np.asarray(v, np.float32)
    largest = np.abs(v).max(axis=1, keepdims=True, initial=0)
    divisor = np.where(largest > 0, largest, np.float32(1))
    q = np.rint(v * (np.float32(127) / divisor))
    return q.astype(np.int64), (largest / np.float32(127)).astype(np.float64)


def rounded_product(quantized: str) -> Any:
    """Return a `reference.product` of rounded operands."""

    def product(p: Any, kind: str, rows: slice, v: np.ndarray) -> np.ndarray:
        w = p["weight_" + kind][rows]
        if quantized == "bfloat16":
            out = round_bfloat16(v) @ round_bfloat16(w).T
        else:
            (q_v, s_v), (q_w, s_w) = quantize_int8(v), quantize_int8(w)
            out = (q_v @ q_w.T) * (s_v * s_w.T)
        return out + p["bias_" + kind][rows] if "bias_" + kind in p else out

    return product


def forward(problem: Problem, quantized: str, **changes: Any) -> tuple[np.ndarray, ...]:
    """Run the kernels: (y, h_n) or (y, h_n, c_n)."""
    problem = dataclasses.replace(problem, **changes)
    packed = functional.pack(problem.spec, problem.parameters, quantize=quantized)
    y, state_n = functional.forward(problem.spec, packed, problem.x, problem.state, **problem.options)
    return y, *flat(state_n)


def assert_same(actual: Any, expected: Any) -> None:
    for name, a, e in zip(("y", "h_n", "c_n"), actual, expected, strict=False):
        assert_same_bits(a, e, name)


# --------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_step_rounds_as_said(
    variant: str,
    shape: Shape,
    quantized: str,
    isa: str,
    products: bool,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    """Every cell at sizes around the tile and around a group of K; outputs lie between guards."""
    hidden = shape.hidden_size(LANES[isa, "float32"])
    spec = make_spec(variant, shape.input_size, hidden)
    problem = make_problem(rng, spec, 1, shape.batch, lengths=shape.batch > 2)
    packed = functional.pack(spec, problem.parameters, quantize=quantized)
    guarded = Guarded("float32")
    out = (
        guarded.array((1, shape.batch, spec.output_size), strided=True),
        like_state(spec, (guarded.array(s) for s in spec.state_shapes(shape.batch))),
    )
    functional.forward(spec, packed, problem.x, problem.state, **problem.options, out=out)
    guarded.check()

    monkeypatch.setattr(reference, "product", rounded_product(quantized))
    y, state_n, _ = reference.forward(spec, problem.parameters, problem.x, problem.state, **problem.options)
    # What a step computes and multiplies again (r h, c', the h that is projected) may round to the number
    # next to the reference's, a bfloat16 or an integer away; two such terms in one sum are one in 10^6.
    states = size(*flat(problem.state), *flat(state_n))
    inner = spec.proj_size or spec.peephole == "full" or not spec.reset_after
    unit = 2**-7 if quantized == "bfloat16" else 1 / 127
    apart_by = 2 * unit * states * size(*problem.parameters.values())
    for what, a, e in zip(("y", "h_n", "c_n"), (out[0], *flat(out[1])), (y, *flat(state_n)), strict=False):
        if inner:
            e = np.where(np.abs(a - e) <= apart_by, a, e)
        assert_close(a, e, n_products=chain(spec, 1), dtype="float32", scale=max(states, 1.0), what=what)


@pytest.mark.parametrize("quantized", FORMATS)
def test_the_oracle_is_not_the_plain_reference(quantized: str, rng: np.random.Generator) -> None:
    """Rounding is far above the tolerance: kernels that left it out would fail the test above."""
    problem = make_problem(rng, make_spec("gru", 33, 40), 1, 9)
    y = forward(problem, quantized)[0]
    (expected, _), _ = problem.reference()
    with pytest.raises(AssertionError, match="elements are off"):
        assert_close(y, expected, n_products=chain(problem.spec, 1), dtype="float32", scale=1.0)


# ------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_and_chunks_equal_one_call(
    variant: str, quantized: str, isa: str, products: bool, rng: np.random.Generator
) -> None:
    """Any cut of T, down to single steps, with the state carried over; so does a stream."""
    spec = make_spec(variant, 5, 2 * LANES[isa, "float32"] + 1, num_layers=2)
    problem = make_problem(rng, spec, steps=13, batch=3, reset=True)
    packed = functional.pack(spec, problem.parameters, quantize=quantized)
    whole = forward(problem, quantized)
    for cuts in (range(14), [0, 1, 7, 8, 13]):
        assert_same(in_cuts(problem, packed, cuts), whole)


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_its_rows_and_pieces_apart(
    variant: str, quantized: str, isa: str, products: bool, rng: np.random.Generator
) -> None:
    """Row by row, cut at resets and at its length; two layers, both directions."""
    spec = make_spec(variant, 7, 2 * LANES[isa, "float32"] + 1, num_layers=2, bidirectional=True)
    problem = make_problem(rng, spec, steps=5, batch=11, lengths=True, reset=True)
    nothing = like_state(spec, (np.zeros(s, "float32") for s in spec.state_shapes(1)))

    def run_piece(x: Any, state: Any, *_: Any) -> Any:
        y, *state_n = forward(problem, quantized, x=x, state=state, lengths=None, reset=None)
        return (y, like_state(spec, state_n)), (np.zeros_like(x), nothing, {})

    (y, state_n), _ = apart(problem, run_piece)
    assert_same(forward(problem, quantized), (y, *flat(state_n)))


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("variant", ["lstm", "lstm-full-proj", "gru", "rnn-tanh"])
def test_a_stack_is_its_layers_and_directions(
    variant: str, quantized: str, isa: str, rng: np.random.Generator
) -> None:
    spec = make_spec(variant, 9, LANES[isa, "float32"] + 3, num_layers=2, bidirectional=True)
    problem = make_problem(rng, spec, steps=6, batch=5, state=False)
    x = problem.x
    for layer in range(2):
        one = make_spec(variant, x.shape[2], spec.hidden_size)
        sides = []
        for suffix, order in (("", slice(None)), ("_reverse", slice(None, None, -1))):
            own = {
                name: problem.parameters[f"{name.removesuffix('_l0')}_l{layer}{suffix}"]
                for name in one.parameter_shapes()
            }
            single = dataclasses.replace(problem, spec=one, parameters=own, x=x[order])
            sides.append(forward(single, quantized)[0][order])
        x = np.concatenate(sides, axis=2)
    assert_same_bits(forward(problem, quantized)[0], x, "y")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize(
    ("layers", "hidden", "steps", "batch", "split"),
    [
        (1, 130, 3, 64, "rows of the batch"),
        (1, 650, 3, 1, "hidden units"),
        (1, 650, 2, 3, "hidden units"),
        (2, 70, 300, 1, "layers side by side"),
    ],
)
@pytest.mark.parametrize("variant", ["lstm", "lstm-full-proj", "gru", "gru-reset-before", "rnn-tanh"])
def test_the_number_of_threads_changes_nothing(
    variant: str,
    layers: int,
    hidden: int,
    steps: int,
    batch: int,
    split: str,
    quantized: str,
    rng: np.random.Generator,
) -> None:
    problem = make_problem(rng, make_spec(variant, 70, hidden, num_layers=layers), steps, batch)
    results = {}
    for threads in (1, 2, 3):
        _core.set_num_threads(threads)
        results[threads] = forward(problem, quantized)
    report = CPU.network(problem.spec).explain(
        steps, batch, training=False, tokens=False, quantized=quantized
    )
    # An Elman step of one row is too short for a barrier.
    assert split in report["split"] or (variant == "rnn-tanh" and split == "hidden units")
    for threads in (2, 3):
        assert_same(results[threads], results[1])


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_equal_one_hot_vectors(
    variant: str, quantized: str, isa: str, products: bool, rng: np.random.Generator
) -> None:
    problem = make_problem(
        rng, make_spec(variant, 11, 2 * LANES[isa, "float32"] + 1, num_layers=2), 4, 5, tokens=True
    )
    one_hot = np.eye(11, dtype="float32")[problem.x]
    assert_same(forward(problem, quantized), forward(problem, quantized, x=one_hot))


def test_instructions_of_their_own_give_the_same_int8(isa: str, rng: np.random.Generator) -> None:
    """Sums of integers are exact, whatever instructions add them."""
    problem = make_problem(rng, make_spec("lstm", 70, 45), 1, 9)
    own = forward(problem, "int8")
    _core.allow_dot_instructions(False)
    try:
        assert_same(forward(problem, "int8"), own)
    finally:
        _core.allow_dot_instructions(True)


# --------------------------------------------------------------------------------- special values


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn-tanh"])
def test_int8_shows_what_it_cannot_scale(
    cell: str, bad: float, isa: str, products: bool, rng: np.random.Generator
) -> None:
    """A row with an infinity or NaN becomes NaN from that step on; its neighbours stay as they were."""
    problem = make_problem(rng, make_spec(cell, 20, 19), 4, 3)
    clean = forward(problem, "int8")[0]
    problem.x[2, 1, 5] = bad
    y = forward(problem, "int8")[0]
    assert np.isnan(y[2:, 1]).all()
    y[2:, 1] = clean[2:, 1]
    assert_same_bits(y, clean)

    problem.x[2, 1, 5] = 0
    problem.parameters["weight_hh_l0"][3, 4] = bad
    y = forward(problem, "int8")[0]
    assert np.isnan(y[0, :, 3]).all()
    assert np.isfinite(y[0, :, 4:]).all()


@pytest.mark.parametrize("quantized", FORMATS)
def test_rows_of_zeros_and_of_the_smallest_numbers(quantized: str, isa: str, products: bool) -> None:
    """They add nothing, and nothing that is not a number."""
    spec = make_spec("rnn-identity", 6, 5)
    parameters = {name: np.zeros(shape, "float32") for name, shape in spec.parameter_shapes().items()}
    parameters["weight_ih_l0"][0] = 1
    parameters["weight_ih_l0"][1] = 1e-42
    parameters["bias_ih_l0"][...] = np.arange(5)
    x = np.zeros((1, 3, 6), "float32")
    x[0, 1] = 1e-42
    x[0, 2] = 3
    packed = functional.pack(spec, parameters, quantize=quantized)
    y, _ = functional.forward(spec, packed, x)
    expected = np.tile(np.arange(5, dtype="float32"), (3, 1))
    expected[2, 0] = 18
    np.testing.assert_allclose(y[0], expected, rtol=4 * np.finfo("float32").eps)


def test_bfloat16_keeps_infinities_and_nan(isa: str, products: bool) -> None:
    spec = make_spec("rnn-identity", 2, 1, bias=False)
    parameters = {"weight_ih_l0": np.ones((1, 2), "float32"), "weight_hh_l0": np.zeros((1, 1), "float32")}
    packed = functional.pack(spec, parameters, quantize="bfloat16")
    x = np.array([[np.inf, 1], [-np.inf, 1], [np.nan, 1], [3.4e38, 0], [np.inf, -np.inf]], "float32")
    y, _ = functional.forward(spec, packed, x[None])
    np.testing.assert_array_equal(y[0, :, 0], [np.inf, -np.inf, np.nan, np.inf, np.nan])


# ------------------------------------------------------------------------------------- the layers

LAYERS: dict[str, Any] = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}


def make_layer(cell: str = "gru", **options: Any) -> Any:
    return LAYERS[cell](20, 24, num_layers=2, seed=3, **options).eval()


def make_x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((6, 3, 20)).astype("float32")


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("cell", LAYERS)
def test_quantize_and_back(cell: str, quantized: str, rng: np.random.Generator) -> None:
    layer, x = make_layer(cell), make_x(rng)
    before, state = layer(x)[0], layer.state_dict()
    full = layer._packed.nbytes
    assert layer.quantize(quantized) is layer
    assert layer.quantized == quantized
    assert layer._packed.nbytes < full * (0.6 if quantized == "bfloat16" else 0.45)
    assert f"quantized={quantized!r}" in repr(layer._packed)
    y = layer(x)[0]
    assert 0 < np.abs(y - before).max() < 0.05
    for name, array in layer.parameters.items():
        assert_same_bits(array, state[name], name)
        assert not array.flags.writeable
    assert layer.quantize("float32").quantized is None
    assert_same_bits(layer(x)[0], before)
    layer.quantize(quantized).train()
    assert layer.quantized is None
    assert_same_bits(layer.eval()(x)[0], before)


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("kind", [fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell])
def test_cells_are_quantised_too(kind: Any, quantized: str, rng: np.random.Generator) -> None:
    cell = kind(5, 7, seed=1).eval().quantize(quantized)
    x = rng.standard_normal((3, 5)).astype("float32")
    layer = LAYERS[kind.__name__.removesuffix("Cell").lower()](5, 7).eval().quantize(quantized)
    layer.load_state_dict({f"{name}_l0": array for name, array in cell.parameters.items()})
    assert layer.quantized == quantized
    h = cell(x)
    assert_same_bits(flat(h)[0], layer(x[None])[0][0])


@pytest.mark.parametrize("quantized", FORMATS)
@pytest.mark.parametrize("cell", LAYERS)
def test_streams_use_the_quantised_weights(cell: str, quantized: str, rng: np.random.Generator) -> None:
    layer, x = make_layer(cell), make_x(rng)
    before = layer.stream(batch=3)
    y = layer.quantize(quantized)(x)[0]
    with pytest.raises(RuntimeError, match=r"quantize\(\)"):
        before.step(x[0])
    stream = layer.stream(batch=3)
    assert_same_bits(np.stack([stream.step(step).copy() for step in x]), y)
    stream.reset()
    assert_same_bits(stream.run(x), y)


@pytest.mark.parametrize("quantized", FORMATS)
def test_copies_keep_it_and_files_do_not(quantized: str, tmp_path: Path, rng: np.random.Generator) -> None:
    layer, x = make_layer(), make_x(rng)
    plain = layer(x)[0]
    y = layer.quantize(quantized)(x)[0]
    for made in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert made.quantized == quantized
        assert_same_bits(made(x)[0], y)
    layer.save(tmp_path / "layer.safetensors")
    loaded = fastrnn.load(tmp_path / "layer.safetensors").eval()
    assert loaded.quantized is None
    assert_same_bits(loaded(x)[0], plain)


def test_loading_weights_quantises_them(rng: np.random.Generator) -> None:
    layer, x = make_layer().quantize("int8"), make_x(rng)
    other = fastrnn.GRU(20, 24, num_layers=2, seed=4).eval()
    layer.load_state_dict(other.state_dict())
    assert layer.quantized == "int8"
    assert_same_bits(layer(x)[0], other.quantize("int8")(x)[0])


# The CPU's flag for the instructions that multiply a type in a set, and what kernels of them are called.
DOT_PRODUCTS = {
    ("bfloat16", "avx512"): ("avx512_bf16", "avx512_bf16"),
    ("int8", "avx512"): ("avx512_vnni", "avx512_vnni"),
    ("int8", "avx2"): ("avx_vnni", "avx2_vnni"),
}


def cpu_flags() -> set[str]:
    """Flags as the system lists them; none where it does not."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def test_explain_tells_what_multiplies(isa: str, products: bool, rng: np.random.Generator) -> None:
    layer, x = make_layer(), make_x(rng)
    assert layer.explain(x)["weights"] == "float32"
    for quantized, width in (("bfloat16", "float32"), ("int8", "16 bits")):
        told = layer.quantize(quantized).explain(x)["weights"]
        flag, name = DOT_PRODUCTS.get((quantized, isa), ("", ""))
        if products and flag in cpu_flags():
            assert told == f"{quantized}, multiplied by {name}"
        else:
            assert told.startswith(f"{quantized}, widened to {width} for {isa}")


# ----------------------------------------------------------------------------------------- errors


def test_training_layers_are_not_quantised() -> None:
    with pytest.raises(RuntimeError, match=r"quantize\(\) in training mode; call eval\(\) first"):
        fastrnn.GRU(3, 4).quantize("int8")


def test_other_dtypes_are_refused() -> None:
    layer = make_layer()
    with pytest.raises(ValueError, match="dtype is 'int4'; expected one of 'bfloat16', 'int8', 'float32'"):
        layer.quantize("int4")
    with pytest.raises(TypeError, match="dtype is 8"):
        layer.quantize(8)
    wide = fastrnn.LSTM(3, 4, dtype="float64").eval()
    with pytest.raises(TypeError, match="dtype is 'int8', for a float64 network; only float32"):
        wide.quantize("int8")
    assert layer.quantized is None


@pytest.mark.cuda
def test_layers_on_a_device_are_not_quantised() -> None:
    layer = fastrnn.LSTM(3, 4, device="cuda").eval()
    with pytest.raises(TypeError, match="dtype is 'int8', for cuda:0; only networks on the CPU"):
        layer.quantize("int8")


def test_a_quantised_layer_does_not_move() -> None:
    layer = make_layer().quantize("bfloat16")
    assert layer.to("cpu") is layer
    with pytest.raises(RuntimeError, match=r"quantised to bfloat16; call quantize\('float32'\) first"):
        layer.to("cpu", "float64")
    assert (layer.dtype, layer.quantized) == ("float32", "bfloat16")


def test_int8_refuses_sums_that_may_overflow() -> None:
    spec = make_spec("rnn-tanh", (2**31 - 1) // (127 * 128) + 1, 1)
    parameters = {name: np.zeros(shape, "float32") for name, shape in spec.parameter_shapes().items()}
    with pytest.raises(ValueError, match="quantize is 'int8', for sums of 132105 products; expected at most"):
        functional.pack(spec, parameters, quantize="int8")
    functional.pack(spec, parameters, quantize="bfloat16")


def test_int8_sums_at_their_limit(isa: str, products: bool) -> None:
    """All products are as large as can be, of one sign and of the other."""
    depth = (2**31 - 1) // (127 * 128)
    spec = make_spec("rnn-identity", depth, 1, bias=False)
    for sign in (1, -1):
        parameters = {
            "weight_ih_l0": np.full((1, depth), sign, "float32"),
            "weight_hh_l0": np.zeros((1, 1), "float32"),
        }
        packed = functional.pack(spec, parameters, quantize="int8")
        y, _ = functional.forward(spec, packed, np.ones((1, 1, depth), "float32"))
        np.testing.assert_allclose(y, sign * depth, rtol=4 * np.finfo("float32").eps)


def test_quantised_weights_do_not_train(rng: np.random.Generator) -> None:
    problem = make_problem(rng, make_spec("gru", 3, 4), 2, 2)
    packed = functional.pack(problem.spec, problem.parameters, quantize="int8")
    with pytest.raises(ValueError, match="weights are int8; expected float32"):
        functional.forward_train(problem.spec, packed, problem.x)
