"""config.pbtxt, made with Triton's own protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tristage.columns import DTYPES, SIGNATURE_PARAMETER, Signature
from tristage.errors import RepositoryError
from tristage.export.choices import Chosen
from tristage.export.net.backends import BACKENDS
from tristage.export.net.native import NativeNet
from tristage.export.place import Checkpoint, PlacedModel, Placement, Tensor
from tristage.serving.backend import MAX_QUEUE
from tristage.serving.workflow_file import WorkflowFile

__all__ = ["CHECKPOINT_FILE", "devices", "ensemble_config", "model_config", "read_config", "read_configs"]

CHECKPOINT_FILE = "checkpoint.tl"  # the one name that FIL looks for


def model_config(model: PlacedModel, max_batch: int, chosen: Chosen) -> str:
    """The configuration of one model: for FIL, ONNX Runtime or a framework's own backend, or for tristage's."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    file, platform = "", ""
    parameters: Mapping[str, str] = {}
    if isinstance(model.graph, Checkpoint):
        parameters = _fil(model.graph)
    elif isinstance(model.graph, NativeNet):
        its = BACKENDS[chosen.backend]
        file, platform, parameters = its.file, its.platform, its.parameters(chosen.instances)
    elif chosen.backend == "onnxruntime":
        file, parameters = "graph.onnx", _ONNX_RUNTIME
    elif chosen.gpu and isinstance(model.graph, WorkflowFile):
        parameters = {"device": "cuda", "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    elif chosen.gpu:
        parameters = {"device": "cuda", "cuda_graphs": "1" if chosen.cuda_graphs else "0"}
    elif chosen.backend == "tristage" and chosen.max_queue is not None:
        parameters = {MAX_QUEUE: str(chosen.max_queue)}
    inputs, outputs = _own_names(model)
    flat = _flat(model)
    rows = pb.ModelTensorReshape()  # of no dimension but the rows
    config = pb.ModelConfig(
        name=model.name,
        platform=platform,
        backend=chosen.backend,
        max_batch_size=max_batch,
        input=[
            pb.ModelInput(name=t.name, data_type=_type(pb, t), dims=[t.width], reshape=rows if t.name in flat else None)
            for t in inputs
        ],
        output=[
            pb.ModelOutput(
                name=t.name, data_type=_type(pb, t), dims=[t.width], reshape=rows if t.name in flat else None
            )
            for t in outputs
        ],
        default_model_filename=file,
        parameters={name: pb.ModelParameter(string_value=value) for name, value in parameters.items()},
        instance_group=[_instances(pb, chosen)],
        dynamic_batching=_batching(pb, chosen),
        optimization=_optimization(pb, chosen),
        model_warmup=[_made_up(pb, inputs, rows) for rows in chosen.warmup],
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
    )
    return str(text_format.MessageToString(config))


def _instances(pb: Any, chosen: Chosen) -> Any:
    group = pb.ModelInstanceGroup(
        count=chosen.instances, kind=pb.ModelInstanceGroup.Kind.Value("KIND_GPU" if chosen.gpu else "KIND_CPU")
    )
    for name, count in chosen.resources.items():
        group.rate_limiter.resources.add(name=name, count=count)
    return group


def _batching(pb: Any, chosen: Chosen) -> Any:
    """No queue policy unless it is asked for: one with a size or a timeout turns Triton's prefetching off.

    tristage's own backend bounds its queue itself.

    So it does by priority or with a delay too, and then a request that comes just as the last one is answered waits for
    the batcher's 500 ms timer (seen with 2.51).
    """
    policy = None
    if chosen.max_queue is not None and chosen.backend != "tristage":
        policy = pb.ModelQueuePolicy(max_queue_size=chosen.max_queue)
    return pb.ModelDynamicBatching(
        preferred_batch_size=chosen.preferred_batch,
        max_queue_delay_microseconds=chosen.queue_delay_us,
        default_queue_policy=policy,
    )


def _optimization(pb: Any, chosen: Chosen) -> Any:
    """ONNX Runtime's TensorRT, in the words of Triton's onnxruntime backend; None where it is not used."""
    if chosen.accelerator is None:
        return None
    parameters = {
        "precision_mode": chosen.accelerator.removeprefix("tensorrt-").upper(),
        "trt_cuda_graph_enable": "1" if chosen.cuda_graphs else "0",
    }
    accelerator = pb.ModelOptimizationPolicy.ExecutionAccelerators.Accelerator(name="tensorrt", parameters=parameters)
    return pb.ModelOptimizationPolicy(
        execution_accelerators=pb.ModelOptimizationPolicy.ExecutionAccelerators(gpu_execution_accelerator=[accelerator])
    )


def _made_up(pb: Any, inputs: tuple[Tensor, ...], rows: int) -> Any:
    """A request of zeros and empty texts, which a model answers before it is ready."""
    return pb.ModelWarmup(
        name=f"{rows} rows",
        batch_size=rows,
        inputs={t.name: pb.ModelWarmup.Input(data_type=_type(pb, t), dims=[t.width], zero_data=True) for t in inputs},
    )


# one thread an instance: instances are what a server has as many of as cores
_ONNX_RUNTIME = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}


