"""A layer with the affine readout o = V h + c: on every step, on the last, or started by one input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .._arrays import expect_shape, is_on_device, take
from .._backends import CPU, Array, backend_of_device, is_integer
from .._calls import TIME_MAJOR, check_lengths, check_tokens
from ..info import Report
from ..layouts import Spec, integer, one_of
from ..training import Linear, valid_steps
from ._host import one_hot, seeds
from ._model import Model, PartStream, State, given, joined_reports, on_host_or_device
from ._states import Bridge, check_backward, check_layer, check_one_direction, state_shapes


class _Readout(Model):
    """What models of one layer and one readout share."""

    def __init__(
        self, layer: Any, output_size: int, *, output: str = "linear", seed: int | None = None
    ) -> None:
        check_layer("layer", layer)
        one_of("output", output, ("linear", "softmax"))
        self.output = output
        self.layer = layer
        self.output_size = integer("output_size", output_size, 1)
        self.readout = Linear(
            layer.output_size, self.output_size, dtype=layer.dtype, seed=seed, device=layer.device
        )
        super().__init__(layer=self.layer, readout=self.readout)

    @property
    def input_size(self) -> int:
        """I: the layer's."""
        return int(self.layer.input_size)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the arrays of a state of `batch` rows."""
        return state_shapes(self.layer, batch)

    def stream(self, batch: int = 1) -> PartStream:
        """Return a stream of `batch` rows over the layer's, whose steps are fused; needs eval mode."""
        return PartStream(self.layer.stream(batch), lambda layer, x: self.readout(layer.step(x)))

    def _check_backward(self, do: Any, dstate_n: State) -> None:
        check_backward(self.layer, None, dstate_n)

    def explain(self, x: Any) -> Report:
        """Tell what runs the layer, as its own `explain` does, and what the readout."""
        report = self.layer.explain(x) | {"readout": "one product"}
        if self.output == "softmax" and self.device != "cpu":
            report["softmax of predict()"] = "on the host, with a copy there and one back"
        return Report(report)


