"""Do the operators behave as torch's own: derivatives, compilation, export, torch.func, replacement?"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close, chain, size

torch = pytest.importorskip("torch")
import fastrnn.torch as ours  # noqa: E402
from fastrnn.torch import _kernels  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402

pytestmark = [
    pytest.mark.frameworks,
    # Of torch itself, on its way to compile anything.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "lstm, everything": (
        "LSTM",
        {"num_layers": 2, "bidirectional": True, "proj_size": 2, "peephole": "full"},
    ),
    "lstm, diagonal": ("LSTM", {"peephole": "diagonal", "batch_first": True, "bias": False}),
    "gru": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "gru, reset before": ("GRU", {"reset_after": False}),
    "rnn": ("RNN", {"bidirectional": True}),
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm cell": ("LSTMCell", {}),
    "gru cell": ("GRUCell", {}),
    "rnn cell": ("RNNCell", {}),
}
LENGTHS = torch.tensor([3, 0])
RESETS = torch.tensor([[False, True], [True, False], [True, False]])


def flat(results: Any) -> tuple[Any, ...]:
    if isinstance(results, tuple):
        return tuple(tensor for part in results for tensor in flat(part))
    return (results,)


def function_of(module: Any, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the module as a function of x, states and weights, and such arguments."""
    names = [name for name, _ in module.named_parameters()]
    cell = isinstance(module, torch.nn.RNNCellBase)
    lstm = isinstance(module, ours.LSTM | ours.LSTMCell)
    states = 2 if lstm else 1

    def function(x: Any, *others: Any) -> tuple[Any, ...]:
        state = others[:states] if lstm else others[0]
        weights = dict(zip(names, others[states:], strict=True))
        return flat(torch.func.functional_call(module, weights, (x, state), options))

    def draw(*shape: int) -> Any:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    if cell:
        x, state = draw(2, 2), [draw(2, 3) for _ in range(states)]
    else:
        n = module.num_layers * (2 if module.bidirectional else 1)
        widths = (module.proj_size or 3, 3)[:states]
        x, state = draw(*((2, 3) if module.batch_first else (3, 2)), 2), [draw(n, 2, w) for w in widths]
    return function, (x, *state, *(p.detach().clone().requires_grad_() for p in module.parameters()))


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_first_and_second_derivatives(kind: str) -> None:
    torch.manual_seed(0)
    name, options = (LAYERS | CELLS)[kind]
    function, arguments = function_of(getattr(ours, name)(2, 3, **options, dtype=torch.float64))
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)  # along random directions


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_derivatives_with_lengths_and_resets(kind: str) -> None:
    torch.manual_seed(0)
    name, options = LAYERS[kind]
    layer = getattr(ours, name)(2, 3, **options, dtype=torch.float64)
    for given in ({"lengths": LENGTHS}, {"resets": RESETS}, {"lengths": LENGTHS, "resets": RESETS}):
        function, arguments = function_of(layer, **given)
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_second_derivatives_see_the_mask_of_dropout() -> None:
    torch.manual_seed(0)
    layer = ours.GRU(2, 3, num_layers=2, dropout=0.5, dtype=torch.float64)
    function, arguments = function_of(layer)

    def fixed(*given: Any) -> Any:
        torch.manual_seed(1)
        return function(*given)

    assert torch.autograd.gradcheck(fixed, arguments)
    assert torch.autograd.gradgradcheck(fixed, arguments)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_second_derivatives_past_nan_in_what_is_no_step(kind: str) -> None:
    """Padding, and the state of a row without steps, are where they are 0."""
    module = getattr(ours, kind.upper())(3, 4, dtype=torch.float64)
    lengths = torch.tensor([6, 2, 0])
    filled = []
    for filler in (0.0, torch.nan):
        x = torch.linspace(-1, 1, 6 * 3 * 3, dtype=torch.float64).reshape(6, 3, 3)
        x[2:, 1] = filler
        x[:, 2] = filler
        x.requires_grad_()
        y = module(x, lengths=lengths)[0]
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        filled.append(torch.autograd.grad(dx.square().sum(), [x, *module.parameters()]))
    for zero, nan in zip(*filled, strict=True):
        assert torch.equal(zero, nan)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_second_derivatives_are_not_rounded_by_autocast(kind: str) -> None:
    module = getattr(ours, kind.upper())(3, 4)
    x = torch.randn(5, 2, 3)
    found = []
    for enabled in (False, True):
        own = x.clone().requires_grad_()
        y = module(own)[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            (dx,) = torch.autograd.grad(y.sum(), own, create_graph=True)
            found.append(torch.autograd.grad(dx.square().sum(), list(module.parameters())))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("given", [{}, {"lengths": torch.tensor([5, 2])}], ids=["all", "lengths"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_forward_mode(kind: str, given: dict[str, Any]) -> None:
    """Tangents are Jacobians times vectors, with and without a graph, and of torch.func as well."""
    module = getattr(ours, kind.upper())(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    v = torch.randn_like(x)

    def run(x: Any) -> Any:
        return module(x, **given)[0]

    expected = torch.einsum("...ijk,ijk->...", torch.autograd.functional.jacobian(run, x), v)
    for graph in (False, True):
        with torch.set_grad_enabled(graph), forward_ad.dual_level():
            found = forward_ad.unpack_dual(run(forward_ad.make_dual(x, v))).tangent
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.func.jvp(run, (x,), (v,))[1], expected)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_is_a_function_of_its_input(kind: str) -> None:
    module = getattr(ours, kind.upper())(3, 4).eval()
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        traced = torch.jit.trace(module, torch.zeros(5, 2, 3))
        assert torch.equal(traced(x)[0], module(x)[0])
    traced = torch.jit.trace(module.train(), torch.zeros(5, 2, 3))
    gradients = [torch.autograd.grad(run(x)[0].sum(), list(module.parameters())) for run in (traced, module)]
    assert all(map(torch.equal, *gradients))


def test_compiled_with_lengths_of_numpy() -> None:
    module = ours.GRU(3, 4)
    x, lengths = torch.randn(5, 2, 3), np.array([5, 2])
    run = torch.compile(lambda x, lengths: module(x, lengths=lengths)[0], backend="aot_eager")
    assert torch.equal(run(x, lengths), module(x, lengths=lengths)[0])


def test_vmap_over_nothing() -> None:
    module = ours.GRU(3, 4)
    with pytest.raises(ValueError, match="vmap goes over 0 samples; expected at least 1"):
        torch.func.vmap(lambda x: module(x)[0])(torch.zeros(0, 5, 2, 3))


def test_a_third_derivative() -> None:
    torch.manual_seed(0)
    function, (x, *others) = function_of(ours.RNN(2, 3, dtype=torch.float64))

    def gradient(x: Any) -> Any:
        return torch.autograd.grad(function(x, *others)[0].square().sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, (x,))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_penalty_on_gradients(kind: str) -> None:
    """A second derivative in training, against torch.nn's where it has the layer."""
    name, options = LAYERS[kind]
    if set(options) & {"peephole", "reset_after"}:
        pytest.skip("torch.nn has no such layer; the test above has")
    sums = []
    for library in (torch.nn, ours):
        torch.manual_seed(0)
        layer = getattr(library, name)(3, 4, **options, dtype=torch.float64)
        x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        sums.append(torch.autograd.grad(dx.square().sum(), list(layer.parameters()), allow_unused=True))
    assert len(sums[0]) == len(sums[1])
    scale = size(*(g.numpy() for g in sums[0] if g is not None))
    n = chain(_kernels.plan_of(layer._options("TB", 0.0), torch.float64).spec, 10, 1)
    for e, a in zip(*sums, strict=True):
        assert_close(
            a.numpy(), (torch.zeros_like(a) if e is None else e).numpy(), n_products=4 * n, scale=scale
        )


def test_going_back_twice() -> None:
    """With retain_graph the same bits; without, torch's error."""
    layer = ours.LSTM(3, 4)
    loss = layer(torch.randn(5, 2, 3))[0].square().sum()
    parameters = list(layer.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    layer(torch.randn(5, 2, 3))[0].sum().backward()
    second = torch.autograd.grad(loss, parameters)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, parameters)


def test_a_weight_changed_before_backward() -> None:
    layer = ours.GRU(3, 4)
    y, _ = layer(torch.randn(5, 2, 3))
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_saved_tensors_may_be_moved() -> None:
    """Hooks that copy what is saved, as save_on_cpu's: the reserve is then made again."""
    layer = ours.LSTM(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 3, requires_grad=True)
    torch.manual_seed(0)
    expected = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.parameters()])
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = layer(x)[0].square().sum()
    actual = torch.autograd.grad(loss, [x, *layer.parameters()])
    assert all(map(torch.equal, actual, expected))


def test_checkpointing() -> None:
    layer = ours.LSTM(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(5, 2, 3, requires_grad=True)
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)[0] if again else layer(x)[0]
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))
    assert all(map(torch.equal, *gradients))


