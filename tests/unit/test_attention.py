"""Attention through torch's exporter: masks of every kind, rows that may attend to nothing, and a BERT as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tristage.export.net import read_net

torch = pytest.importorskip("torch")
nn = torch.nn

HEADS, LENGTH, WIDTH = 2, 6, 8
RNG = np.random.default_rng(5)
# all, none, the first, some, the last; then rows of which a batch may be made up
THERE = np.array([[1] * 6, [0] * 6, [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1], [0] * 6])
ROWS = {"x": RNG.normal(size=(len(THERE), LENGTH * WIDTH)).astype(np.float32), "there": THERE}


def agree(module: Any, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a module answers as ONNX, asked about all rows and about each alone: PyTorch's own answers, to 1e-6."""
    net = read_net("nn", module.eval(), None, {name: values[:2] for name, values in rows.items()})
    session = onnxruntime.InferenceSession(net.model.SerializeToString())
    wanted = net.predict(rows)[0]
    together = np.asarray(session.run(None, dict(rows))[0])
    np.testing.assert_allclose(together, wanted, atol=1e-6)
    for row in range(len(wanted)):
        one = {name: values[row : row + 1] for name, values in rows.items()}
        np.testing.assert_allclose(session.run(None, one)[0], wanted[row : row + 1], atol=1e-6)
    return together


class Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.three = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Any, there: Any) -> Any:
        made = self.three(x.view(-1, LENGTH, WIDTH)).view(-1, LENGTH, 3, HEADS, WIDTH // HEADS)
        query, key, value = made.permute(2, 0, 3, 1, 4).unbind(0)
        mask = (there != 0)[:, None, None, :]
        if self.kind == "for each query":
            mask = mask.expand(-1, 1, LENGTH, LENGTH) & torch.ones(LENGTH, LENGTH).tril().bool()
        if self.kind in ("-inf", "lowest"):
            mask = torch.where(mask, 0.0, -float("inf") if self.kind == "-inf" else torch.finfo(torch.float32).min)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return seen.transpose(1, 2).reshape(-1, LENGTH * WIDTH)


@pytest.mark.parametrize("kind", ["booleans", "for each query", "-inf", "lowest"])
def test_what_may_attend_to_nothing(kind: str) -> None:
    made = agree(Attention(kind), ROWS)
    if kind != "lowest":  # which weighs all alike where none is higher
        assert not made[1].any()
    assert made[0].any()


def test_a_program_is_left_as_it_is() -> None:
    module = Attention("booleans")
    given = {name: torch.from_numpy(values[:2]) for name, values in ROWS.items()}
    shapes = {name: {0: torch.export.Dim("rows", min=1)} for name in given}
    program = torch.export.export(module.eval(), (), given, dynamic_shapes=shapes)
    code = program.graph_module.code
    net = read_net("nn", program)
    assert program.graph_module.code == code
    wanted = net.predict(ROWS)[0]
    np.testing.assert_allclose(
        onnxruntime.InferenceSession(net.model.SerializeToString()).run(None, dict(ROWS))[0], wanted, atol=1e-6
    )


@pytest.mark.parametrize(("nested", "frozen"), [(True, False), (False, True)])
def test_torchs_own_encoder(nested: bool, frozen: bool) -> None:
    class Encoder(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
            self.requires_grad_(not frozen)

        def forward(self, x: Any, there: Any) -> Any:
            return self.encoder(x.view(-1, LENGTH, WIDTH), src_key_padding_mask=there == 0).flatten(1)

    # evaluated, it answers NaN for what may attend to nothing
    assert np.isnan(agree(Encoder(), ROWS)[1]).all()


class Bert(nn.Module):  # type: ignore[misc]
    def __init__(self, attention: str, activation: str) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(3)
        config = transformers.BertConfig(
            vocab_size=200,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            hidden_act=activation,
            attn_implementation=attention,
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: Any, kinds: Any) -> Any:
        there = tokens != 0
        made = self.bert(input_ids=tokens, attention_mask=there.long(), token_type_ids=kinds)
        return made.last_hidden_state.flatten(1)


@pytest.mark.parametrize(("attention", "activation"), [("sdpa", "gelu"), ("eager", "gelu_new")])
def test_bert(attention: str, activation: str) -> None:
    tokens = RNG.integers(1, 200, (7, 9))
    tokens[0], tokens[1, 4:], tokens[2, :8], tokens[3, 1::2] = 0, 0, 0, 0  # none, the first, the last, every other
    module = Bert(attention, activation)
    made = agree(module, {"tokens": tokens, "kinds": RNG.integers(0, 2, tokens.shape)})
    assert np.isfinite(made).all()
