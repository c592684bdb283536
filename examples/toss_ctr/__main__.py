"""`python -m examples.toss_ctr`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else TensorFlow announces them on stderr
    # OpenAI's triton, which PyPI's torch brings: its LLVM ends a process that has loaded TensorFlow's
    sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
    from examples.toss_ctr.command import main

    sys.exit(main())