# ------------------------------------------------------------------------------- the operators


def operator_arguments(kind: str, given: dict[str, Any]) -> tuple[Any, ...]:
    name, options = (LAYERS | CELLS)[kind]
    torch.manual_seed(0)
    module = getattr(ours, name)(2, 3, **options)
    captured: list[Any] = []
    from fastrnn.torch import _modules

    real = _modules.recurrence
    _modules.recurrence = lambda *arguments: captured.append(arguments) or real(*arguments)
    try:
        _, arguments = function_of(module.double())
        module.float()
        x, *state = (a.detach().float().requires_grad_() for a in arguments)
        module(x, tuple(state[:2]) if "LSTM" in name else state[0], **given)
    finally:
        _modules.recurrence = real
    return captured[0]


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("lstm", {}),
        ("gru", {"lengths": LENGTHS, "resets": RESETS}),
        ("lstm cell", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_opcheck(kind: str, given: dict[str, Any]) -> None:
    arguments = operator_arguments(kind, given)
    torch.library.opcheck(torch.ops.fastrnn.train.default, arguments)

    def without_graph(value: Any) -> Any:
        if isinstance(value, list):
            return [w.detach() for w in value]
        return value.detach() if isinstance(value, torch.Tensor) else value

    plain = [without_graph(a) for a in arguments]
    lengths, resets, seed, options = plain[4:8]
    torch.library.opcheck(torch.ops.fastrnn.infer.default, tuple(plain))
    y, h_n, _, reserve = torch.ops.fastrnn.train(*plain)
    y = y if y.numel() else h_n
    backward = (
        torch.randn_like(y) if "layout=B " not in options else None, torch.randn_like(h_n), None,
        *arguments[:4], lengths, resets, seed, y, reserve, options, True,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.fastrnn.backward.default, backward)


# ------------------------------------------------------------------------------ compile, export


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_compiled_whole(kind: str) -> None:
    """No graph break; the same bits, forward and backward, in both modes."""
    name, options = (LAYERS | CELLS)[kind]
    module = getattr(ours, name)(2, 3, **options)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(*((2,) if name.endswith("Cell") else (3, 2)), 2, requires_grad=True)
    for mode in (module.train(), module.eval()):
        results = []
        for run in (mode, compiled):
            outs = flat(run(x))
            results.append(
                (*outs, *torch.autograd.grad(sum(o.square().sum() for o in outs), [x, *module.parameters()]))
            )
            with torch.no_grad():
                results[-1] += flat(run(x))
        assert all(map(torch.equal, *results))


def test_compiled_by_inductor() -> None:
    """In a model, with dropout, lengths and a state; a fresh mask each call."""
    torch.compiler.reset()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = ours.LSTM(4, 8, num_layers=2, dropout=0.5, batch_first=True)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x: Any, state: Any, lengths: Any) -> Any:
            y, _ = self.layer(torch.relu(x), state, lengths=lengths)
            return self.head(y.sum(1))

    model = Model()
    compiled = torch.compile(model, fullgraph=True)
    x, lengths = torch.randn(3, 5, 4), torch.tensor([5, 0, 2])
    state = (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    first, second = compiled(x, state, lengths), compiled(x, state, lengths)
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    assert torch.allclose(compiled(x, state, lengths), model(x, state, lengths), atol=1e-6)


def test_compiled_around_a_packed_call() -> None:
    """Its sizes are data, so that the graph breaks there, and goes on."""
    torch.compiler.reset()
    layer = ours.GRU(3, 4)
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(5, 3), torch.randn(3, 3)])

    def run(packed: Any) -> Any:
        return layer(packed)[0].data.sin()

    with torch.no_grad():  # resuming with a graph, dynamo warns of itself
        assert torch.equal(torch.compile(run, backend="aot_eager")(packed), run(packed))


