"""Where the tensors of an ensemble are: who makes each, on which device, and who has to copy it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tristage.export.config import read_config, read_configs

__all__ = ["Tensor", "tensors_of"]


@dataclass(frozen=True)
class Tensor:
    """A tensor of an ensemble.

    Attributes:
        name: as the ensemble calls it.
        dtype: Triton's name of its type, such as "FP32".
        width: elements of a row.
        made_by: the Triton model, or "request".
        device: "CPU" or "GPU": where its maker is, and so where it lies.
        read_by: the Triton models that read it; none where it is an answer only.
        copied_by: those of them on the other device, for which it is copied.
        answer: whether it goes back to the caller, from the CPU.
    """

    name: str
    dtype: str
    width: int
    made_by: str
    device: str
    read_by: tuple[str, ...]
    copied_by: tuple[str, ...]
    answer: bool


def tensors_of(repository: Path, stack: str) -> list[Tensor]:
    """Every tensor of a repository's ensemble: the request's first, then each model's answers.

    Raises:
        RepositoryError: a configuration is missing or damaged.
    """
    ensemble = read_config(repository, stack)
    models = dict(read_configs(repository, stack))
    where = {name: _device(config) for name, config in models.items()}
    readers: dict[str, list[str]] = {}
    for step in ensemble.ensemble_scheduling.step:
        for tensor in step.input_map.values():
            readers.setdefault(tensor, []).append(step.model_name)
    answers = {output.name for output in ensemble.output}

    def told(name: str, config: Any, made_by: str, device: str) -> Tensor:
        read_by = tuple(readers.get(name, ()))
        copied_by = tuple(model for model in read_by if where[model] != device)
        return Tensor(name, _dtype(config), config.dims[0], made_by, device, read_by, copied_by, name in answers)

    found = [told(each.name, each, "request", "CPU") for each in ensemble.input]
    for step in ensemble.ensemble_scheduling.step:
        outputs = {each.name: each for each in models[step.model_name].output}
        found += [
            told(name, outputs[own], step.model_name, where[step.model_name]) for own, name in step.output_map.items()
        ]
    return found


def _device(config: Any) -> str:
    from tritonclient.grpc import model_config_pb2 as pb

    return "GPU" if any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group) else "CPU"


def _dtype(config: Any) -> str:
    from tritonclient.grpc import model_config_pb2 as pb

    return str(pb.DataType.Name(config.data_type)).removeprefix("TYPE_").replace("STRING", "BYTES")
