"""LSTM, GRU and RNN layers and their single-step cells, with the arguments and names of torch.nn."""

from __future__ import annotations

import os
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, ValuesView
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self
from weakref import WeakSet

import numpy as np

from . import _core, _files
from ._backends import SEED_END, Array, Backend, backend_of_device, on_host
from ._calls import (
    BATCH_FIRST,
    CELL,
    CELL_UNBATCHED,
    TIME_MAJOR,
    UNBATCHED,
    Call,
    Layout,
    Packed,
    Reserve,
    State,
    check_call,
    check_checkpoint,
    check_incoming,
    check_num_layers,
    check_parameters,
    check_quantize,
    run_backward,
    run_forward,
)
from .info import Report
from .layouts import DType, Nonlinearity, Spec, boolean, integer
from .streaming import Stream

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "load"]


class NamedArrays(Mapping[str, Array]):
    """Arrays under fixed names in a fixed order: their contents may change, the arrays may not.

    Examples
    --------
    >>> import fastrnn
    >>> parameters = fastrnn.RNN(2, 3).parameters
    >>> parameters["bias_hh_l0"][...] = 0
    >>> parameters["weight_hh_l0"] *= 0.5
    >>> parameters["bias_hh_l0"] = None
    Traceback (most recent call last):
        ...
    TypeError: 'bias_hh_l0' cannot be replaced; write into it: [...] = value
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(f"no {name!r}; expected one of {', '.join(self._arrays)}") from None

    def __setitem__(self, name: str, value: Array) -> None:
        # `arrays[name] -= step` ends in an assignment of the very same array.
        if value is not self[name]:
            raise TypeError(f"{name!r} cannot be replaced; write into it: [...] = value")

    def values(self) -> ValuesView[Array]:
        """Return the arrays, in order."""
        return self._arrays.values()  # without a look-up by name for each

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {array.dtype} {array.shape}" for name, array in self._arrays.items())


# All there are, for a child to look through.
_living: WeakSet[_Recurrent] = WeakSet()


def _forget_other_threads() -> None:
    """In a child, let go of what threads of its parent were using at the fork: the child has none of them."""
    for layer in _living:
        if layer._lock.locked():
            layer._lock = threading.Lock()
            layer._pending = "the process was forked while another thread was using the layer"


os.register_at_fork(after_in_child=_forget_other_threads)


class _Alone:
    """A lock held for a scope, if nobody has it; a generator would take half a microsecond longer."""

    __slots__ = ("_lock",)

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock  # to() and a fork give the layer another

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "this layer is in use by another thread: eval calls may run side by side, training calls, "
                "backward, zero_grad(), train(), eval(), quantize(), to() and load_state_dict() may not"
            )

    def __exit__(self, *error: object) -> None:
        self._lock.release()


# Set before gradients are added to: a signal may raise once they are, before that can be noted.
_NOT_ENDED = "the last backward did not end"


class PlainCall(NamedTuple):
    """A training call whose arguments were run as they came, as backward needs them."""

    x: Array
    state: Any
    y: Array
    saved: Any  # the memory of the kernels' part


class _Recurrent(ABC):
    """What layers and cells share: parameters, gradients, the two modes, copies and files."""

    __slots__ = (
        "__weakref__",
        "_axes",
        "_backend",
        "_batch_first",
        "_calls",
        "_checkpoint",
        "_draws",
        "_gradients",
        "_lock",
        "_packed",
        "_parameters",
        "_pending",
        "_repacked",
        "_saved",
        "_seed",
        "_spec",
    )

    # Names of the constructor's arguments that make up the configuration, in order.
    _arguments: ClassVar[tuple[str, ...]]
    # What this class leaves out at the end of the parameter names of a Spec.
    _dropped_suffix: ClassVar[str] = ""

    def __init__(self, spec: Spec, batch_first: object, device: object, seed: object) -> None:
        backend = backend_of_device(device)
        batch_first = boolean("batch_first", batch_first)
        seed = int.from_bytes(os.urandom(8)) if seed is None else integer("seed", seed, 0, SEED_END - 1)

        rng = np.random.default_rng(seed)
        bound = spec.hidden_size**-0.5
        drawn = {name: rng.uniform(-bound, bound, shape) for name, shape in self._shapes(spec).items()}
        self._set_up(backend, spec, batch_first, seed, 0, drawn, {})

    def _set_up(
        self,
        backend: Backend,
        spec: Spec,
        batch_first: bool,
        seed: int,
        calls: int,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        checkpoint: int | None = None,
    ) -> None:
        """Set every attribute, in training mode, with own copies of the arrays."""
        # All that may fail comes before the first attribute, since to() changes a layer that is in use.
        backend.check_dtype(spec.dtype)
        own = {name: backend.array(array, spec.dtype) for name, array in parameters.items()}
        sums = {name: backend.zeros(array.shape, spec.dtype) for name, array in own.items()}
        for name, gradient in gradients.items():
            sums[name][...] = gradient
        saved = backend.layer_reserve(spec, checkpoint)

        self._backend = backend
        self._spec = spec
        self._batch_first = batch_first
        self._axes = tuple(layout.axes for layout in self._layouts())
        self._seed = seed
        self._calls = calls
        self._draws = spec.dropout > 0 or spec.has_state_noise  # masks, whose key the call needs
        self._checkpoint = checkpoint
        self._parameters = NamedArrays(own)
        self._gradients = NamedArrays(sums)
        # The weights of eval mode, None in training mode: which mode it is, calls learn by reading this once.
        self._packed: Packed | None = None
        # The call that backward goes back through, or why there is none.
        self._pending: Reserve | PlainCall | str = "there was none"
        # Memory of the last training call, kept to be reused by the next.
        self._repacked: Packed | None = None
        self._saved = saved
        self._lock = threading.Lock()
        _living.add(self)

    @classmethod
    def _shapes(cls, spec: Spec) -> dict[str, tuple[int, ...]]:
        return {k.removesuffix(cls._dropped_suffix): shape for k, shape in spec.parameter_shapes().items()}

    # ------------------------------------------------------------------------------- attributes

    @property
    def input_size(self) -> int:
        """I: features of x, or the number of different tokens."""
        return self._spec.input_size

    @property
    def hidden_size(self) -> int:
        """H: hidden units of each layer and direction."""
        return self._spec.hidden_size

    @property
    def bias(self) -> bool:
        """Whether there are bias_ih and bias_hh."""
        return self._spec.bias

    @property
    def dtype(self) -> DType:
        """Of parameters, inputs and results alike; a bfloat16 layer takes and returns float32 from NumPy."""
        return self._spec.dtype

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0", ..."""
        return self._backend.name

    @property
    def seed(self) -> int:
        """Drawn or given seed of the initial parameters and of the masks of dropout and zoneout.

        Assign it, as `calls`, to resume a training; no parameter changes.
        """
        return self._seed

    @seed.setter
    def seed(self, number: int) -> None:
        number = integer("seed", number, 0, SEED_END - 1)
        with self._alone():
            self._seed = number

    @property
    def calls(self) -> int:
        """Training calls made: with `seed` the key of the next masks.  Assign it to resume a training."""
        return self._backend.calls_made(self._saved, self._calls)

    @calls.setter
    def calls(self, number: int) -> None:
        number = integer("calls", number, 0, SEED_END - 1)
        with self._alone():
            self._calls = (number - self._backend.calls_made(self._saved, 0)) % SEED_END

    @property
    def training(self) -> bool:
        """True in training mode, False in eval mode."""
        return self._packed is None

    @property
    def parameters(self) -> NamedArrays:
        """Name to array, in a fixed order: writable in place in training mode, read-only in eval mode.

        Writing through a view taken in training mode while in eval mode is undefined.
        """
        return self._parameters

    @property
    def gradients(self) -> NamedArrays:
        """Name to gradient of the loss, in the order of `parameters`; zero until the first backward."""
        return self._gradients

    def __repr__(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        for name in self._arguments[2:]:
            default = False if name == "batch_first" else getattr(Spec, name)
            own = self._batch_first if name == "batch_first" else getattr(self._spec, name)
            if own != default:
                shown.append(f"{name}={getattr(self, name)!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    # ------------------------------------------------------------------------------------ modes

    def train(self, mode: bool = True, checkpoint: int | None = None) -> Self:
        """Switch to training mode (or with False to eval mode); returns the layer itself.

        Parameters are writable again, `quantize` is undone, and streams made in eval mode stop working.

        Parameters
        ----------
        mode : bool, optional
            False is `eval`.
        checkpoint : int, optional
            Save memory for time: calls do not keep the activated gates, backward computes them again from y
            and, for LSTM, from c kept every `checkpoint` steps, rounded up to the steps that backward takes
            together (`explain` tells how many).  It may exceed T.  The gradients have the same bits.  None
            keeps the gates of every step, as does train() after eval().  An RNN keeps none in any case.

        Raises
        ------
        TypeError, ValueError
            If `checkpoint` is no positive integer, or one for eval mode.
        NotImplementedError
            For a checkpoint on a CUDA device.

        Notes
        -----
        Gradient checkpointing with one level: Chen et al., "Training deep nets with sublinear memory cost",
        2016.  A call made before can still be gone back through.

        Examples
        --------
        >>> import numpy as np
        >>> import fastrnn
        >>> layer = fastrnn.LSTM(3, 4).train(checkpoint=100)
        >>> y, state = layer(np.zeros((10_000, 2, 3), "float32"))
        >>> dx, dstate = layer.backward(np.ones_like(y))
        """
        mode, checkpoint = boolean("mode", mode), check_checkpoint(checkpoint)
        if not mode:
            if checkpoint is not None:
                raise ValueError(f"checkpoint is {checkpoint} with mode=False; expected None in eval mode")
            return self.eval()
        with self._alone():
            if checkpoint != self._checkpoint:
                self._saved = self._backend.layer_reserve(self._spec, checkpoint)
                self._checkpoint = checkpoint
            for array in self._parameters.values():
                array.flags.writeable = True
            self._packed = None
        return self

    def eval(self) -> Self:
        """Switch to eval mode: pack the weights once and make the parameters read-only.

        Calls then save nothing, apply no dropout and of zoneout the expectation, and may run in several
        threads at a time.
        """
        with self._alone():
            if self._packed is None:
                own = list(self._parameters.values())
                packed = Packed(self._backend, self._spec, self._backend.fixed(own))
                for array in own:
                    array.flags.writeable = False
                if self._checkpoint is not None:
                    self._saved = self._backend.layer_reserve(self._spec, None)
                    self._checkpoint = None
                self._repacked = None
                self._pending = "eval() dropped it"
                self._packed = packed
        return self

    def quantize(self, dtype: str) -> Self:
        """Round the weights that calls in eval mode use; returns the layer itself.

        Products with weights then read half ("bfloat16") or a quarter ("int8") of the memory, and where the
        CPU has instructions for them run at two or four times the rate.  All else stays float32: biases,
        diagonal peepholes, activations, c, and what calls take and return.

        "bfloat16" rounds weights once, and x and h as each product reads them, to 8 significant bits; the
        sums are float32.  "int8" takes for both integers from -127 to 127 times a scale, the largest
        magnitude over 127: of weights, one scale for each gate of each unit in each matrix; of x and h, one
        for each row of the batch at each step.  The sums of integers are exact.

        Parameters
        ----------
        dtype : "bfloat16", "int8" or "float32"
            The last goes back to the weights as they are.

        Raises
        ------
        RuntimeError
            In training mode, or while another thread is changing the layer.
        TypeError
            If the layer is not on the CPU or not float32.
        ValueError
            For another dtype; for int8, if a unit sums more products than 32 bits hold.

        Notes
        -----
        `parameters`, `state_dict` and `save` have the float32 originals; load_state_dict() quantises what it
        loads.  train() ends it, copies and pickles keep it, `fastrnn.load` gives a layer without.  Streams
        made before stop working.  `explain` tells what multiplies the weights.

        Projections and the products of a full peephole are rounded like the others, and so are the columns
        of W_ih that tokens stand for.  A row's result still depends neither on its neighbours, nor on
        threads, nor on where a sequence is cut, to the bit.  With "int8" an infinity or NaN makes every sum
        NaN that its row, of x, h or weights, goes into; a row with nothing above 2**-120 counts as zeros.

        Examples
        --------
        >>> import numpy as np
        >>> import fastrnn
        >>> layer = fastrnn.GRU(64, 64, seed=0).eval()
        >>> x = np.random.default_rng(0).normal(size=(5, 2, 64)).astype("float32")
        >>> y, _ = layer(x)
        >>> rounded, _ = layer.quantize("int8")(x)
        >>> 0 < float(abs(rounded - y).max()) < 0.05
        True
        >>> layer.quantized
        'int8'
        """
        with self._alone():
            if self._packed is None:
                raise RuntimeError("quantize() in training mode; call eval() first, as train() undoes it")
            quantized = check_quantize("dtype", self._backend, self._spec, dtype)
            if quantized != self._packed.quantized:
                arrays = list(self._parameters.values())
                self._packed = Packed(self._backend, self._spec, arrays, quantized)
        return self

    @property
    def quantized(self) -> str | None:
        """Dtype that `quantize` has rounded the weights to, "bfloat16" or "int8", or None."""
        packed = self._packed
        return None if packed is None else packed.quantized

    def _alone(self) -> _Alone:
        """Hold what only one thread at a time may use or change; RuntimeError if another one does."""
        return _Alone(self._lock)

    # ------------------------------------------------------------------------- forward, backward

    @abstractmethod
    def _layouts(self) -> tuple[Layout, Layout]:
        """Return the layouts that x may come in, with and without a batch axis."""

    def _run(self, call: Call) -> tuple[Array, State, bool]:
        """Run a checked call in the mode in force: time-major results, and whether y belongs to a reserve."""
        packed = self._packed
        if packed is not None:
            return *run_forward(packed, call), False
        with self._alone():
            self._pending = "the last one failed"  # and its predecessor's memory is used again
            arrays = list(self._parameters.values())
            if self._repacked is None:
                self._repacked = Packed(self._backend, self._spec, arrays)
            else:
                self._repacked.weights.pack(arrays)
            reserve = Reserve(call, self._saved, self._seed, self._calls)
            results = run_forward(self._repacked, call, reserve=reserve)
            self._calls = self._backend.next_call(self._saved, self._calls)
            self._pending = reserve
        return *results, True

    def _train_plain(self, x: Array, state: Any) -> Any:
        """Run a training call of plain arguments at once; None, with nothing done, for another."""
        with self._alone():
            if self._repacked is None or self._draws:  # the first call makes what is packed into
                return None
            pending, self._pending = self._pending, "the last one failed"
            arrays = list(self._parameters.values())
            results = self._repacked.run_plain(self._axes, x, state, self._saved, False, arrays)
            if results is None:
                self._pending = pending
                return None
            y, results = self._keep_y(results)
            self._calls = self._backend.next_call(self._saved, self._calls)
            self._pending = PlainCall(x, state, y, self._saved)
        return results

    @abstractmethod
    def _keep_y(self, results: Any) -> tuple[Array, Any]:
        """Return the y that backward reads, and the results such that a caller cannot write it."""

    def _reserve_of(self, plain: PlainCall) -> Reserve:
        """Return a call of plain arguments as one that was checked."""
        call = check_call(self._backend, self._spec, self._layouts(), plain.x, plain.state)
        reserve = Reserve(call, plain.saved, self._seed, 0)  # no masks, so no number
        reserve.y = call.layout.to_kernel(plain.y)
        return reserve

    def _check_backward(self, dy: Any, dstate_n: Any) -> tuple[Reserve, Any, Any]:
        """Return the call to go back through and what comes in; raise what `backward` would."""
        if not self.training:
            raise RuntimeError(
                "backward in eval mode, where calls save nothing; call train() and the layer again"
            )
        reserve = self._pending
        if isinstance(reserve, str):
            raise RuntimeError(
                f"backward without a training call to go back through ({reserve}): call the layer first, "
                f"and again before every further backward (fastrnn.functional keeps several calls)"
            )
        if isinstance(reserve, PlainCall):
            reserve = self._reserve_of(reserve)
        return reserve, *check_incoming(reserve, dy, dstate_n)

    def _backward_plain(self, dy: Any, dstate_n: Any) -> tuple[Any, Any] | None:
        """Go back through a call of plain arguments at once; None, with nothing done, if that cannot be."""
        plain = self._pending
        if not isinstance(plain, PlainCall):
            return None
        dh_n, dc_n = dstate_n, None
        lstm = self._spec.cell == "lstm"
        if lstm and dstate_n is not None:
            if type(dstate_n) is not tuple or len(dstate_n) != 2:
                return None
            dh_n, dc_n = dstate_n
        network = self._backend.network(self._spec)
        arrays, gradients = list(self._parameters.values()), list(self._gradients.values())
        self._pending = _NOT_ENDED
        done = _core.backward_plain(network, arrays, self._axes, *plain, dy, dh_n, dc_n, True, gradients)
        if done is None:
            self._pending = plain
            return None
        self._pending = "backward went through it"
        dx, dh_0, dc_0, _ = done
        return dx, (dh_0, dc_0) if lstm else dh_0

    def _backward(self, dy: Any, dstate_n: Any) -> tuple[Any, Any]:
        with self._alone():
            done = self._backward_plain(dy, dstate_n)
            if done is not None:
                return done
            reserve, dy, dstate_n = self._check_backward(dy, dstate_n)
            arrays, gradients = list(self._parameters.values()), list(self._gradients.values())
            self._pending = _NOT_ENDED
            dx, dstate = run_backward(reserve, arrays, dy, dstate_n, gradients, add=True)
            self._pending = "backward went through it"
        call = reserve.call
        return None if dx is None else call.give(dx), call.give_state(dstate)

    def zero_grad(self) -> None:
        """Set all of `gradients` to zero, in place."""
        with self._alone():
            for gradient in self._gradients.values():
                self._backend.clear(gradient)

    def explain(self, x: Any) -> Report:
        """Tell which kernel a call with this x runs, and why not a faster one; computes nothing.

        Parameters
        ----------
        x : array
            As in a call.

        Returns
        -------
        Report
            A dict that prints one line per entry: kernel, isa, weights, threads, split and the reasons.

        Examples
        --------
        >>> import numpy as np
        >>> import fastrnn
        >>> report = fastrnn.GRU(3, 4).explain(np.zeros((5, 2, 3), "float32"))
        >>> "kernel" in report and "isa" in report
        True
        """
        call = check_call(self._backend, self._spec, self._layouts(), x)
        network = self._backend.network(self._spec)
        options: dict[str, Any] = {}  # which a device does not have
        if self._checkpoint:
            options["checkpoint"] = self._checkpoint
        if self.quantized is not None:
            options["quantized"] = self.quantized
        return Report(network.explain(call.steps, call.batch, self.training, call.tokens, **options))

    # -------------------------------------------------------------------------- copies and files

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters, name to array, in their fixed order."""
        return {name: array.copy() for name, array in self._parameters.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy parameters from a mapping of arrays of any library, in either mode.

        Parameters
        ----------
        state_dict : mapping of str to array
            Exactly the names and shapes of `parameters`; torch tensors too, also those that require
            grad.  Other float widths, bfloat16 of torch among them, are converted to `dtype`.

        Raises
        ------
        TypeError
            For something that is no mapping of float arrays.
        ValueError
            For missing or unexpected names and wrong shapes, all of them listed.  Nothing has changed then.

        Notes
        -----
        A training call made before cannot be gone back through any more, and streams stop working.
        """
        shapes = self._shapes(self._spec)
        arrays = check_parameters(self._backend.own, "state_dict", shapes, state_dict, self.dtype, cast=True)
        with self._alone():
            # All that may fail comes before the first write, and sources may share memory with parameters.
            copies = [self._backend.array(array, self.dtype) for array in arrays]
            packed = None
            if not self.training:
                packed = Packed(self._backend, self._spec, copies, self.quantized)
            for target, source in zip(self._parameters.values(), copies, strict=True):
                target.flags.writeable = True
                target[...] = source
                target.flags.writeable = packed is None
            self._packed = packed
            self._pending = "load_state_dict() dropped it"

    def save(self, path: _files.AnyPath) -> None:
        """Write parameters and configuration to a safetensors file, for `fastrnn.load`.

        Parameters
        ----------
        path : str or path
            An existing file is replaced, and only once the new one is complete.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        description = {
            "class": next(name for name, kind in _KINDS.items() if isinstance(self, kind)),
            "arguments": {name: getattr(self, name) for name in self._arguments},
            "seed": self._seed,
            "calls": self.calls,
        }
        arrays = {name: on_host(array) for name, array in self._parameters.items()}
        _files.write(path, _files.LAYER, arrays, description)

    def __getstate__(self) -> dict[str, Any]:
        packed = self._packed  # once: another thread may change the mode meanwhile
        return {
            "device": self.device,
            "spec": self._spec,
            "batch_first": self._batch_first,
            "seed": self._seed,
            "calls": self.calls,
            "parameters": {name: on_host(array) for name, array in self._parameters.items()},
            "gradients": {name: on_host(array) for name, array in self._gradients.items()},
            "checkpoint": self._checkpoint,
            "training": packed is None,
            "quantized": None if packed is None else packed.quantized,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # copy.copy comes here too: every copy owns its parameters, none has a call to go back through.
        training, quantized = state.pop("training"), state.pop("quantized")
        self._set_up(backend_of_device(state.pop("device")), **state)
        if not training:
            self.eval()
        if quantized is not None:
            self.quantize(quantized)

    def to(self, device: str, dtype: Any = None) -> Self:
        """Move the layer to another device, in place; returns the layer itself.

        Parameters
        ----------
        device : str
            "cpu", "cuda" (the first device) or "cuda:1" and so on.
        dtype : str, optional
            Convert the parameters, say to "bfloat16", which the CPU does not have; as they are if None.

        Raises
        ------
        RuntimeError
            If there is no such device, the message says why; if the layer is quantised.
        TypeError, ValueError
            For a device or dtype of another name, or a dtype that is not computed there.

        Notes
        -----
        `parameters` and `gradients` are new arrays then; a training call made before cannot be gone back
        through any more, and streams stop working.  Nothing happens if the layer is there already.

        Examples
        --------
        >>> import fastrnn
        >>> fastrnn.GRU(3, 4).to("cpu").device
        'cpu'
        """
        backend = backend_of_device(device)
        spec = self._spec if dtype is None else replace(self._spec, dtype=dtype)
        if backend is not self._backend or spec != self._spec:
            with self._alone():
                state = self.__getstate__() | {"spec": spec}
                training = state.pop("training")
                if state.pop("quantized") is not None:
                    raise RuntimeError(
                        f"to() of a layer quantised to {self.quantized}; call quantize('float32') first"
                    )
                del state["device"]
                self._set_up(backend, **state)
            if not training:
                self.eval()
        return self


# ------------------------------------------------------------------------------------------ layers


class _Layer(_Recurrent):
    """A stack of recurrent layers over whole sequences."""

    __slots__ = ()

    def __init__(self, spec: Spec, batch_first: object, device: object, seed: object) -> None:
        super().__init__(spec, batch_first, device, seed)
        if spec.dropout and spec.num_layers == 1:
            warnings.warn(
                f"dropout={spec.dropout} has no effect: it acts between layers, and num_layers is 1",
                UserWarning,
                stacklevel=3,
            )

    @property
    def num_layers(self) -> int:
        """L: layers of the stack."""
        return self._spec.num_layers

    @property
    def batch_first(self) -> bool:
        """Whether x, y and reset are (B, T, ...); states are (L*D, B, ...) in any case."""
        return self._batch_first

    @property
    def dropout(self) -> float:
        """Probability that an output of a layer but the last is dropped in training."""
        return self._spec.dropout

    @property
    def recurrent_dropout(self) -> float:
        """Probability that W_hh does not see a unit of h, at all steps of a call, in training."""
        return self._spec.recurrent_dropout

    @property
    def zoneout(self) -> float | tuple[float, float]:
        """Probability that a unit of h, or of (h, c), keeps its previous value at a step."""
        return self._spec.zoneout

    @property
    def bidirectional(self) -> bool:
        """Whether every layer also runs from the end to the start."""
        return self._spec.bidirectional

    @property
    def proj_size(self) -> int:
        """P: size that h is projected to; 0 if it is not."""
        return self._spec.proj_size

    @property
    def output_size(self) -> int:
        """D*R: width of y."""
        return self._spec.output_size

    def _layouts(self) -> tuple[Layout, Layout]:
        return (BATCH_FIRST if self._batch_first else TIME_MAJOR), UNBATCHED

    def _keep_y(self, results: Any) -> tuple[Array, Any]:
        y, state_n = results
        return y, (self._backend.own.give(y, writeable=False), state_n)

    def __call__(
        self, x: Any, state: Any = None, *, lengths: Any = None, reset: Any = None
    ) -> tuple[Any, Any]:
        """Run the layer over a batch of sequences, or one sequence without a batch axis.

        Parameters
        ----------
        x : array (T, B, I), with `batch_first` (B, T, I), or (T, I)
            Of the layer's dtype, or integer tokens without the axis I, which stand for one-hot
            vectors.  NumPy, or any library with DLPack: results come back in the same library,
            without a copy on the way.  T is at least 1, B may be 0.
        state : array (L*D, B, R) or (L*D, R), for LSTM the pair (h, c), optional
            Initial state; zeros if None.  c has H in place of R.
        lengths : integers (B,), optional
            Steps of each row, from 0 to T, in any order; y is 0 past them, and x may hold anything there,
            tokens out of range (such as -1) included.
        reset : bools, the leading axes of x, optional
            A boundary before step t: the state that enters it is zero, and no gradient crosses.

        Returns
        -------
        y : array (T, B, D*R), in x's layout
            The last layer's h at every step.  In training mode it is part of what backward needs and
            therefore read-only; libraries without read-only arrays get a plain one, not to be changed.
        state_n : array, or the pair (h_n, c_n)
            Final state, as `state`.

        Raises
        ------
        TypeError, ValueError
            For an argument of the wrong type, dtype, shape or value; nothing has changed then.
        RuntimeError
            In training mode, while another thread is in a call that may not run beside it.

        Notes
        -----
        In training mode x, state, lengths and reset are kept, not copied, and must not change before
        backward; nor must the parameters.
        """
        packed = self._packed
        # NumPy's alone: with fastrnn.torch its tensors are read in place as well, but arrays come back.
        if type(x) is np.ndarray and lengths is None and reset is None:
            results: tuple[Any, Any] | None = (
                self._train_plain(x, state) if packed is None else packed.run_plain(self._axes, x, state)
            )
            if results is not None:
                return results
        call = check_call(self._backend, self._spec, self._layouts(), x, state, lengths, reset)
        y, state_n, kept = self._run(call)
        return call.give(y, writeable=not kept), call.give_state(state_n)

    def backward(self, dy: Any = None, dstate_n: Any = None) -> tuple[Any, Any]:
        """Back-propagate through the last call, once, and add to `gradients`.

        Parameters
        ----------
        dy : array of y's shape, optional
            Gradient of the loss in y; zeros if None.  What it holds past a row's length is ignored.
        dstate_n : array, or pair for LSTM, of the final state's shape, optional
            Gradient of the loss in the final state; zeros if None (also inside the pair).

        Returns
        -------
        dx : array of x's shape and layout, or None for tokens
        dstate : array, or pair for LSTM
            Gradient in the initial state, also if there was none.

        Raises
        ------
        RuntimeError
            In eval mode, before any call, or a second time.
        TypeError, ValueError
            For an argument of the wrong type, dtype or shape; nothing has changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import fastrnn
        >>> layer = fastrnn.GRU(3, 4, seed=0)
        >>> y, h_n = layer(np.ones((5, 2, 3), "float32"))
        >>> dx, dh = layer.backward(dy=np.ones_like(y))
        >>> for name in layer.parameters:
        ...     layer.parameters[name] -= 0.1 * layer.gradients[name]
        >>> layer.zero_grad()
        """
        return self._backward(dy, dstate_n)

    def stream(self, batch: int = 1) -> Stream:
        """Make a `Stream` of `batch` rows that keeps its state from step to step.

        Needs eval mode and one direction (RuntimeError, ValueError).
        """
        return Stream(self, batch)


class LSTM(_Layer):
    """Long short-term memory.

    ::

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)          input gate
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)          forget gate
        g =    tanh(W_ig x + b_ig + W_hg h + b_hg)          candidate
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)          output gate
        c' = f * c + i * g
        h' = o * tanh(c')                                   then W_hr h', if there is a projection

    With peepholes i and f also see c, and o sees c', each through its part of weight_ch.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int, optional
        L: each layer after the first reads the output of the one before.
    bias : bool, optional
        Whether there are bias_ih and bias_hh.
    batch_first : bool, optional
        x and y are (B, T, ...) in place of (T, B, ...).
    dropout : float, optional
        Probability of dropping an output of a layer but the last, in training.
    bidirectional : bool, optional
        A second direction from the end to the start; y then has both, side by side.
    proj_size : int, optional
        P, less than H: project h to this size; 0 for no projection.
    peephole : False, "diagonal" or "full", optional
        One weight per unit and gate, or a matrix per gate; parameters weight_ch, gates i, f, o.
    recurrent_dropout : float, optional
        Probability of dropping a unit of h where W_hh reads it, in training: one mask for all steps of a
        call.
    zoneout : float or (float, float), optional
        Probability that a unit of h, or of h and of c, keeps its previous value at a step, in training; in
        eval mode it takes the mean of both values with these weights.
    device : str, optional
        "cpu", "cuda" (the first CUDA device), "cuda:1", ...
    dtype : str, optional
        "float32" or "float64", or on a CUDA device "float16" or "bfloat16".
    seed : int, optional
        Of the initial parameters, uniform within 1/sqrt(H), and of dropout and zoneout; drawn if None.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or value.
    RuntimeError
        If there is no such device; the message says why.

    References
    ----------
    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997; forget gate:
    Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12(10), 2000; peepholes:
    Gers, Schraudolph and Schmidhuber, "Learning precise timing with LSTM recurrent networks", JMLR 3,
    2002; projection: Sak, Senior and Beaufays, "Long short-term memory recurrent neural network
    architectures for large scale acoustic modeling", Interspeech 2014; recurrent dropout: Gal and
    Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", NIPS 2016;
    zoneout: Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations",
    ICLR 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> layer = fastrnn.LSTM(3, 4, num_layers=2, batch_first=True, seed=0).eval()
    >>> layer
    LSTM(3, 4, num_layers=2, batch_first=True)
    >>> y, (h_n, c_n) = layer(np.ones((2, 5, 3), "float32"))
    >>> y.shape, h_n.shape
    ((2, 5, 4), (2, 2, 4))
    """

    __slots__ = ()
    _arguments = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
        "peephole",
        "recurrent_dropout",
        "zoneout",
        "dtype",
    )

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peephole: bool | str = False,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        device: str = "cpu",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        if not isinstance(peephole, bool | str):
            raise TypeError(f"peephole is {peephole!r}; expected False, 'diagonal' or 'full'")
        if peephole is not False and peephole not in ("diagonal", "full"):
            raise ValueError(f"peephole is {peephole!r}; expected False, 'diagonal' or 'full'")
        spec = Spec(
            "lstm",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            peephole=peephole or "none",
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            dtype=dtype,
        )
        super().__init__(spec, batch_first, device, seed)

    @property
    def peephole(self) -> bool | str:
        """False, "diagonal" or "full"."""
        return False if self._spec.peephole == "none" else self._spec.peephole


class GRU(_Layer):
    """Gated recurrent unit.

    ::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)          reset gate
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)          update gate
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))       candidate; with reset_after=False
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)
        h' = (1 - z) * n + z * h

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, recurrent_dropout
        As for `LSTM`.
    zoneout : float, optional
        Of h, as for `LSTM`.
    device, dtype, seed
        As for `LSTM`.
    reset_after : bool, optional
        Whether r acts after the product with W_hn (as in torch.nn and cuDNN) or before it, on h (as in
        the paper).

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `LSTM`.

    References
    ----------
    Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", EMNLP 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> layer = fastrnn.GRU(input_size=10, hidden_size=4, bidirectional=True, seed=0)
    >>> tokens = np.array([[1, 2], [3, 9]])
    >>> y, h_n = layer(tokens)
    >>> y.shape, h_n.shape
    ((2, 2, 8), (2, 2, 4))
    """

    __slots__ = ()
    _arguments = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "reset_after",
        "recurrent_dropout",
        "zoneout",
        "dtype",
    )

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        device: str = "cpu",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        spec = Spec(
            "gru",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            reset_after=reset_after,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            dtype=dtype,
        )
        super().__init__(spec, batch_first, device, seed)

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate acts after the recurrent product."""
        return self._spec.reset_after


