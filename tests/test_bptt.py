"""Are truncated, accumulated and full back-propagation through time the gradients they are said to be?"""

from __future__ import annotations

import fastrnn
import numpy as np
import pytest
from fastrnn.models import ManyToMany
from fastrnn.training import (
    SGD,
    Linear,
    accumulate,
    full_bptt,
    softmax_cross_entropy,
    truncated_bptt,
)
from tolerances import assert_close, assert_same_bits

STEPS, BATCH, SIZE, SYMBOLS = 23, 3, 6, 5


def make_model(cell=fastrnn.LSTM, dtype="float64"):
    return ManyToMany(cell(SYMBOLS, SIZE, dtype=dtype, seed=0), SYMBOLS, seed=1)


def make_data(rng, steps=STEPS):
    return rng.integers(SYMBOLS, size=(steps, BATCH)), rng.integers(SYMBOLS, size=(steps, BATCH))


def copied(gradients):
    return {name: gradient.copy() for name, gradient in gradients.items()}


def summed(o, targets, mask=None):
    """A loss that adds up over windows: cross entropy, summed."""
    count = targets.size if mask is None else np.count_nonzero(mask)
    loss, do = softmax_cross_entropy(o, targets, mask)
    return loss * count, do * count


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k1", [STEPS, STEPS + 1])
def test_one_window_is_full_bptt_to_the_bit(rng, dtype, k1):
    x, targets = make_data(rng)
    model, other = make_model(dtype=dtype), make_model(dtype=dtype)
    loss, state = full_bptt(model, x, targets, softmax_cross_entropy)
    losses, state_n = truncated_bptt(other, x, targets, softmax_cross_entropy, k1, k1)
    assert losses == [loss]
    for name, gradient in model.gradients.items():
        assert_same_bits(other.gradients[name], gradient, name)
    for h, h_n in zip(state, state_n, strict=True):
        assert_same_bits(h_n, h)


@pytest.mark.parametrize("k1", [1, 7, 22])
def test_equal_k1_and_k2_are_training_chunk_by_chunk(rng, k1):
    x, targets = make_data(rng)
    model, other = make_model(), make_model()
    optimizer, peer = SGD([model], 0.1, momentum=0.5), SGD([other], 0.1, momentum=0.5)

    def update():
        optimizer.step()
        optimizer.zero_grad()

    losses, state_n = truncated_bptt(model, x, targets, softmax_cross_entropy, k1, update=update)
    expected, state = [], None
    for start in range(0, STEPS, k1):
        part = slice(start, start + k1)
        loss, state = full_bptt(other, x[part], targets[part], softmax_cross_entropy, state=state)
        expected.append(loss)
        peer.step()
        peer.zero_grad()
    assert losses == expected
    for name, parameter in other.parameters.items():
        assert_same_bits(model.parameters[name], parameter, name)
    for h, h_n in zip(state, state_n, strict=True):
        assert_same_bits(h_n, h)


@pytest.mark.parametrize(("k1", "k2"), [(2, 5), (5, 5), (5, 8), (4, 12), (7, STEPS), (6, 100)])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_gradients_are_those_of_torch_with_the_state_detached(rng, cell, k1, k2):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    x, targets = make_data(rng)
    model = make_model(getattr(fastrnn, cell))
    initial = rng.standard_normal((1, BATCH, SIZE))
    state = (initial, initial[::-1].copy()) if cell == "LSTM" else initial
    losses, _ = truncated_bptt(model, x, targets, summed, k1, k2, state=state)

    peer = getattr(torch.nn, cell)(SYMBOLS, SIZE, dtype=torch.float64)
    readout = torch.nn.Linear(SIZE, SYMBOLS, dtype=torch.float64)
    for module, part in ((peer, "layer"), (readout, "readout")):
        parameters = model.parts[part].parameters.items()
        module.load_state_dict({name: torch.from_numpy(p) for name, p in parameters})
    hot = torch.nn.functional.one_hot(torch.from_numpy(x), SYMBOLS).double()

    def run(start, end):
        """The state at `start`, without a graph, and then the outputs to `end`."""
        h = tuple(map(torch.from_numpy, state)) if cell == "LSTM" else torch.from_numpy(state)
        if start:
            with torch.no_grad():
                h = peer(hot[:start], h)[1]
        return readout(peer(hot[start:end], h)[0])

    expected = []
    for end in [*range(k1, STEPS, k1), STEPS]:
        first = (end - 1) // k1 * k1
        # With k1 = k2 a window is a chunk, the last of which is short.
        begin = first if k1 == k2 else max(0, end - k2)
        o = run(begin, end)[first - begin :]
        loss = torch.nn.functional.cross_entropy(
            o.reshape(-1, SYMBOLS), torch.from_numpy(targets[first:end]).reshape(-1), reduction="sum"
        )
        loss.backward()
        expected.append(loss.item())
    scale = max(np.abs(g).max() for g in model.gradients.values())
    assert_close(np.array(losses), np.array(expected), n_products=STEPS * SIZE * 8)
    for module, part in ((peer, "layer"), (readout, "readout")):
        for name, parameter in module.named_parameters():
            found = model.gradients[f"{part}.{name}"]
            assert_close(found, parameter.grad.numpy(), n_products=STEPS * SIZE * 40, scale=scale, what=name)