class ManyToMany(_Readout):
    """Outputs at every step: ``o_t = V h_t + c``.

    Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.2, equations 10.8 to 10.10.

    Parameters
    ----------
    layer
        A layer or a model; time-major.
    output_size
        O: width of o.
    output
        What `predict` makes of o: "linear", o itself, or "softmax", probabilities of O classes.
    seed
        Makes the initial V and c reproducible.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToMany
    >>> model = ManyToMany(fastrnn.GRU(3, 4, seed=0), 2, seed=1)
    >>> o, h_n = model(np.ones((5, 6, 3), "float32"))
    >>> dx, dh = model.backward(np.ones_like(o))
    >>> o.shape, dx.shape, list(model.parameters)[-2:]
    ((5, 6, 2), (5, 6, 3), ['readout.weight', 'readout.bias'])
    """

    def __call__(self, x: Any, state: State = None, **options: Any) -> tuple[Any, State]:
        """Run over x (T, B, I) or tokens (T, B); `options`, lengths and reset, are the layer's.

        Returns
        -------
        o : array (T, B, O)
        state_n : as the layer's
        """
        y, state_n = self.layer(on_host_or_device("x", x), state, **options)
        return self.readout(y), state_n

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call; returns ``(dx, dstate)`` as the layer does.

        Past a row's length do has to be 0, as the losses with a mask leave it.
        """
        check_backward(self.layer, None, dstate_n)
        dy = None if do is None else self.readout._backward("do", on_host_or_device("do", do))
        dx, dstate = self.layer.backward(dy, dstate_n)
        return dx, dstate


class ManyToOne(_Readout):
    """One output for a sequence: ``o = V h + c`` of the h after its last step.

    Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.2, figure 10.5.  A bidirectional layer
    gives the last h of each direction: the forward one's at the row's end, the backward one's at step 0.

    Parameters
    ----------
    layer, output_size, output, seed
        As of `ManyToMany`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import ManyToOne
    >>> model = ManyToOne(fastrnn.LSTM(3, 4, bidirectional=True, seed=0), 2, output="softmax", seed=1)
    >>> x = np.ones((5, 6, 3), "float32")
    >>> p = model.predict(x, lengths=[5, 4, 3, 2, 1, 0])
    >>> p.shape, bool(np.allclose(p.sum(axis=1), 1))
    ((6, 2), True)
    """

    def __init__(
        self, layer: Any, output_size: int, *, output: str = "linear", seed: int | None = None
    ) -> None:
        if not getattr(layer, "bidirectional", False):
            check_one_direction("layer", layer, "inside a model it is not known which outputs are whose")
        super().__init__(layer, output_size, output=output, seed=seed)

    def __call__(
        self, x: Any, state: State = None, *, lengths: Any = None, **options: Any
    ) -> tuple[Any, State]:
        """Run over x (T, B, I) or tokens (T, B), with lengths on the host; `options`, reset, are the layer's.

        Returns
        -------
        o : array (B, O)
            For a row of length 0 that of h = 0, whatever `state` is: the row has no last step.
        state_n : as the layer's

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong type, dtype, shape or value; nothing has changed then.
        """
        x = on_host_or_device("x", x)
        _, taken = backend_of_device(self.device).take_x("x", x)
        axes: dict[str, int | None] = {"T": None, "B": None}
        expect_shape("x", taken, axes if is_integer(taken) else axes | {"I": self.input_size})
        T, B = taken.shape[:2]
        lengths = check_lengths(CPU.own, TIME_MAJOR, T, B, lengths)
        y, state_n = self.layer(x, state, **given(lengths=lengths), **options)
        # Past a row's length y is 0, so that step 0 does for a row without steps.
        last = T - 1 if lengths is None else np.maximum(lengths - 1, 0)
        places = self._places(last, np.arange(B))
        if is_on_device(y):
            h = self._moved(y, (B, self.layer.output_size), self._one_by_one(places))
        else:
            h = np.concatenate([y[place] for place in places], axis=-1)
        o = self.readout(h)
        self._saved = ((T, B, self.layer.output_size), places) if self.training else None
        return o, state_n

    def _places(self, last: Any, rows: Array) -> list[tuple[Any, Array, slice]]:
        """Return where in y (step, row, units) each direction has ended."""
        if not getattr(self.layer, "bidirectional", False):
            return [(last, rows, slice(None))]
        half = self.layer.output_size // 2
        return [(last, rows, slice(half)), (0, rows, slice(half, None))]

    # On a device no list is an index: rows of different lengths are copied one by one.

    @staticmethod
    def _one_by_one(places: list[tuple[Any, Array, slice]]) -> Iterator[tuple[Any, Any]]:
        """Go through the places in y, and those in h (row, units)."""
        for step, rows, units in places:
            if np.ndim(step) == 0:
                yield (step, slice(None), units), (slice(None), units)
            else:
                yield from (
                    ((int(t), int(b), units), (int(b), units)) for t, b in zip(step, rows, strict=True)
                )

    def _moved(self, source: Any, shape: tuple[int, ...], places: Iterable[tuple[Any, Any]]) -> Any:
        """Return an array of this shape on the device: 0, but for what comes from places in `source`."""
        library, source = backend_of_device(self.device).take_x("source", source)
        moved = library.empty(shape, self.dtype)
        moved[...] = 0
        for there, here in places:
            moved[here] = source[there]
        return library.give(moved)

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call; returns ``(dx, dstate)`` as the layer does."""
        shape, places = self._last_call()
        check_backward(self.layer, None, dstate_n)
        dy = None
        if do is not None:
            dh = self.readout._backward("do", on_host_or_device("do", do))
            if is_on_device(dh):
                dy = self._moved(dh, shape, ((in_h, in_y) for in_y, in_h in self._one_by_one(places)))
            else:
                dy = np.zeros(shape, dh.dtype)
                for step, row, units in places:
                    dy[step, row, units] = dh[:, units]
        dx, dstate = self.layer.backward(dy, dstate_n)
        self._saved = None
        return dx, dstate