class RNN(_Layer):
    """Elman network: h' = f(W_ih x + b_ih + W_hh h + b_hh).

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, recurrent_dropout
        As for `LSTM`; `nonlinearity` stands fourth, where torch.nn has it.
    zoneout : float, optional
        Of h, as for `LSTM`.
    device, dtype, seed
        As for `LSTM`.
    nonlinearity : "tanh", "relu", "sigmoid" or "identity", optional
        f.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As for `LSTM`.

    References
    ----------
    Elman, "Finding structure in time", Cognitive Science 14(2), 1990.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> layer = fastrnn.RNN(3, 4, nonlinearity="relu", seed=0)
    >>> y, h_n = layer(np.ones((5, 3), "float32"))
    >>> y.shape, h_n.shape
    ((5, 4), (1, 4))
    """

    __slots__ = ()
    _arguments = (
        "input_size",
        "hidden_size",
        "num_layers",
        "nonlinearity",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "recurrent_dropout",
        "zoneout",
        "dtype",
    )

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        device: str = "cpu",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        spec = Spec(
            "rnn",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            dropout=dropout,
            bidirectional=bidirectional,
            nonlinearity=nonlinearity,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            dtype=dtype,
        )
        super().__init__(spec, batch_first, device, seed)

    @property
    def nonlinearity(self) -> Nonlinearity:
        """f: "tanh", "relu", "sigmoid" or "identity"."""
        return self._spec.nonlinearity


