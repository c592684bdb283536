"""stack.yaml says what Stack says in Python; what it can't say is refused with the file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tristage.errors import StackError
from tristage.export.stack_file import read_stack
from tristage.stack import ForestStep, ListInput, MeanStep, NetStep, Stack, WorkflowStep

GOOD = """
name: demo
targets: [reply, like]
golden: golden.parquet
inputs:
  tokens: {max_length: 48, pad: -1}
  words: {max_length: 3}
steps:
  features: {workflow: artifacts/workflow}
  xgb1: {forest: "artifacts/xgb1/{target}-{bag}.ubj", reads: features}
  xgb3:
    forest: artifacts/xgb3/{group}/{target}.ubj
    reads: [features, age]
    group: features.author_group
    average: margins
    margins: true
  nn: {net: artifacts/nn.keras, reads: {tokens: tokens, numeric: [features.x_*, age]}}
  xgb4: {forest: /absolute/xgb4.ubj, reads: [features, xgb1, xgb3, nn]}
  score: {mean: [xgb4, xgb1]}
outputs: {reply: score.reply, like: score.like}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "stack.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_says_the_same_as_python(tmp_path: Path) -> None:
    here = tmp_path.resolve()
    assert read_stack(write(tmp_path, GOOD)) == Stack(
        "demo",
        steps={
            "features": WorkflowStep(here / "artifacts/workflow"),
            "xgb1": ForestStep(here / "artifacts/xgb1/{target}-{bag}.ubj", ("features",)),
            "xgb3": ForestStep(
                here / "artifacts/xgb3/{group}/{target}.ubj",
                ("features", "age"),
                group="features.author_group",
                average="margins",
                margins=True,
            ),
            "nn": NetStep(here / "artifacts/nn.keras", {"tokens": ("tokens",), "numeric": ("features.x_*", "age")}),
            "xgb4": ForestStep(Path("/absolute/xgb4.ubj"), ("features", "xgb1", "xgb3", "nn")),
            "score": MeanStep(("xgb4", "xgb1")),
        },
        outputs={"reply": "score.reply", "like": "score.like"},
        targets=("reply", "like"),
        inputs={"tokens": ListInput(48, -1), "words": ListInput(3)},
        golden=here / "golden.parquet",
    )


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    path = write(tmp_path / "deep", GOOD)
    monkeypatch.chdir(tmp_path)
    stack = read_stack(Path("deep") / path.name)
    assert stack.golden == tmp_path.resolve() / "deep" / "golden.parquet"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: demo", "nam: demo", r"the file has an unknown key 'nam'; it may have name, targets, golden"),
        ("name: demo", "", r"the file lacks the key 'name'"),
        ("name: demo", "name: 7", r"name is 7; give a text"),
        ("name: demo", "name: my demo", r"'my demo' is not a name"),
        ("targets: [reply, like]", "targets: 3", r"targets is 3; give one name or a list of names"),
        ("targets: [reply, like]", "targets: [reply, 3]", r"targets is 3; give a text"),
        ("golden: golden.parquet", "golden: [a]", r"golden is \['a'\]; give a text"),
        ("{max_length: 48, pad: -1}", "48", r"input tokens must be a mapping"),
        ("{max_length: 48, pad: -1}", "{pad: 1}", r"input tokens lacks the key 'max_length'"),
        ("max_length: 48", "max_length: many", r"max_length of input tokens is 'many'; give a whole number"),
        ("max_length: 48", "max_length: true", r"max_length of input tokens is True"),
        ("max_length: 48", "max_length: 0", r"input tokens: max_length is 0"),
        ("pad: -1", "pad: [1]", r"pad of input tokens is \[1\]"),
        ("pad: -1", "padding: 1", r"input tokens has an unknown key 'padding'"),
        ("mean: [xgb4, xgb1]", "median: [xgb4]", r"step score must have exactly one of the keys workflow, forest, net"),
        ("mean: [xgb4, xgb1]", "mean: [xgb4], net: a.onnx", r"step score must have exactly one .* it has mean, net"),
        ("{mean: [xgb4, xgb1]}", "{}", r"step score must have exactly one"),
        ("{mean: [xgb4, xgb1]}", "mean", r"step score must be a mapping of keys to values, not str"),
        ("mean: [xgb4, xgb1]", "mean: [xgb4, xgb1], weights: [1, 2]", r"weights of step score .* must be a mapping"),
        ("mean: [xgb4, xgb1]", "mean: [xgb4, xgb1], power: 2", r"step score has an unknown key 'power'"),
        (", reads: features}", "}", r"step xgb1 lacks the key 'reads'"),
        (", reads: features}", ", reads: 3}", r"reads of step xgb1 is 3; give one name or a list"),
        ("group: features.author_group", "group: [a]", r"group of step xgb3 is \['a'\]; give a text"),
        (
            "average: margins",
            "average: median",
            r"step xgb3: average is 'median'; a bag averages predictions or margins",
        ),
        ("average: margins", "average: 3", r"average of step xgb3 is 3; give a text"),
        ("margins: true", "margins: 1", r"margins of step xgb3 is 1; give true or false"),
        ("{tokens: tokens, numeric", "{tokens: 3, numeric", r"reads.tokens of step nn is 3"),
        (
            "reads: {tokens: tokens, numeric: [features.x_*, age]}",
            "reads: features",
            r"reads of step nn \(input name: co",
        ),
        ("net: artifacts/nn.keras", "net: 3", r"net of step nn is 3; give a text"),
        ("workflow: artifacts/workflow", "workflow: null", r"workflow of step features is None"),
        ("reply: score.reply", "reply: [score.reply]", r"output reply is \['score.reply'\]; give a text"),
        ("reply: score.reply", "reply: scor.reply", r"output reply is 'scor.reply'"),
        ("reads: features}", "reads: score}", r"in a circle: .*"),
        ("[xgb4, xgb1]", "[xgb4, xgbb.x]", r"step score reads 'xgbb.x', but there is no step 'xgbb'"),
        ("outputs: {reply: score.reply, like: score.like}", "outputs: {}", r"stack demo has no outputs"),
        ("outputs: {reply: score.reply, like: score.like}", "", r"the file lacks the key 'outputs'"),
    ],
)
def test_faults(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert GOOD.count(old) == 1
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(StackError, match=words) as caught:
        read_stack(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_steps_are_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(StackError) as caught:
        read_stack(write(tmp_path, GOOD.replace("[xgb4, xgb1]", "[xgb4, xgbb.x]")))
    assert caught.value.step == "score"


@pytest.mark.parametrize("text", ["", "[]", "just text", "3"])
def test_not_a_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(StackError, match=r"stack\.yaml: the file must be a mapping of keys to values"):
        read_stack(write(tmp_path, text))


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tx: 1", "!!python/object:os.system x"])
def test_broken(tmp_path: Path, text: str) -> None:
    with pytest.raises(StackError, match=r"stack\.yaml cannot be read as YAML"):
        read_stack(write(tmp_path, text))


def test_a_key_twice(tmp_path: Path) -> None:
    twice = GOOD.replace("  score:", "  xgb1: {forest: b.ubj, reads: features}\n  score:")
    with pytest.raises(StackError, match=r"stack\.yaml .*xgb1.*twice"):
        read_stack(write(tmp_path, twice))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"there is no file .*gone\.yaml; give the path of a stack\.yaml"):
        read_stack(tmp_path / "gone.yaml")
    with pytest.raises(StackError, match="cannot be read as YAML"):
        read_stack(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(StackError, match="cannot be read as YAML"):
        read_stack(tmp_path / "bytes.yaml")