def test_longer_windows_come_nearer_to_the_whole_gradient(rng):
    x, targets = make_data(rng)
    model = make_model()
    full_bptt(model, x, targets, summed)
    whole = copied(model.gradients)["layer.weight_hh_l0"]
    distances = []
    for k2 in (4, 8, STEPS):
        model.zero_grad()
        truncated_bptt(model, x, targets, summed, 4, k2)
        distances.append(np.abs(model.gradients["layer.weight_hh_l0"] - whole).max())
    assert distances[0] > distances[1] > distances[2]
    assert_close(
        model.gradients["layer.weight_hh_l0"], whole, n_products=STEPS * SIZE * 40, scale=np.abs(whole).max()
    )


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 8)])
def test_lengths_of_a_batch_are_its_rows_run_alone(rng, k1, k2):
    lengths = [STEPS, 0, 9]
    x, targets = make_data(rng)
    for row, length in enumerate(lengths):
        targets[length:, row] = -1
    model, other = make_model(), make_model()
    losses, (h, _) = truncated_bptt(model, x, targets, summed, k1, k2, lengths=lengths)
    alone = np.zeros(len(losses))
    for row, length in enumerate(lengths):
        if length:
            part = slice(0, length), slice(row, row + 1)
            own, (h_own, _) = truncated_bptt(other, x[part], targets[part], summed, k1, k2)
            alone[: len(own)] += own
            assert_same_bits(h[:, row], h_own[:, 0])
        else:
            assert not h[:, row].any()
    # A row's last window may begin earlier than that of the batch: with k1 = k2 it does not.
    assert_close(np.array(losses), alone, n_products=STEPS * SIZE)
    if k1 == k2:
        scale = max(np.abs(g).max() for g in other.gradients.values())
        for name, gradient in other.gradients.items():
            found = model.gradients[name]
            assert_close(found, gradient, n_products=STEPS * SIZE * 40, scale=scale, what=name)


def test_windows_after_every_row_has_ended_are_left_out(rng):
    x, targets = make_data(rng)
    losses, _ = truncated_bptt(make_model(), x, targets, softmax_cross_entropy, 5, 10, lengths=[9, 3, 10])
    assert len(losses) == 2


def test_resets_are_cut_with_the_steps(rng):
    x, targets = make_data(rng)
    reset = rng.random((STEPS, BATCH)) < 0.2
    model, other = make_model(), make_model()
    losses, h = truncated_bptt(model, x, targets, summed, 5, reset=reset)
    whole, h_n = full_bptt(other, x, targets, summed, reset=reset)
    assert_close(np.array(sum(losses)), np.array(whole), n_products=STEPS * SIZE)
    assert_same_bits(h[0], h_n[0])


def test_accumulated_gradients_are_averages(rng):
    x, targets = make_data(rng)
    model, other = make_model(), make_model()
    model.gradients["readout.bias"][:] = np.nan  # which is set to zero first
    batches = [(x[:, [row]], targets[:, [row]]) for row in range(BATCH)]
    loss = accumulate(model, batches, softmax_cross_entropy)
    whole, _ = full_bptt(other, x, targets, softmax_cross_entropy)
    assert_close(np.array(loss), np.array(whole), n_products=STEPS * SIZE)
    scale = max(np.abs(g).max() for g in other.gradients.values())
    for name, gradient in other.gradients.items():
        found = model.gradients[name]
        assert_close(found, gradient, n_products=STEPS * SIZE * 40, scale=scale, what=name)


def test_full_bptt_masks_what_lengths_end_and_takes_a_mask(rng):
    x, targets = make_data(rng)
    lengths = [4, STEPS, 0]
    valid = np.arange(STEPS)[:, None] < np.array(lengths)
    models = [make_model() for _ in range(2)]
    first, _ = full_bptt(models[0], x, targets, softmax_cross_entropy, lengths=lengths)
    second, _ = full_bptt(models[1], x, targets, softmax_cross_entropy, lengths=lengths, mask=valid)
    o, _ = models[0](x, lengths=lengths)
    assert first == second == softmax_cross_entropy(o, targets, valid)[0]


def test_bad_arguments(rng):
    x, targets = make_data(rng)
    model = make_model()

    def run(k1, k2=None, **options):
        return truncated_bptt(model, x, targets, softmax_cross_entropy, k1, k2, **options)

    with pytest.raises(ValueError, match="k1 is 0; expected an integer of at least 1"):
        run(0)
    with pytest.raises(ValueError, match="k2 is 4 with k1=5; expected k2 >= k1"):
        run(5, 4)
    with pytest.raises(TypeError, match="k2 is 'a'"):
        run(5, "a")
    with pytest.raises(ValueError, match="batches is empty"):
        accumulate(model, [], softmax_cross_entropy)
    with pytest.raises(TypeError, match=r"a batch is ndarray; expected \(x, targets\)"):
        accumulate(model, [x], softmax_cross_entropy)
    with pytest.raises(TypeError, match="options of a batch are 3; expected a dictionary"):
        accumulate(model, [(x, targets, 3)], softmax_cross_entropy)
    assert not any(gradient.any() for gradient in model.gradients.values())
    assert isinstance(model.readout, Linear)


def test_truncation_needs_one_direction(rng):
    model = ManyToMany(fastrnn.GRU(SYMBOLS, SIZE, bidirectional=True, seed=0), SYMBOLS, seed=1)
    with pytest.raises(
        ValueError, match=r"model is ManyToMany\(.*; expected one direction: the state of the"
    ):
        truncated_bptt(model, *make_data(rng, 6), softmax_cross_entropy, 3)