# ------------------------------------------------------------------------------------------- cells


class _Cell(_Recurrent):
    """One step of one layer; a whole sequence runs faster through the layer of the same kind."""

    __slots__ = ()
    _dropped_suffix = "_l0"

    def _layouts(self) -> tuple[Layout, Layout]:
        return CELL, CELL_UNBATCHED

    def _keep_y(self, results: Any) -> tuple[Array, Any]:
        h_n = results[0] if self._spec.cell == "lstm" else results
        return h_n.copy(), results

    def __call__(self, x: Any, state: Any = None) -> Any:
        """Advance one step.

        Parameters
        ----------
        x : array (B, I) or (I,)
            Or integer tokens without the axis I.
        state : array (B, H) or (H,), for LSTMCell the pair (h, c), optional
            Zeros if None.

        Returns
        -------
        array, or pair for LSTMCell
            The next state, as `state`.

        Raises
        ------
        TypeError, ValueError
            For an argument of the wrong type, dtype, shape or value; nothing has changed then.
        RuntimeError
            In training mode, while another thread is in a call that may not run beside it.

        Notes
        -----
        In training mode x and state are kept, not copied, and must not change before backward; nor must
        the parameters.
        """
        packed = self._packed
        if type(x) is np.ndarray:  # as in the call of a layer
            results = (
                self._train_plain(x, state) if packed is None else packed.run_plain(self._axes, x, state)
            )
            if results is not None:
                return results
        call = check_call(self._backend, self._spec, self._layouts(), x, state)
        _, state_n, _ = self._run(call)
        return call.give_state(state_n)

    def backward(self, dstate_n: Any) -> tuple[Any, Any]:
        """Back-propagate through the last call, once, and add to `gradients`.

        Parameters
        ----------
        dstate_n : array, or pair for LSTMCell
            Gradient of the loss in the next state.

        Returns
        -------
        dx : array of x's shape, or None for tokens
        dstate : array, or pair for LSTMCell
            Gradient in the state, also if there was none.

        Raises
        ------
        RuntimeError
            In eval mode, before any call, or a second time.
        TypeError, ValueError
            For an argument of the wrong type, dtype or shape; nothing has changed then.
        """
        return self._backward(None, dstate_n)


