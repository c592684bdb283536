"""config.pbtxt, made with Triton's own protobuf."""

from __future__ import annotations

from typing import Any

from tristage.columns import DTYPES, SIGNATURE_PARAMETER, Signature
from tristage.export.place import PlacedModel, Placement, Tensor

__all__ = ["ensemble_config", "model_config"]


def model_config(model: PlacedModel, max_batch: int, instances: int = 1) -> str:
    """The configuration of one step's model, for the Python backend."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    config = pb.ModelConfig(
        name=model.name,
        backend="python",
        max_batch_size=max_batch,
        input=[pb.ModelInput(name=t.name, data_type=_type(pb, t), dims=[t.width]) for t in model.inputs],
        output=[pb.ModelOutput(name=t.name, data_type=_type(pb, t), dims=[t.width]) for t in model.outputs],
        instance_group=[pb.ModelInstanceGroup(count=instances, kind=pb.ModelInstanceGroup.KIND_CPU)],
        # no queue policy: one with a size or a timeout turns Triton's prefetching off, and then a request that comes
        # just as the last one is answered waits for the batcher's 500 ms timer (seen with 2.51)
        dynamic_batching=pb.ModelDynamicBatching(),
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
    )
    return str(text_format.MessageToString(config))


def ensemble_config(placement: Placement) -> str:
    """The configuration of the ensemble: raw columns in, answers out, every step in between."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    signature: Signature = placement.signature
    inputs = [Tensor(column.name, column.wire_dtype, column.width) for column in signature.inputs]
    outputs = [Tensor(column.name, column.wire_dtype, column.width) for column in signature.outputs]
    config = pb.ModelConfig(
        name=signature.stack,
        platform="ensemble",
        max_batch_size=signature.max_batch,
        input=[pb.ModelInput(name=t.name, data_type=_type(pb, t), dims=[t.width]) for t in inputs],
        output=[pb.ModelOutput(name=t.name, data_type=_type(pb, t), dims=[t.width]) for t in outputs],
        ensemble_scheduling=pb.ModelEnsembling(step=[_step(pb, model, placement) for model in placement.models]),
        parameters={SIGNATURE_PARAMETER: pb.ModelParameter(string_value=signature.to_json())},
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
    )
    return str(text_format.MessageToString(config))


def _step(pb: Any, model: PlacedModel, placement: Placement) -> Any:
    """One step; a tensor has the same name in the step's model and in the ensemble."""
    return pb.ModelEnsembling.Step(
        model_name=model.name,
        model_version=-1,
        input_map={tensor.name: tensor.name for tensor in model.inputs},
        output_map={tensor.name: tensor.name for tensor in model.outputs},
    )


def _type(pb: Any, tensor: Tensor) -> int:
    name = DTYPES[tensor.dtype][1]
    return int(pb.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"))
