"""Operators of nets: products of matrices, norms, shares."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from tristage.serving.device.operators.registry import Node, Run, Unsupported, operator


@operator("MatMul")
def _mat_mul(node: Node) -> Run:
    return lambda a, b: torch.matmul(a, b)


@operator("Gemm")
def _gemm(node: Node) -> Run:
    alpha, beta = node.says.get("alpha", 1.0), node.says.get("beta", 1.0)
    turn_a, turn_b = node.says.get("transA", 0), node.says.get("transB", 0)

    def gemm(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        a, b = (a.T if turn_a else a), (b.T if turn_b else b)
        return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return gemm


@operator("Einsum")
def _einsum(node: Node) -> Run:
    equation = node.says["equation"].decode()
    return lambda *parts: torch.einsum(equation, *parts)


@operator("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Run:
    if node.opset < 13:
        raise Unsupported("Softmax of opsets before 13, which flattens")
    compute: Any = functional.softmax if node.operator == "Softmax" else functional.log_softmax
    axis = node.says.get("axis", -1)
    return lambda x: compute(x, dim=axis)


@operator("LayerNormalization")
def _layer_norm(node: Node) -> Run:
    if len(node.makes) > 1:
        raise Unsupported("LayerNormalization that answers its mean")
    axis, epsilon = node.says.get("axis", -1), node.says.get("epsilon", 1e-5)

    def norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        shape = x.shape[axis:]
        made = functional.layer_norm(x, shape, None, None, epsilon) * scale
        return made if bias is None else made + bias

    return norm


@operator("BatchNormalization")
def _batch_norm(node: Node) -> Run:
    if node.says.get("training_mode", 0):
        raise Unsupported("BatchNormalization that trains")
    epsilon = node.says.get("epsilon", 1e-5)
    return lambda x, scale, bias, mean, variance: functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


@operator("LpNormalization")
def _lp_norm(node: Node) -> Run:
    axis, p = node.says.get("axis", -1), node.says.get("p", 2)
    return lambda x: functional.normalize(x, p=p, dim=axis, eps=0.0)
