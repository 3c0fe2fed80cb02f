"""Do the optimizers make the steps of their equations, torch.optim's, and resume where they were?"""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import fastrnn
import numpy as np
import pytest
from fastrnn import _core
from fastrnn.models import ManyToMany
from fastrnn.training import SGD, AdaGrad, Adam, AdamW, Linear, RMSprop
from tolerances import assert_close, assert_same_bits
from training_modules import module

FLOATS = ["float32", "float64"]


def test_sgd_by_hand():
    trained = module([2.0])
    optimizer = SGD([trained], 0.1, momentum=0.5)
    expected = 1.0
    for velocity in (2.0, 3.0, 3.5):
        optimizer.step()
        expected -= 0.1 * velocity
        np.testing.assert_allclose(trained.parameters["p0"], [expected], rtol=1e-15)


def test_adam_by_hand():
    trained = module([0.0])
    optimizer = Adam([trained], 0.1, betas=(0.5, 0.75), eps=1.0)
    trained.gradients["p0"][:] = 2
    optimizer.step()  # m = 1, v = 1; m / (1 - 0.5) = 2, v / (1 - 0.75) = 4
    np.testing.assert_allclose(trained.parameters["p0"], [1 - 0.1 * 2 / (2 + 1)], rtol=1e-15)
    trained.gradients["p0"][:] = 0
    optimizer.step()  # m = 0.5, v = 0.75; m / (1 - 0.25) = 2/3, v / (1 - 0.5625) = 12/7
    step = 0.1 * (2 / 3) / (math.sqrt(12 / 7) + 1)
    np.testing.assert_allclose(trained.parameters["p0"], [1 - 0.1 * 2 / 3 - step], rtol=1e-15)