@pytest.mark.parametrize("strict", [False, True], ids=["as is", "strict"])
@pytest.mark.parametrize("kind", ["lstm, everything", "gru", "rnn", "lstm cell"])
def test_exported(kind: str, strict: bool) -> None:
    name, options = (LAYERS | CELLS)[kind]
    module = getattr(ours, name)(2, 3, **options).eval()
    cell = name.endswith("Cell")
    x = torch.randn(2, 2) if cell else torch.randn(3, 2, 2)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0 if cell else 1: batch},), strict=strict)
    other = torch.randn(7, 2) if cell else torch.randn(3, 7, 2)
    for given in (x, other):
        assert all(map(torch.equal, flat(program.module()(given)), flat(module(given))))


# ------------------------------------------------------------------------------------ torch.func


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_per_sample_gradients(kind: str) -> None:
    """vmap of grad is grad of one sample after the other, to the bit; and a state of each sample's own."""
    name, options = (LAYERS | CELLS)[kind]
    module = getattr(ours, name)(2, 3, **options)
    parameters = {k: v.detach() for k, v in module.named_parameters()}
    shape = (2, 2) if name.endswith("Cell") else (3, 2, 2)
    xs = torch.randn(4, *shape)

    def loss(parameters: Any, x: Any) -> Any:
        return sum(o.square().sum() for o in flat(torch.func.functional_call(module, parameters, (x,))))

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)
    for number, x in enumerate(xs):
        alone = torch.func.grad(loss)(parameters, x)
        module.zero_grad()
        sum(o.square().sum() for o in flat(module(x))).backward()
        for key, gradient in alone.items():
            assert torch.equal(together[key][number], gradient)
            assert torch.equal(gradient, module.get_parameter(key).grad)


