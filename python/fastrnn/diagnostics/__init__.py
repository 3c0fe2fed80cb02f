"""What a recurrent model does and why it does not learn: measurements that return numbers and can draw them.

Every function takes a layer or a `fastrnn.models.Model` in either mode and leaves it as it was.  What it
returns has ``draw(axes=None)``, which needs matplotlib (``pip install 'fastrnn[cli]'``) and returns a
figure; nothing is shown.
"""

from .checking import GradientCheck, gradient_check
from .gates import GateSaturation, gate_saturation
from .landscape import LossLine, LossPlane, loss_line, loss_plane, random_direction
from .norms import GradientNorms
from .pictures import HiddenPicture, hidden_picture
from .responses import GradientReach, ImpulseResponse, gradient_reach, impulse_response, memory_length
from .spectrum import MatrixSpectrum, RecurrentSpectrum, recurrent_spectrum

__all__ = [
    "GateSaturation",
    "GradientCheck",
    "GradientNorms",
    "GradientReach",
    "HiddenPicture",
    "ImpulseResponse",
    "LossLine",
    "LossPlane",
    "MatrixSpectrum",
    "RecurrentSpectrum",
    "gate_saturation",
    "gradient_check",
    "gradient_reach",
    "hidden_picture",
    "impulse_response",
    "loss_line",
    "loss_plane",
    "memory_length",
    "random_direction",
    "recurrent_spectrum",
]