class Decoder(Model):
    """What models share that end in a sequence of their own: a layer with a readout, started by something."""

    decoder: ManyToMany
    dinputs: Array | None = None
    """Gradient in `inputs` of the last `backward`; None before it, for tokens, and in a copy."""

    def __init__(self, decoder: ManyToMany, **parts: Any) -> None:
        self.decoder = decoder
        self.output = decoder.output
        self.output_size = decoder.output_size
        super().__init__(**parts, decoder=decoder)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the arrays of a state of `batch` rows."""
        return self.decoder.state_shapes(batch)

    @property
    def _host_dtype(self) -> str:
        """Of NumPy's arrays, which knows no bfloat16."""
        return "float32" if self.dtype == "bfloat16" else self.dtype

    def _check_inputs(self, inputs: Any, batch: int, target_lengths: Any) -> tuple[Array, Array | None]:
        """Return the decoder's inputs and their lengths, checked before anything runs.

        Of what is on a device the decoder checks the values, tokens and lengths.
        """
        if inputs is None:
            raise ValueError("inputs is None; expected what the decoder is to read (start() for a stream)")
        library, array = backend_of_device(self.device).take_x("inputs", inputs)
        axes: dict[str, int | None] = {"T": None, "B": batch}
        if not is_integer(array):
            array = library.check_float("inputs", array, str(self.dtype), inputs)
            axes["I"] = self.decoder.input_size
        expect_shape("inputs", array, axes)
        if is_on_device(inputs):
            check_lengths(library, TIME_MAJOR, array.shape[0], batch, target_lengths)
            return inputs, target_lengths
        lengths = check_lengths(CPU.own, TIME_MAJOR, len(array), batch, target_lengths)
        if is_integer(array):
            valid = True if lengths is None else valid_steps(lengths, len(array))
            array = check_tokens(CPU.own, "inputs", Spec("rnn", self.decoder.input_size, 1), array, valid)
        return array, lengths

    def _forget(self) -> None:
        super()._forget()
        self.dinputs = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"dinputs": None}

    def stream(self, batch: int = 1) -> Any:
        """Raise ValueError: see `start`."""
        raise ValueError(f"a stream of {type(self).__name__} needs what it starts from: start(x)")


