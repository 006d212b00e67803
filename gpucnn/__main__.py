"""``python -m gpucnn`` is the ``gpucnn`` command."""

import sys

from gpucnn.cli import main

sys.exit(main())
