"""`python -m examples.microparade [VARIANT ...]`."""

from __future__ import annotations

import sys
import warnings

if __name__ == "__main__":
    # OpenAI's triton, which PyPI's torch brings, is not asked for; NVTabular would import TensorFlow, and does without
    warnings.filterwarnings("ignore", "Tensorflow dtype mappings")
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]
    from examples.microparade.command import main

    sys.exit(main())
