"""Can a layer take the place of torch.nn's?  Same arguments, same checkpoint, same tensors in and out."""

from __future__ import annotations

from typing import Any

import fastrnn
import numpy as np
import pytest
from fastrnn.layouts import DTYPES
from problems import flat, like_state
from shapes import make_spec
from tolerances import assert_close, chain, size

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

KINDS = {
    "lstm": ("LSTM", {}),
    "lstm-proj": ("LSTM", {"proj_size": 5}),
    "gru": ("GRU", {}),
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
}
INPUT, HIDDEN, STEPS, BATCH = 7, 9, 6, 5


class Pair:
    """The same layer twice, with the same parameters."""

    def __init__(self, variant: str, dtype: str = "float32", **options: Any) -> None:
        name, own = KINDS[variant]
        torch.manual_seed(len(variant) + 100 * len(options))
        self.torch_dtype = getattr(torch, dtype)
        self.theirs = getattr(torch.nn, name)(INPUT, HIDDEN, **own, **options, dtype=self.torch_dtype)
        self.ours = getattr(fastrnn, name)(INPUT, HIDDEN, **own, **options, dtype=dtype)
        self.ours.load_state_dict(self.theirs.state_dict())
        self.batch_first = options.pop("batch_first", False)
        self.spec = make_spec(variant, INPUT, HIDDEN, dtype=dtype, **own | options)

    def normal(self, *shape: int) -> Any:
        """Draw a tensor."""
        return torch.randn(*shape, dtype=self.torch_dtype)

    def sequence(self, steps: int, batch: int | None) -> Any:
        """Draw an x, without a batch axis if `batch` is None."""
        if batch is None:
            return self.normal(steps, INPUT)
        return self.normal(batch, steps, INPUT) if self.batch_first else self.normal(steps, batch, INPUT)

    def state(self, batch: int | None) -> Any:
        """Draw a state."""
        shapes = self.spec.state_shapes(1 if batch is None else batch)
        drawn = (self.normal(*shape) for shape in shapes)
        return like_state(self.spec, (s[:, 0] for s in drawn) if batch is None else drawn)

    def check(self, x: Any, state: Any, lengths: Any = None) -> None:
        """Compare outputs, states and every gradient of one call, for random incoming gradients."""
        y, state_n = self.ours(x, state, lengths=lengths)
        dy, dstate_n = torch.randn_like(y), like_state(self.spec, map(torch.randn_like, flat(state_n)))
        dx, dstate = self.ours.backward(dy, dstate_n)

        x = x.clone().requires_grad_()
        states = [s.clone().requires_grad_() for s in flat(state)] if state is not None else []
        given: Any = x
        if lengths is not None:
            given = torch.nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=self.batch_first, enforce_sorted=False
            )
        expected_y, expected_n = self.theirs(given, like_state(self.spec, states) if states else None)
        if lengths is not None:
            expected_y, _ = torch.nn.utils.rnn.pad_packed_sequence(
                expected_y, batch_first=self.batch_first, total_length=x.shape[1 if self.batch_first else 0]
            )
        outs, douts = (expected_y, *flat(expected_n)), (dy, *flat(dstate_n))
        sum((out * dout).sum() for out, dout in zip(outs, douts, strict=True)).backward()

        steps, batch = (x.shape[0], 1) if x.ndim == 2 else x.shape[:2]
        forward = chain(self.spec, steps * batch)  # batch_first or not
        backward = chain(self.spec, steps * batch, 1)
        gradients = {name: p.grad for name, p in self.theirs.named_parameters()}
        assert list(self.ours.gradients) == list(gradients)
        self.close("y", y, expected_y, forward)
        for a, e in zip(flat(state_n), flat(expected_n), strict=True):
            self.close("state_n", a, e, forward)
        self.close("dx", dx, x.grad, backward)
        for a, s in zip(flat(dstate), states, strict=False):
            self.close("dstate", a, s.grad, backward)
        largest = size(*(g.numpy() for g in gradients.values()))
        for name, gradient in gradients.items():
            self.close(name, torch.from_numpy(self.ours.gradients[name]), gradient, backward, largest)

    @staticmethod
    def close(what: str, actual: Any, expected: Any, n: int, scale: float | None = None) -> None:
        """Compare two tensors, both of which are rounded: hence twice the products."""
        assert type(actual) is torch.Tensor
        wanted = expected.detach().numpy()
        assert_close(actual.numpy(), wanted, n_products=2 * n, scale=scale, what=what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("variant", KINDS)
def test_every_option(
    variant: str, bias: bool, bidirectional: bool, layers: int, batch_first: bool, dtype: str
) -> None:
    """Plain, with an initial state, packed, unbatched, a single step."""
    options = {"bias": bias, "bidirectional": bidirectional, "num_layers": layers, "batch_first": batch_first}
    for batch, steps, given, lengths in [
        (BATCH, STEPS, False, None),
        (BATCH, STEPS, True, None),
        (BATCH, STEPS, True, [3, 6, 1, 6, 2]),
        (None, STEPS, True, None),
        (BATCH, 1, True, None),
        (1, STEPS, False, [4]),
    ]:
        pair = Pair(variant, dtype, **options)
        state = pair.state(batch) if given else None
        pair.check(pair.sequence(steps, batch), state, None if lengths is None else torch.tensor(lengths))


@pytest.mark.parametrize("variant", KINDS)
def test_an_empty_batch(variant: str) -> None:
    """No rows: the shapes of torch.nn, and gradients of zero."""
    pair = Pair(variant, bidirectional=True)
    pair.check(pair.sequence(STEPS, 0), pair.state(0))


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("variant", KINDS)
def test_dropout_where_chance_has_no_say(variant: str, p: float) -> None:
    """None, and all; in eval mode neither matters."""
    pair = Pair(variant, dropout=p, num_layers=3)
    pair.check(pair.sequence(STEPS, BATCH), pair.state(BATCH))
    x = pair.sequence(STEPS, BATCH)
    y, _ = pair.ours.eval()(x)
    expected, _ = pair.theirs.eval()(x)
    pair.close("y", y, expected, chain(pair.spec, STEPS))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("name", "variant", "options"),
    [
        ("LSTMCell", "lstm", {}),
        ("GRUCell", "gru", {}),
        ("RNNCell", "rnn-tanh", {}),
        ("RNNCell", "rnn-relu", {"nonlinearity": "relu"}),
    ],
)
def test_cells(name: str, variant: str, options: dict[str, str], bias: bool) -> None:
    """One step, batched and not, with and without a state, and its gradients."""
    torch.manual_seed(1)
    theirs = getattr(torch.nn, name)(INPUT, HIDDEN, bias=bias, **options)
    ours = getattr(fastrnn, name)(INPUT, HIDDEN, bias=bias, **options)
    ours.load_state_dict(theirs.state_dict())
    spec = make_spec(variant, INPUT, HIDDEN)
    n = chain(spec, 1, BATCH)
    for shape in ((BATCH,), ()):
        for given in (True, False):
            x = torch.randn(*shape, INPUT)
            states = [torch.randn(*shape, HIDDEN) for _ in spec.state_shapes(1)] if given else []
            state_n = ours(x, like_state(spec, states) if given else None)
            dstate_n = [torch.randn_like(s) for s in flat(state_n)]
            ours.zero_grad()
            dx, dstate = ours.backward(like_state(spec, dstate_n))

            x.requires_grad_()
            for s in states:
                s.requires_grad_()
            expected = theirs(x, like_state(spec, states) if given else None)
            theirs.zero_grad()
            sum((s * d).sum() for s, d in zip(flat(expected), dstate_n, strict=True)).backward()
            for a, e in zip(flat(state_n), flat(expected), strict=True):
                Pair.close("state", a, e, n)
            Pair.close("dx", dx, x.grad, n)
            for a, s in zip(flat(dstate), states, strict=False):
                Pair.close("dstate", a, s.grad, n)
            for key, parameter in theirs.named_parameters():
                Pair.close(key, torch.from_numpy(ours.gradients[key]), parameter.grad, n)


@pytest.mark.parametrize("variant", KINDS)
def test_as_exact_as_torch(variant: str) -> None:
    """Against float64, the error of float32 is at most twice that of torch.nn's float32."""
    pair, exact = Pair(variant, num_layers=2), Pair(variant, "float64", num_layers=2)
    exact.theirs.load_state_dict(pair.theirs.state_dict())
    x = pair.sequence(50, 16)
    with torch.no_grad():
        expected, _ = exact.theirs(x.double())
        theirs, _ = pair.theirs(x)
        ours, _ = pair.ours(x)
    their_error, our_error = ((y.double() - expected).abs().max().item() for y in (theirs, ours))
    assert our_error <= 2 * their_error + np.finfo(np.float32).eps / 2