# Ours, and the same of torch.optim, by name: constructor and keywords, which differ in few names.
OPTIMIZERS = {
    "SGD": (SGD, "SGD", {}),
    "SGD with weight decay": (SGD, "SGD", {"weight_decay": 0.1}),
    "SGD with momentum": (SGD, "SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "SGD with Nesterov's momentum": (SGD, "SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "AdaGrad": (AdaGrad, "Adagrad", {}),
    "AdaGrad with all options": (AdaGrad, "Adagrad", {"eps": 1e-3, "weight_decay": 0.1}),
    "RMSprop": (RMSprop, "RMSprop", {}),
    "RMSprop with all options": (
        RMSprop,
        "RMSprop",
        {"decay": 0.9, "eps": 1e-3, "momentum": 0.5, "weight_decay": 0.1},
    ),
    "Adam": (Adam, "Adam", {}),
    "Adam with all options": (Adam, "Adam", {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
    "AdamW": (AdamW, "AdamW", {}),
    "AdamW with all options": (AdamW, "AdamW", {"betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.3}),
}
SHAPES = [(4, 33), (5,), ()]  # more than the widest vector, less than the narrowest, and without axes


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_equal_torch(rng, name, dtype):
    torch = pytest.importorskip("torch")
    ours, theirs, options = OPTIMIZERS[name]
    trained = module(*(np.zeros(shape) for shape in SHAPES), dtype=dtype)
    peers = [torch.ones(shape, dtype=getattr(torch, dtype)) for shape in SHAPES]
    optimizer = ours([trained], 0.01, **options)
    names = {"decay": "alpha"}
    peer = getattr(torch.optim, theirs)(peers, 0.01, **{names.get(k, k): v for k, v in options.items()})
    for step in range(60):
        for gradient, p in zip(trained.gradients.values(), peers, strict=True):
            gradient[...] = rng.standard_normal(gradient.shape)
            p.grad = torch.from_numpy(gradient.copy())
        optimizer.learning_rate = peer.param_groups[0]["lr"] = 0.01 / (1 + step % 7)
        optimizer.step()
        peer.step()
        for parameter, p in zip(trained.parameters.values(), peers, strict=True):
            assert_close(parameter, p.numpy(), n_products=4 * (step + 1), what=f"step {step}")
    assert optimizer.steps == 60


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(rng, isa, threads, name):
    ours, _, options = OPTIMIZERS[name]
    gradients = [rng.standard_normal(shape) for shape in [(700, 300), (7,)]]  # enough for three threads
    results = []
    for each, count in ("baseline", 1), (isa, 1), (isa, 3):
        _core.set_isa(each)
        _core.set_num_threads(count)
        trained = module(*gradients, dtype="float32")
        optimizer = ours([trained], 0.01, **options)
        optimizer.step()
        optimizer.step()
        results.append(list(trained.parameters.values()))
    for arrays in results[1:]:
        for array, first in zip(arrays, results[0], strict=True):
            np.testing.assert_array_equal(array, first)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_equals_unbroken(rng, name):
    ours, _, options = OPTIMIZERS[name]
    gradients = [[rng.standard_normal(shape) for shape in SHAPES] for _ in range(6)]

    def trained(count=0, state=None, start=None):
        made = module(*gradients[0], dtype="float32")
        optimizer = ours([made], 0.01, **options)
        for parameter, array in zip(made.parameters.values(), start or [], strict=False):
            parameter[...] = array
        if state is not None:
            optimizer.load_state_dict(state)
        for step in range(optimizer.steps, count):
            for gradient, value in zip(made.gradients.values(), gradients[step], strict=True):
                gradient[...] = value
            optimizer.learning_rate *= 0.9
            optimizer.step()
        return list(made.parameters.values()), optimizer

    unbroken, optimizer = trained(6)
    half, broken = trained(3)
    resumed, other = trained(6, broken.state_dict(), half)
    for array, expected in zip(resumed, unbroken, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert other.steps == optimizer.steps == 6
    assert other.learning_rate == optimizer.learning_rate
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)


def test_state_dicts_are_copies_with_names():
    readout = Linear(2, 1, seed=0)
    optimizer = Adam([readout], 0.1)
    state = optimizer.state_dict()
    assert {name: array.shape for name, array in state.items()} == {
        "steps": (),
        "learning_rate": (),
        "mean.0.weight": (1, 2),
        "mean.0.bias": (1,),
        "square.0.weight": (1, 2),
        "square.0.bias": (1,),
    }
    readout.gradients["bias"][:] = 1
    optimizer.step()
    assert not state["mean.0.bias"].any()
    assert state["steps"] == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mean.0.weight": None}, ValueError, r"state_dict: missing mean\.0\.weight"),
        ({"velocity.0.weight": np.zeros((1, 2))}, ValueError, r"state_dict: unexpected velocity\.0\.weight"),
        (
            {"square.0.bias": np.zeros(3)},
            ValueError,
            r"square\.0\.bias has shape \(3,\), expected \(1,\)",
        ),
        (
            {"steps": np.array(-1.0)},
            ValueError,
            r"state_dict\['steps'\] is -1.0; expected a finite number of",
        ),
        ({"learning_rate": np.array(np.nan)}, ValueError, r"state_dict\['learning_rate'\] is nan; expected"),
        ({"steps": np.array(1)}, TypeError, r"state_dict\['steps'\] is int64; expected floats"),
    ],
)
def test_bad_state_dicts_change_nothing(change, error, message):
    readout = Linear(2, 1, seed=0)
    optimizer = Adam([readout], 0.1)
    readout.gradients["bias"][:] = 1
    optimizer.step()
    before = optimizer.state_dict()
    wrong = {name: np.asarray(array + 1) for name, array in before.items()} | change
    wrong = {name: array for name, array in wrong.items() if array is not None}
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(wrong)
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("parameter", "gradient", "error", "message"),
    [
        (
            np.ones(3, np.float16),
            np.ones(3, np.float16),
            TypeError,
            "is float16; expected float32 or float64",
        ),
        (np.ones(3), np.ones(3, np.float32), TypeError, r"gradients\[1\] is float32; expected float64"),
        (np.ones(3), np.ones(4), ValueError, r"gradients\[1\] has shape \(4\); expected \(3\)"),
        (np.ones((3, 2)).T, np.ones((2, 3)), ValueError, r"parameters\[1\] must be C-contiguous and aligned"),
        (np.ones((2, 3)), np.ones((3, 2)).T, ValueError, r"gradients\[1\] must be C-contiguous and aligned"),
    ],
)
def test_arrays_that_cannot_be_stepped_change_nothing(parameter, gradient, error, message):
    odd = SimpleNamespace(parameters={"p": parameter}, gradients={"p": gradient})
    first = module([1.0])
    optimizer = Adam([first, odd])
    with pytest.raises(error, match=message):
        optimizer.step()
    assert first.parameters["p0"] == [1.0]
    assert optimizer.steps == 0


def test_parameters_of_both_dtypes_in_one_optimizer():
    modules = [module([2.0], dtype=dtype) for dtype in FLOATS]
    SGD(modules, 0.25).step()
    assert [m.parameters["p0"].tolist() for m in modules] == [[0.5], [0.5]]


def test_no_modules_are_no_work():
    optimizer = Adam([])
    optimizer.step()
    assert optimizer.steps == 1


def test_optimizers_write_in_place_and_zero_all_gradients():
    first, second = module([1.0]), module([[2.0]])
    arrays = [first.parameters["p0"], second.parameters["p0"]]
    optimizer = Adam([first, second])
    optimizer.step()
    assert first.parameters["p0"] is arrays[0]
    assert second.parameters["p0"] is arrays[1]
    assert all((array != 1).all() for array in arrays)
    optimizer.zero_grad()
    assert not first.gradients["p0"].any()
    assert not second.gradients["p0"].any()


@pytest.mark.parametrize("make", [lambda m: SGD(m, 0.1, momentum=0.9), AdaGrad, RMSprop, Adam, AdamW])
def test_optimizers_leave_all_as_it_is_in_eval_mode(make):
    layers = [[fastrnn.GRU(2, 3, seed=0), Linear(3, 1, seed=1)] for _ in range(2)]
    for modules in layers:
        for gradient in (g for m in modules for g in m.gradients.values()):
            gradient[...] = 0.5
    interrupted, plain = map(make, layers)
    interrupted.step()
    layers[0][0].eval()
    with pytest.raises(RuntimeError, match=r"modules\[0\], GRU\(2, 3\), is in eval mode: call train\(\)"):
        interrupted.step()
    layers[0][0].train()
    interrupted.step()
    plain.step()
    plain.step()
    for modules in zip(*layers, strict=True):
        for name, parameter in modules[0].parameters.items():
            np.testing.assert_array_equal(parameter, modules[1].parameters[name])


FRACTION = "a number of at least 0 and less than 1"
POSITIVE = "a finite number greater than 0"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *[
            (
                lambda make=make, bad=bad: make([], bad),
                ValueError,
                f"learning_rate is {bad}; expected {POSITIVE}",
            )
            for make in (SGD, AdaGrad, RMSprop, Adam, AdamW)
            for bad in (0.0, -1, math.nan, math.inf)
        ],
        (lambda: SGD([], "a"), TypeError, rf"learning_rate is 'a' \(str\); expected {POSITIVE}"),
        (lambda: SGD([], True), TypeError, rf"learning_rate is True \(bool\); expected {POSITIVE}"),
        (lambda: SGD([], 0.1, momentum=1.0), ValueError, f"momentum is 1.0; expected {FRACTION}"),
        (
            lambda: SGD([], 0.1, momentum=None),
            TypeError,
            rf"momentum is None \(NoneType\); expected {FRACTION}",
        ),
        *[
            (
                lambda make=make: make([], 0.1, weight_decay=-1.0),
                ValueError,
                "weight_decay is -1.0; expected a finite number of at least 0",
            )
            for make in (SGD, AdaGrad, RMSprop, Adam, AdamW)
        ],
        (lambda: SGD([], 0.1, nesterov=True), ValueError, "nesterov is True, but momentum is 0; expected"),
        (lambda: SGD([], 0.1, nesterov=1), TypeError, r"nesterov is 1 \(int\); expected True or False"),
        (lambda: AdaGrad([], eps=0.0), ValueError, f"eps is 0.0; expected {POSITIVE}"),
        (lambda: RMSprop([], decay=1.0), ValueError, f"decay is 1.0; expected {FRACTION}"),
        (lambda: RMSprop([], eps=-1.0), ValueError, f"eps is -1.0; expected {POSITIVE}"),
        (lambda: RMSprop([], momentum=1.0), ValueError, f"momentum is 1.0; expected {FRACTION}"),
        (lambda: Adam([], betas=(0.9, 1.0)), ValueError, rf"betas\[1\] is 1.0; expected {FRACTION}"),
        (lambda: Adam([], betas=(-0.1, 0.9)), ValueError, rf"betas\[0\] is -0.1; expected {FRACTION}"),
        (lambda: Adam([], betas="12"), TypeError, rf"betas\[0\] is '1' \(str\); expected {FRACTION}"),
        (lambda: Adam([], betas=0.9), TypeError, "betas is 0.9; expected two numbers"),
        (lambda: Adam([], betas=(0.9,)), ValueError, r"betas is \(0.9,\); expected two numbers"),
        (lambda: Adam([], eps=0.0), ValueError, f"eps is 0.0; expected {POSITIVE}"),
    ],
)
def test_optimizers_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_assigned_learning_rate_is_checked_before_a_step():
    trained = module([1.0])
    optimizer = SGD([trained], 0.1)
    optimizer.learning_rate = math.nan
    with pytest.raises(ValueError, match="learning_rate is nan; expected a finite number of at least 0"):
        optimizer.step()
    optimizer.learning_rate = 0.0  # where a schedule starts
    optimizer.step()
    assert trained.parameters["p0"] == [1.0]


