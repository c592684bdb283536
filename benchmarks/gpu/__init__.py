"""What the reference stack costs on a GPU, in three steps, each of which can be on a machine of its own.

    python -m benchmarks.gpu pack REPOSITORY -o PARTS     # where tristage is installed: files of at most 64 MB
    python -m benchmarks.gpu run PARTS -o FOUND           # where the GPU is: needs PyTorch, ONNX Runtime, onnx, NumPy
    python -m benchmarks.gpu publish FOUND/gpu.json       # where tristage is installed: benchmarks/results/gpu.*

`run` takes a checkout, needs no network and no installation, and says at once which parts or packages are missing. It
checks the GPU's answers against those of the training libraries, and measures ms/example for the whole stack and part
by part, from one row to 131,072.
"""