class LSTMCell(_Cell):
    """One step of an `LSTM` layer: ``(h', c') = cell(x, (h, c))``.

    Parameters
    ----------
    input_size, hidden_size, bias, device, dtype, seed
        As for `LSTM`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> cell = fastrnn.LSTMCell(3, 4).eval()
    >>> h, c = cell(np.ones((2, 3), "float32"))
    >>> h, c = cell(np.ones((2, 3), "float32"), (h, c))
    >>> list(cell.parameters)
    ['weight_ih', 'weight_hh', 'bias_ih', 'bias_hh']
    """

    __slots__ = ()
    _arguments = ("input_size", "hidden_size", "bias", "dtype")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        device: str = "cpu",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        super().__init__(Spec("lstm", input_size, hidden_size, bias=bias, dtype=dtype), False, device, seed)


class GRUCell(_Cell):
    """One step of a `GRU` layer: ``h' = cell(x, h)``.

    Parameters
    ----------
    input_size, hidden_size, bias, reset_after, device, dtype, seed
        As for `GRU`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> cell = fastrnn.GRUCell(3, 4)
    >>> h = cell(np.ones((2, 3), "float32"))
    >>> dx, dh = cell.backward(np.ones_like(h))
    >>> dx.shape, dh.shape
    ((2, 3), (2, 4))
    """

    __slots__ = ()
    _arguments = ("input_size", "hidden_size", "bias", "reset_after", "dtype")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        device: str = "cpu",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        spec = Spec("gru", input_size, hidden_size, bias=bias, reset_after=reset_after, dtype=dtype)
        super().__init__(spec, False, device, seed)

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate acts after the recurrent product."""
        return self._spec.reset_after


class RNNCell(_Cell):
    """One step of an `RNN` layer: ``h' = cell(x, h)``.

    Parameters
    ----------
    input_size, hidden_size, bias, nonlinearity, device, dtype, seed
        As for `RNN`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastrnn
    >>> cell = fastrnn.RNNCell(3, 4, nonlinearity="relu").eval()
    >>> cell(np.ones(3, "float32")).shape
    (4,)
    """

    __slots__ = ()
    _arguments = ("input_size", "hidden_size", "bias", "nonlinearity", "dtype")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        *,
        device: str = "cpu",
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        spec = Spec("rnn", input_size, hidden_size, bias=bias, nonlinearity=nonlinearity, dtype=dtype)
        super().__init__(spec, False, device, seed)

    @property
    def nonlinearity(self) -> Nonlinearity:
        """f: "tanh", "relu", "sigmoid" or "identity"."""
        return self._spec.nonlinearity


# ------------------------------------------------------------------------------------------- files

_KINDS: dict[str, type[_Recurrent]] = {
    kind.__name__: kind for kind in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
}


def load(path: _files.AnyPath, device: str = "cpu") -> Any:
    """Read a layer or cell that `save` wrote.

    Parameters
    ----------
    path : str or path
        A safetensors file.
    device : str, optional
        Where the layer is to be; files do not say where it was.

    Returns
    -------
    LSTM, GRU, RNN, LSTMCell, GRUCell or RNNCell
        With the same configuration, parameters, seed and place in the sequence of dropout masks; in
        training mode, as every new layer.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no safetensors file, or not one of `save`.

    Examples
    --------
    >>> import tempfile
    >>> import fastrnn
    >>> layer = fastrnn.GRU(3, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     layer.save(folder + "/model.safetensors")
    ...     fastrnn.load(folder + "/model.safetensors")
    GRU(3, 4)
    """
    return _files.load(path, _files.LAYER, partial(_described, backend_of_device(device)))


def _described(backend: Backend, description: dict[str, Any], parameters: Mapping[str, Array]) -> _Recurrent:
    """Make the layer that `_Recurrent.save` described; sizes are compared before anything is allocated."""
    name = description["class"]
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"its class is {name!r}; expected one of {', '.join(_KINDS)}")
    kind = _KINDS[name]
    options: dict[str, Any] = dict(description["arguments"])
    unknown = [f"{key}={value!r}" for key, value in options.items() if key not in kind._arguments]
    if unknown:
        raise ValueError(f"it has {', '.join(unknown)}; a {name} has only {', '.join(kind._arguments)}")
    batch_first = boolean("batch_first", options.pop("batch_first", False))
    if options.get("peephole") is False:
        options["peephole"] = "none"
    options["cell"] = name.removesuffix("Cell").lower()
    spec = Spec(**options)
    check_num_layers(spec, parameters)
    backend.check_dtype(spec.dtype)
    arrays = check_parameters(
        backend.own, "parameters", kind._shapes(spec), parameters, spec.dtype, cast=True
    )
    layer = kind.__new__(kind)
    layer._set_up(
        backend,
        spec,
        batch_first,
        integer("seed", description["seed"], 0, SEED_END - 1),
        integer("calls", description["calls"], 0, SEED_END - 1),
        dict(zip(kind._shapes(spec), arrays, strict=True)),
        {},
    )
    return layer