class OneToMany(Decoder):
    """A sequence from one input: a caption from an image.

    ::

        mode="state":  s_0 = f(W x + b), and the sequence starts from there
        mode="input":  W x + b is the layer's first input, before the sequence, and its output is dropped

    Goodfellow, Bengio & Courville, "Deep Learning", 2016, section 10.2.4, the initial state, or an extra
    input; "input" as in Vinyals, Toshev, Bengio & Erhan, "Show and tell: a neural image caption generator",
    CVPR 2015, equations 10 to 12.  In training the sequence is given (teacher forcing); `start` gives a
    stream to generate from.

    Parameters
    ----------
    layer
        A layer or a model of one direction; time-major.
    output_size
        O: width of o.
    input_size
        X: width of x.
    mode
        "state" or "input".
    nonlinearity
        f: "tanh" or "identity".
    output, seed
        As of `ManyToMany`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> from fastrnn.models import OneToMany
    >>> model = OneToMany(fastrnn.GRU(10, 16, seed=0), 10, input_size=64, seed=1)
    >>> images, words = np.ones((6, 64), "float32"), np.array([[0] * 6, [3] * 6, [7] * 6])
    >>> o, _ = model(images, inputs=words)
    >>> stream = model.eval().start(images)
    >>> first = stream.step(words[0])
    >>> o.shape, bool(np.allclose(first, o[0], atol=1e-6))
    ((3, 6, 10), True)
    """

    def __init__(
        self,
        layer: Any,
        output_size: int,
        input_size: int,
        *,
        mode: str = "state",
        nonlinearity: str = "tanh",
        output: str = "linear",
        seed: int | None = None,
    ) -> None:
        one_of("mode", mode, ("state", "input"))
        check_one_direction("layer", layer, "the sequence is yet to be made")
        self.mode = mode
        self.input_size = integer("input_size", input_size, 1)
        first, second = seeds(seed, 2)
        self.first: Any
        if mode == "state":
            self.first = Bridge(input_size, layer, nonlinearity=nonlinearity, seed=first)
        else:
            self.first = Linear(
                input_size, layer.input_size, dtype=layer.dtype, seed=first, device=layer.device
            )
        super().__init__(ManyToMany(layer, output_size, output=output, seed=second), first=self.first)

    def __call__(
        self, x: Any, state: State = None, *, inputs: Any = None, target_lengths: Any = None
    ) -> tuple[Any, State]:
        """Run over `inputs`, after x.

        Parameters
        ----------
        x : array (B, X)
        state : as the layer's, optional
            With mode="input", the state before x; None with mode="state", where x makes it.
        inputs : array (T, B, I), or tokens (T, B)
            With mode="input" tokens become one-hot vectors.
        target_lengths : integers (B,), optional
            Steps of each row of `inputs`.

        Returns
        -------
        o : array (T, B, O)
        state_n : as the layer's

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong type, dtype, shape or value; nothing has changed then.
        """
        x = self._check_x(x, state)
        if self.mode == "input" and inputs is not None:
            inputs = take("inputs", inputs)  # which x stands before: on the host
        inputs, lengths = self._check_inputs(inputs, len(x), target_lengths)
        if self.mode == "state":
            _, state = self.first(x)
            return self.decoder(inputs, state, **given(lengths=lengths))
        tokens = is_integer(inputs)
        if tokens:
            if lengths is not None:
                inputs = np.where(valid_steps(lengths, len(inputs)), inputs, -1)
            inputs = one_hot(inputs, self.decoder.input_size, x.dtype)
        inputs = np.concatenate([self.first(x)[None], inputs])
        after_x = None if lengths is None else lengths + 1
        o, state_n = self.decoder(inputs, state, **given(lengths=after_x))
        self._saved = (tokens, o.shape) if self.training else None
        return o[1:], state_n

    def backward(self, do: Any = None, dstate_n: State = None) -> tuple[Any, State]:
        """Back-propagate through the last call; returns dx (B, X) and dstate (None with mode="state").

        The gradient in `inputs` is then in `dinputs`.
        """
        if self.mode == "state":
            self.dinputs, dstate = self.decoder.backward(do, dstate_n)
            dx, _ = self.first.backward(None, dstate)
            return dx, None
        tokens, (steps, *rest) = self._last_call()
        if do is not None:
            do = take("do", do)
            expect_shape("do", do, dict(zip("TBO", (steps - 1, *rest), strict=True)))
            do = np.concatenate([np.zeros_like(do[:1]), do])
        dinputs, dstate = self.decoder.backward(do, dstate_n)
        self._saved = None
        self.dinputs = None if tokens else dinputs[1:]
        return self.first.backward(np.ascontiguousarray(dinputs[0])), dstate

    def explain(self, x: Any, *, inputs: Any = None) -> Report:
        """Tell what runs the layer in a call with these; computes nothing."""
        x = self._check_x(x, None)
        inputs, _ = self._check_inputs(inputs, len(x), None)
        if self.mode == "input":
            inputs = np.empty((len(inputs) + 1, len(x), self.decoder.input_size), x.dtype)
        return Report({"first": "one product"} | joined_reports(decoder=self.decoder.explain(inputs)))

    def start(self, x: Any, state: State = None) -> PartStream:
        """Return a stream of B rows that has taken x (B, X) and goes on with `inputs`; needs eval mode."""
        x = self._check_x(x, state)
        stream = self.decoder.stream(len(x))
        if self.mode == "state":
            _, state = self.first(x)
        if state is not None:
            stream.state = state
        if self.mode == "input":
            stream.step(self.first(x))
        return stream

    def _check_x(self, x: Any, state: State) -> Array:
        x = CPU.own.take_float("x", x, self._host_dtype)
        expect_shape("x", x, {"B": None, "X": self.input_size})
        if self.mode == "state" and state is not None:
            raise ValueError("state is given; expected None: x makes the initial state")
        return x
