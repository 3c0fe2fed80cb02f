"""Do the measurements of a model on a CUDA device give the numbers of the same model on the CPU?"""

from __future__ import annotations

import fastrnn
import numpy as np
import pytest
from fastrnn.diagnostics import (
    GradientNorms,
    gate_saturation,
    gradient_check,
    gradient_reach,
    hidden_picture,
    impulse_response,
    loss_line,
    loss_plane,
    recurrent_spectrum,
)
from fastrnn.models import ManyToMany
from tolerances import assert_close

pytestmark = pytest.mark.cuda


def make_model(device):
    return ManyToMany(fastrnn.LSTM(3, 4, 2, seed=0, device=device), 2, seed=1)


def mean_square(x):
    return lambda model: float(np.square(model(x)[0]).mean())


def gradient_norms(model, x):
    record = GradientNorms()
    o, _ = model(x)
    model.backward(np.ones_like(o))
    record(0, model)
    return list(record.norms.values())


def on_line(model, x):
    here = {
        name: array.numpy() if model.device != "cpu" else array for name, array in model.parameters.items()
    }
    zero = {name: np.zeros_like(array) for name, array in here.items()}
    return loss_line(model, mean_square(x), zero, here, [0, 0.5, 1]).losses


MEASUREMENTS = {
    "impulse_response": lambda model, x: impulse_response(model, x=x[:, :1]).response,
    "gradient_reach": lambda model, x: gradient_reach(model, x).total,
    "hidden_picture": lambda model, x: hidden_picture(model, x[:, 0]).states["c_l1"],
    "recurrent_spectrum": lambda model, x: recurrent_spectrum(model).matrices["layer.weight_hh_l1.f"].radius,
    "gate_saturation": lambda model, x: list(gate_saturation(model.layer, x, high=0.5).right.values()),
    "GradientNorms": gradient_norms,
    "loss_line": on_line,
    "loss_plane": lambda model, x: loss_plane(model, mean_square(x), points=3).losses,
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_device_measures_as_the_cpu_does(rng, name):
    x = rng.normal(size=(5, 2, 3)).astype("float32")
    there, here = (np.asarray(MEASUREMENTS[name](make_model(device), x)) for device in ("cuda", "cpu"))
    assert_close(there, here, n_products=1000, dtype="float32")


def test_a_gradient_check_is_of_the_cpu():
    with pytest.raises(
        NotImplementedError, match="gradient_check of a model on a CUDA device; move it to the"
    ):
        gradient_check(make_model("cuda"), np.zeros((2, 1, 3), "float32"))