MADE = {
    "layer": lambda dtype: fastrnn.LSTM(3, 4, dtype=dtype, seed=0),
    "model": lambda dtype: ManyToMany(fastrnn.GRU(3, 4, dtype=dtype, seed=0), 2, seed=1),
    "linear": lambda dtype: Linear(3, 2, dtype=dtype, seed=0),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_what_was_pickled_goes_on_training(rng, kind, dtype, with_optimizer):
    """The dtypes of arrays that were pickled are equal to NumPy's own, but other objects."""
    x = rng.standard_normal((5, 2, 3)).astype(dtype)

    def step(trained, optimizer):
        optimizer.zero_grad()
        o = trained(x)[0] if kind != "linear" else trained(x)
        trained.backward(np.ones_like(o))
        optimizer.step()

    trained = MADE[kind](dtype)
    optimizer = Adam([trained], 0.1)
    step(trained, optimizer)
    if with_optimizer:
        again, resumed = pickle.loads(pickle.dumps((trained, optimizer)))
    else:
        again = pickle.loads(pickle.dumps(trained))
        resumed = Adam([again], 0.1)
        resumed.load_state_dict(optimizer.state_dict())
    for one, other in ((trained, optimizer), (again, resumed)):
        step(one, other)
    for name, parameter in trained.parameters.items():
        assert_same_bits(again.parameters[name], parameter, name)
