"""Gives a stub the module search path of the program that started the server, then steps aside for the real tristage.

A stub embeds Python in isolated mode: it ignores PYTHONPATH and the user's site-packages, and looks into the working
directory first. So a step's `import tristage...` finds this module, and ends with the package. TRISTAGE_PATH holds the
search path, the folder that tristage itself was imported from first.
"""

import os
import sys

if sys.path[0] == "":
    del sys.path[0]
_home, *_folders = os.environ["TRISTAGE_PATH"].split(os.pathsep)
if _home not in sys.path:
    sys.path.insert(0, _home)  # a checkout is served by its own code, whatever tristage is installed beside it
sys.path.extend(folder for folder in _folders if folder not in sys.path)

del sys.modules["tristage"]
import tristage  # noqa: E402, F401