def test_vmap_over_weights_and_hidden_axes() -> None:
    """An ensemble; and a mapped axis that is not the first."""
    layers = [ours.GRU(2, 3) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(layers)
    x = torch.randn(5, 2, 4, 2)

    def run(weights: Any, x: Any) -> Any:
        return torch.func.functional_call(layers[0], weights, (x,))[0]

    ys = torch.func.vmap(run, (0, None))(stacked, x[:, :, 0])
    assert all(torch.equal(y, layer(x[:, :, 0])[0]) for y, layer in zip(ys, layers, strict=True))
    ys = torch.func.vmap(layers[0], in_dims=2)(x)[0]
    assert all(torch.equal(ys[n], layers[0](x[:, :, n])[0]) for n in range(4))
    gradients = torch.func.grad(lambda w: torch.func.vmap(run, (0, None))(w, x[:, :, 0]).sum())(stacked)
    layers[1](x[:, :, 0])[0].sum().backward()
    assert torch.allclose(gradients["weight_hh_l0"][1], layers[1].weight_hh_l0.grad, atol=1e-6)


def test_jacobians_and_hessians() -> None:
    torch.manual_seed(0)
    function, arguments = function_of(ours.LSTM(2, 3, dtype=torch.float64))
    x, *others = (a.detach() for a in arguments)

    def y(x: Any) -> Any:
        return function(x, *others)[0]

    jacobian = torch.func.jacrev(y)(x)
    assert torch.allclose(jacobian, torch.autograd.functional.jacobian(y, x))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_batched_gradients_of_autograd(kind: str) -> None:
    """is_grads_batched, vectorize and check_batched_grad, which map without torch.func; twice as well."""
    torch.manual_seed(0)
    function, (x, *others) = function_of(getattr(ours, kind)(2, 3, dtype=torch.float64))
    y = function(x, *others)[0]
    dys = torch.randn(4, *y.shape, dtype=torch.float64)
    together = torch.autograd.grad(y, [x, *others], dys, is_grads_batched=True, retain_graph=True)
    for number, dy in enumerate(dys):
        alone = torch.autograd.grad(y, [x, *others], dy, retain_graph=True)
        assert all(torch.equal(both[number], one) for both, one in zip(together, alone, strict=True))
    jacobians = [
        torch.autograd.functional.jacobian(lambda x: function(x, *others)[0], x, vectorize=vectorize)
        for vectorize in (False, True)
    ]
    torch.testing.assert_close(*jacobians)
    assert torch.autograd.gradcheck(function, (x, *others), check_batched_grad=True)
    hessians = [
        torch.autograd.functional.hessian(
            lambda x: function(x, *others)[0].square().sum(), x.detach(), vectorize=vectorize
        )
        for vectorize in (False, True)
    ]
    torch.testing.assert_close(*hessians)


@pytest.mark.parametrize("inner", ["jacfwd", "jacrev"])
@pytest.mark.parametrize("outer", ["jacfwd", "jacrev"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_hessians(kind: str, outer: str, inner: str) -> None:
    """Of torch.func in every order of modes, forward over reverse (`torch.func.hessian`) among them."""
    theirs, mine = (getattr(library, kind)(2, 3, dtype=torch.float64) for library in (torch.nn, ours))
    mine.load_state_dict(theirs.state_dict())

    def loss(module: Any) -> Any:
        return lambda x: flat(module(x))[0].square().sum()

    x = torch.randn(*((2,) if kind.endswith("Cell") else (3, 2)), 2, dtype=torch.float64)
    found = getattr(torch.func, outer)(getattr(torch.func, inner)(loss(mine)))(x)
    torch.testing.assert_close(found, torch.autograd.functional.hessian(loss(theirs), x))


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_second_derivatives_of_dropout_under_vmap(kind: str, randomness: str) -> None:
    """A mask of each sample, the same in every derivative: forward over reverse is reverse twice."""
    layer = getattr(ours, kind)(2, 3, num_layers=2, dropout=0.5, dtype=torch.float64)
    x, v = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)

    def gradient(x: Any) -> Any:
        return torch.func.grad(lambda x: layer(x)[0].square().sum())(x)

    def reverse(x: Any, v: Any) -> Any:
        return torch.func.vjp(gradient, x)[1](v)[0]

    def forward(x: Any, v: Any) -> Any:
        return torch.func.jvp(gradient, (x,), (v,))[1]

    found = []
    for products in (reverse, forward):
        torch.manual_seed(5)
        found.append(torch.func.vmap(products, randomness=randomness)(x, v))
    torch.testing.assert_close(*found)
    if randomness == "same":
        for one, x_one, v_one in zip(found[0], x, v, strict=True):
            torch.manual_seed(5)
            torch.testing.assert_close(one, reverse(x_one, v_one))
    else:
        torch.manual_seed(5)
        rows = torch.func.vmap(reverse, randomness=randomness)(x[:1].expand_as(x), v[:1].expand_as(v))
        assert not torch.equal(rows[0], rows[1])


# --------------------------------------------------------------------------------------- replace


class Tagger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.encoder = torch.nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.middle = torch.nn.ModuleList([torch.nn.GRU(16, 8, batch_first=True)])
        self.last = torch.nn.RNN(8, 8, nonlinearity="relu", batch_first=True)
        self.again = self.last
        self.cell = torch.nn.LSTMCell(8, 8)

    def forward(self, tokens: Any) -> Any:
        y, _ = self.encoder(self.embed(tokens))
        y, _ = self.middle[0](y)
        y, _ = self.again(self.last(y)[0])
        return self.cell(y[:, -1])[0]


def test_replace() -> None:
    """Same outputs and gradients, the same parameters and state_dict, shared modules still shared."""
    torch.manual_seed(0)
    model = Tagger()
    before = copy.deepcopy(model)
    torch.nn.utils.parametrizations.weight_norm(model.middle[0], "weight_hh_l0")
    torch.nn.utils.parametrizations.weight_norm(before.middle[0], "weight_hh_l0")
    parameters = list(model.parameters())
    report = ours.replace(model)
    assert list(report) == ["encoder", "middle.0", "last"]
    assert all(text.startswith("swapped, ") for text in report.values())
    assert "encoder:  swapped, LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)" in str(report)
    assert isinstance(model.encoder, ours.LSTM)
    assert isinstance(model.middle[0], ours.GRU)
    assert isinstance(model.last, ours.RNN)
    assert model.again is model.last
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(before.state_dict())
    tokens = torch.randint(11, (3, 5))
    sums = []
    for one in (before, model):
        y = one(tokens)
        sums.append((y.detach(), *torch.autograd.grad(y.sum(), list(one.parameters()))))
        sums[-1] += (one.eval()(tokens).detach(),)
    for e, a in zip(*sums, strict=True):
        assert torch.allclose(a, e, atol=1e-5)
    assert ours.replace(model) == {}


def test_replace_of_the_model_itself_and_what_it_leaves() -> None:
    class Own(torch.nn.GRU):
        def forward(self, *arguments: Any) -> Any:
            return super().forward(*arguments)

    layer = torch.nn.GRU(3, 4)
    assert dict(ours.replace(layer)) == {"": "swapped, GRU(3, 4)"}
    assert type(layer) is ours.GRU
    assert copy.deepcopy(layer)(torch.zeros(5, 2, 3))[0].shape == (5, 2, 4)
    model = torch.nn.ModuleDict({"own": Own(3, 4), "narrow": torch.nn.LSTM(3, 4, dtype=torch.bfloat16)})
    report = ours.replace(model)
    assert report["own"] == "left alone: Own is a subclass of torch.nn.GRU"
    assert report["narrow"] == "left alone: there are no kernels for torch.bfloat16 on cpu"
    assert type(model["own"]) is Own
    with pytest.raises(TypeError, match=r"model has type str; expected a torch\.nn\.Module"):
        ours.replace("model")


def test_a_checkpoint_of_torchs_becomes_ours() -> None:
    """A whole pickled module of torch.nn, as people have them in files."""
    layer = copy.deepcopy(torch.nn.LSTM(3, 4, 2))
    mine = ours.LSTM(3, 4, 2)
    mine.load_state_dict(layer.state_dict())
    layer.load_state_dict(mine.state_dict())
    assert torch.allclose(mine(torch.ones(5, 2, 3))[0], layer(torch.ones(5, 2, 3))[0], atol=1e-6)
