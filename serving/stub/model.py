"""What backend `tristage` is where it was not compiled: NVIDIA's Python backend with this for every model."""

from tristage.serving.runner import TritonPythonModel  # noqa: F401