def _fil(checkpoint: Checkpoint) -> dict[str, str]:
    """What FIL of Triton 24.10 has to be told, so that it answers the checkpoint's columns on the CPU and on the GPU.

    Probabilities, which leave the columns as they are: of several the GPU answers all only when it is asked for classes
    and their probabilities, and a single one keeps its dimension only beside its complement.
    """
    return {
        "model_type": "treelite_checkpoint",
        "output_class": "true" if checkpoint.width > 2 else "false",
        "predict_proba": "true",
        "threshold": "0.5",
        "use_experimental_optimizations": "true",
        "cpu_nthread": "1",
    }


def _own_names(model: PlacedModel) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """A model's inputs and outputs as itself calls them; FIL and the frameworks' own backends have names of theirs."""
    if isinstance(model.graph, NativeNet):
        its = model.graph
        return (
            tuple(replace(t, name=own.name) for t, own in zip(model.inputs, its.inputs, strict=True)),
            tuple(replace(t, name=own.name) for t, own in zip(model.outputs, its.outputs, strict=True)),
        )
    if not isinstance(model.graph, Checkpoint):
        return model.inputs, model.outputs
    (rows,), (answers,) = model.inputs, model.outputs
    return (replace(rows, name="input__0"),), (replace(answers, name="output__0"),)


def _flat(model: PlacedModel) -> set[str]:
    """The tensors, by its own names, that a model wants as [rows], where they travel as [rows, 1]."""
    if not isinstance(model.graph, NativeNet):
        return set()
    return {its.name for its in (*model.graph.inputs, *model.graph.outputs) if its.flat}


def ensemble_config(placement: Placement, response_cache: bool = False) -> str:
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
        response_cache=pb.ModelResponseCache(enable=True) if response_cache else None,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
    )
    return str(text_format.MessageToString(config))


def read_configs(repository: Path, stack: str) -> list[tuple[str, Any]]:
    """Every model of a repository and its configuration, in the order that the ensemble asks them.

    Raises:
        RepositoryError: a configuration is missing or damaged.
    """
    steps = read_config(repository, stack).ensemble_scheduling.step
    return [(step.model_name, read_config(repository, step.model_name)) for step in steps]


def read_config(repository: Path, model: str) -> Any:
    """The configuration of one model of a repository, or of its ensemble.

    Raises:
        RepositoryError: it is missing or damaged.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    path = repository / model / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} cannot be read ({error}); export the stack again") from error


def devices(config: Any) -> str:
    """Where a model's instances are, such as "CPU" or "2 x GPU"."""
    from tritonclient.grpc import model_config_pb2 as pb

    groups = [
        (group.count, pb.ModelInstanceGroup.Kind.Name(group.kind).removeprefix("KIND_"))
        for group in config.instance_group
    ]
    return ", ".join(kind if count == 1 else f"{count} x {kind}" for count, kind in groups)


def _step(pb: Any, model: PlacedModel, placement: Placement) -> Any:
    """One step: which of the ensemble's tensors are the model's."""
    inputs, outputs = _own_names(model)
    return pb.ModelEnsembling.Step(
        model_name=model.name,
        model_version=-1,
        input_map={own.name: tensor.name for own, tensor in zip(inputs, model.inputs, strict=True)},
        output_map={own.name: tensor.name for own, tensor in zip(outputs, model.outputs, strict=True)},
    )


def _type(pb: Any, tensor: Tensor) -> int:
    name = DTYPES[tensor.dtype][1]
    return int(pb.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"))
