"""``python -m flowgrad``."""

import sys

from flowgrad.tools.cli import main

sys.exit(main())
