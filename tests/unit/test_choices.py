"""What the exporter says to Triton of each model, what a stack may say itself, and where tensors lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from tristage.errors import StackError
from tristage.export.choices import MAX_WAITING, backend_of, choose, choose_ensemble
from tristage.export.config import model_config
from tristage.export.net.native import NativeNet
from tristage.export.onnx_graph import GraphBuilder
from tristage.export.place import Checkpoint, PlacedModel, Tensor
from tristage.export.stack_file import read_stack
from tristage.serving.workflow_file import WorkflowFile
from tristage.targets import TARGETS
from tristage.triton_settings import TritonSettings

IN, OUT = (Tensor("user", "string", 1), Tensor("rows", "float32", 7)), (Tensor("answers", "float32", 1),)
SETTINGS = {
    "backend",
    "device",
    "instances",
    "preferred_batch",
    "queue_delay_us",
    "max_queue",
    "warmup",
    "accelerator",
    "cuda_graphs",
    "resources",
}


def graph() -> PlacedModel:
    """A net as an ONNX graph."""
    builder = GraphBuilder()
    model = builder.model([("answers", builder.input("rows", "float32", 7), "float32", 7)])
    return PlacedModel("s_net", ("net",), model, IN[1:], OUT, {}, on_gpu=frozenset({"net"}))


def look_ups() -> PlacedModel:
    builder = GraphBuilder()
    model = builder.model([("answers", builder.input("rows", "float32", 7), "float32", 7)])
    return PlacedModel("s_work", ("work",), model, IN, OUT, {})


def forest(*steps: str) -> PlacedModel:
    its = steps or ("trees",)
    return PlacedModel("s_trees", its, Checkpoint("t", 7, 2), IN[1:], OUT, {}, on_gpu=frozenset(its))


def parsed(model: PlacedModel, target: str, **said: Any) -> Any:
    chosen = choose(model, 1024, TARGETS[target], TritonSettings(**said))
    return text_format.Parse(model_config(model, 1024, chosen), pb.ModelConfig())


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("make", [graph, look_ups, forest])
def test_every_setting_is_chosen_and_explained(make: Any, target: str) -> None:
    chosen = choose(make(), 1024, TARGETS[target], TritonSettings())
    assert {choice.setting for choice in chosen.choices} == SETTINGS
    assert all(choice.value and choice.why for choice in chosen.choices)
    assert chosen.gpu == (target == "pip-gpu" or (target == "ngc-gpu" and make is not look_ups))
    assert (chosen.instances, chosen.preferred_batch, chosen.queue_delay_us, chosen.max_queue) == (1, (), 0, None)


def nvtabular() -> PlacedModel:
    """A workflow that could not be compiled."""
    file = WorkflowFile("/w", {}, {}, (), {}, ())
    return PlacedModel("s_own", ("own",), file, IN, OUT, {}, on_gpu=frozenset({"own"}))


def test_a_workflow_of_nvtabulars_is_on_the_gpu_of_the_container() -> None:
    config = parsed(nvtabular(), "ngc-gpu")
    assert config.backend == "python"
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    said = {name: value.string_value for name, value in config.parameters.items()}
    assert said == {"device": "cuda", "FORCE_CPU_ONLY_INPUT_TENSORS": "no"}
    assert not config.model_warmup
    for target in ("pip-gpu", "pip-cpu", "ngc-cpu"):
        config = parsed(nvtabular(), target)
        assert (config.backend, len(config.parameters)) == ("python", 0)
        assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU


@pytest.mark.parametrize("make", [graph, look_ups, forest, nvtabular])
def test_a_step_goes_to_the_device_that_is_said(make: Any) -> None:
    steps = make().steps
    for target in ("ngc-gpu", "pip-gpu"):
        said = TritonSettings(steps={steps[0]: TritonSettings(device="cpu")})
        chosen = choose(make(), 64, TARGETS[target], said)
        assert not chosen.gpu
        assert not chosen.cuda_graphs
        assert [(c.value, c.why) for c in chosen.choices if c.setting == "device"] == [("CPU", "the stack says so")]
    chosen = choose(make(), 64, TARGETS["ngc-gpu"], TritonSettings(device="gpu"))
    assert chosen.gpu
    own = TritonSettings(steps={steps[0]: TritonSettings(device="gpu")})
    with pytest.raises(StackError, match=r"device: gpu of .*pip-cpu has no GPU; leave it out"):
        choose(make(), 64, TARGETS["pip-cpu"], own)
    assert not choose(make(), 64, TARGETS["pip-cpu"], TritonSettings(device="gpu")).gpu


def test_nvtabular_on_the_gpu_is_refused_where_no_cudf_can_be() -> None:
    own = TritonSettings(steps={"own": TritonSettings(device="gpu")})
    with pytest.raises(StackError, match="PyPI has not in NVTabular's version"):
        choose(nvtabular(), 64, TARGETS["pip-gpu"], own)
    with pytest.raises(StackError, match="there is no device 'tpu'"):
        TritonSettings(device="tpu")


def test_warm_up_by_device() -> None:
    assert choose(graph(), 1000, TARGETS["ngc-gpu"], TritonSettings()).warmup == (1, 8, 64, 512, 1000)
    assert choose(graph(), 512, TARGETS["ngc-gpu"], TritonSettings()).warmup == (1, 8, 64, 512)
    assert choose(graph(), 1, TARGETS["ngc-gpu"], TritonSettings()).warmup == (1,)
    assert choose(look_ups(), 1000, TARGETS["ngc-gpu"], TritonSettings()).warmup == ()
    assert choose(graph(), 1000, TARGETS["pip-cpu"], TritonSettings()).warmup == ()
    assert choose(look_ups(), 300, TARGETS["pip-gpu"], TritonSettings()).warmup == (1, 4, 16, 64, 256, 300)


def test_what_is_said_is_written() -> None:
    config = parsed(
        graph(),
        "ngc-gpu",
        instances=3,
        preferred_batch=[256, 64],
        queue_delay_us=150,
        max_queue=500,
        warmup=[32],
        accelerator="tensorrt-fp16",
        cuda_graphs=True,
        resources={"gpu": 2},
    )
    (group,) = config.instance_group
    assert (group.count, [(r.name, r.count) for r in group.rate_limiter.resources]) == (3, [("gpu", 2)])
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [64, 256]
    assert batching.max_queue_delay_microseconds == 150
    assert batching.default_queue_policy.max_queue_size == 500
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {"precision_mode": "FP16", "trt_cuda_graph_enable": "1"}
    (warm,) = config.model_warmup
    assert (warm.batch_size, sorted(warm.inputs)) == (32, ["rows"])


def test_nothing_said_writes_no_policy() -> None:
    config = parsed(look_ups(), "ngc-gpu")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.HasField("optimization")
    assert not config.HasField("response_cache")
    assert not config.model_warmup


def test_a_step_goes_before_the_stack_and_before_the_export() -> None:
    of_steps = {"trees": TritonSettings(instances=4)}
    for instances in (None, 2):
        said = TritonSettings(instances=3, queue_delay_us=5, steps=of_steps)
        chosen = choose(forest(), 64, TARGETS["ngc-cpu"], said, instances)
        assert (chosen.instances, chosen.queue_delay_us) == (4, 5)
    assert choose(graph(), 64, TARGETS["ngc-cpu"], TritonSettings(instances=3)).instances == 3
    assert choose(graph(), 64, TARGETS["ngc-cpu"], TritonSettings(instances=3), 2).instances == 2


def test_steps_of_one_model_have_to_agree() -> None:
    def said(**warmups: list[int]) -> TritonSettings:
        return TritonSettings(steps={step: TritonSettings(warmup=rows) for step, rows in warmups.items()})  # type: ignore[arg-type]

    assert choose(forest("a", "b"), 64, TARGETS["pip-cpu"], said(a=[7])).warmup == (7,)
    assert choose(forest("a", "b"), 64, TARGETS["pip-cpu"], said(a=[7], b=[7])).warmup == (7,)
    with pytest.raises(StackError, match=r"warmup \(7,\) of step a and \(8,\) of step b, which are one model"):
        choose(forest("a", "b"), 64, TARGETS["pip-cpu"], said(a=[7], b=[8]))


def test_an_accelerator_is_for_graphs_on_a_gpu() -> None:
    whole = TritonSettings(accelerator="tensorrt-fp32", cuda_graphs=True)
    assert choose(graph(), 64, TARGETS["ngc-gpu"], whole).accelerator == "tensorrt-fp32"
    assert choose(graph(), 64, TARGETS["ngc-gpu"], whole).cuda_graphs
    for model, target in ((forest(), "ngc-gpu"), (look_ups(), "ngc-gpu"), (graph(), "pip-cpu"), (graph(), "ngc-cpu")):
        chosen = choose(model, 64, TARGETS[target], whole)
        assert (chosen.accelerator, chosen.cuda_graphs) == (None, False)
    own = TritonSettings(steps={"trees": TritonSettings(accelerator="tensorrt-fp32")})
    with pytest.raises(StackError, match="accelerator of trees, but fil on the GPU has none"):
        choose(forest(), 64, TARGETS["ngc-gpu"], own)
    graphs = TritonSettings(steps={"net": TritonSettings(cuda_graphs=True)})
    with pytest.raises(StackError, match="cuda_graphs of net, but they are TensorRT's"):
        choose(graph(), 64, TARGETS["ngc-gpu"], graphs)


def test_more_rows_than_a_request_holds() -> None:
    with pytest.raises(StackError, match=r"warmup is \[65\]; a request holds at most 64 rows"):
        choose(graph(), 64, TARGETS["pip-cpu"], TritonSettings(warmup=(65,)))


def test_who_answers() -> None:
    assert backend_of(graph(), TARGETS["pip-cpu"], 1) == "tristage"
    assert backend_of(graph(), TARGETS["pip-cpu"], 2) == "python"
    assert backend_of(graph(), TARGETS["ngc-cpu"], 2) == "onnxruntime"
    assert backend_of(forest(), TARGETS["ngc-gpu"], 1) == "fil"
    net = PlacedModel("s_n", ("n",), NativeNet("pytorch", "f", (), ()), IN[1:], OUT, {})
    assert backend_of(net, TARGETS["ngc-cpu"], 1) == "pytorch"


def test_a_stack_of_one_model_bounds_its_queue() -> None:
    def queue(target: str, **more: Any) -> tuple[int | None, str, bool]:
        chosen = choose(graph(), 64, TARGETS[target], TritonSettings(**more.pop("said", {})), **more)
        config = text_format.Parse(model_config(graph(), 64, chosen), pb.ModelConfig())
        said = config.parameters["max_queue"].string_value
        return chosen.max_queue, said, config.dynamic_batching.HasField("default_queue_policy")

    assert queue("pip-cpu", sole=True) == (MAX_WAITING, str(MAX_WAITING), False)
    assert queue("pip-cpu", sole=True, said={"max_queue": 7}) == (7, "7", False)
    assert queue("pip-cpu") == (None, "", False)  # beside others
    assert queue("pip-cpu", sole=True, instances=2) == (None, "", False)  # by Triton's Python backend
    assert queue("ngc-cpu", sole=True) == (None, "", False)
    assert queue("ngc-cpu", sole=True, said={"max_queue": 7}) == (7, "", True)


def test_the_response_cache_is_off_unless_asked_for() -> None:
    assert [choose_ensemble(TritonSettings(response_cache=said))[0] for said in (None, False, True)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[1]", "triton must be a mapping"),
        ("{instance: 2}", "unknown key 'instance'; it may have device, instances"),
        ("{instances: 0}", "instances is 0; give a whole number of at least 1"),
        ("{instances: true}", "instances is True"),
        ("{queue_delay_us: 1.5}", "queue_delay_us is 1.5"),
        ("{warmup: 4}", "warmup is 4; give numbers of rows"),
        ("{warmup: [0]}", r"warmup is \[0\]"),
        ("{accelerator: openvino}", "there is no accelerator 'openvino'; choose one of tensorrt-fp32, tensorrt-fp16"),
        ("{cuda_graphs: maybe}", "cuda_graphs is 'maybe'; give true or false"),
        ("{resources: [gpu]}", "resources is"),
        ("{steps: {trees: {instances: -1}}}", "triton.steps.trees: instances is -1"),
        ("{steps: {trees: {response_cache: true}}}", "response_cache is a setting of the whole stack"),
        ("{steps: {tree: {instances: 1}}}", "triton names a step tree, and there is none; steps are trees"),
        ("{steps: [trees]}", "steps of triton must be a mapping"),
    ],
)
def test_what_a_stack_file_may_not_say(text: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=error):
        read_stack(stack_file(tmp_path, text))


def test_what_a_stack_file_says(tmp_path: Path) -> None:
    read = read_stack(stack_file(tmp_path, "{instances: 2, warmup: [], steps: {trees: {max_queue: 9}}}")).triton
    assert read == TritonSettings(instances=2, warmup=(), steps={"trees": TritonSettings(max_queue=9)})
    assert read_stack(stack_file(tmp_path, "")).triton == TritonSettings()


def stack_file(folder: Path, text: str) -> Path:
    path = folder / "stack.yaml"
    path.write_text(
        f"name: s\nsteps: {{trees: {{forest: f.ubj, reads: [a]}}}}\noutputs: {{y: trees.y}}\ntriton: {text}\n"
    )
    return path
