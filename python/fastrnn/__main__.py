"""``python -m fastrnn``: see `fastrnn.cli`."""

import sys

from .cli import main

sys.exit(main())
