"""Let a checkout without symbolic links (Windows) find ir/, passes/ and tools/."""

import os.path
import sys

_package = os.path.dirname(os.path.abspath(__file__))
_root = os.path.dirname(_package)
_linked = os.path.isdir(os.path.join(_package, "ir"))
if not _linked and os.path.isfile(os.path.join(_root, "pyproject.toml")):
    sys.modules["flowgrad"].__path__.append(_root)
