"""What a recurrent model does and why it does not learn: measurements that return numbers and can draw them.

Every function takes a layer or a `fastrnn.models.Model` in either mode and leaves it as it was.  What it
returns has ``draw(axes=None)``, which needs matplotlib (``pip install 'fastrnn[cli]'``) and returns a
figure; nothing is shown.
"""

from .checking import GradientCheck, gradient_check

__all__ = ["GradientCheck", "gradient_check"]
