"""Weights of Inception-v3 from the frozen TensorFlow graph it was released as.

Reads `classify_image_graph_def.pb` without TensorFlow or protobuf. A frozen graph keeps its weights
in nodes of type Const; the numbers of the fields are those of TensorFlow's graph.proto,
node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

STEM = {
    "Conv2d_1a_3x3": "conv",
    "Conv2d_2a_3x3": "conv_1",
    "Conv2d_2b_3x3": "conv_2",
    "Conv2d_3b_1x1": "conv_3",
    "Conv2d_4a_3x3": "conv_4",
}
MIXED_35 = {
    "branch1x1": "conv",
    "branch5x5_1": "tower/conv",
    "branch5x5_2": "tower/conv_1",
    "branch3x3dbl_1": "tower_1/conv",
    "branch3x3dbl_2": "tower_1/conv_1",
    "branch3x3dbl_3": "tower_1/conv_2",
    "branch_pool": "tower_2/conv",
}
REDUCE_35 = {
    "branch3x3": "conv",
    "branch3x3dbl_1": "tower/conv",
    "branch3x3dbl_2": "tower/conv_1",
    "branch3x3dbl_3": "tower/conv_2",
}
MIXED_17 = {
    "branch1x1": "conv",
    "branch7x7_1": "tower/conv",
    "branch7x7_2": "tower/conv_1",
    "branch7x7_3": "tower/conv_2",
    "branch7x7dbl_1": "tower_1/conv",
    "branch7x7dbl_2": "tower_1/conv_1",
    "branch7x7dbl_3": "tower_1/conv_2",
    "branch7x7dbl_4": "tower_1/conv_3",
    "branch7x7dbl_5": "tower_1/conv_4",
    "branch_pool": "tower_2/conv",
}
REDUCE_17 = {
    "branch3x3_1": "tower/conv",
    "branch3x3_2": "tower/conv_1",
    "branch7x7x3_1": "tower_1/conv",
    "branch7x7x3_2": "tower_1/conv_1",
    "branch7x7x3_3": "tower_1/conv_2",
    "branch7x7x3_4": "tower_1/conv_3",
}
MIXED_8 = {
    "branch1x1": "conv",
    "branch3x3_1": "tower/conv",
    "branch3x3_2a": "tower/mixed/conv",
    "branch3x3_2b": "tower/mixed/conv_1",
    "branch3x3dbl_1": "tower_1/conv",
    "branch3x3dbl_2": "tower_1/conv_1",
    "branch3x3dbl_3a": "tower_1/mixed/conv",
    "branch3x3dbl_3b": "tower_1/mixed/conv_1",
    "branch_pool": "tower_2/conv",
}
BLOCKS = {
    "Mixed_5b": ("mixed", MIXED_35),
    "Mixed_5c": ("mixed_1", MIXED_35),
    "Mixed_5d": ("mixed_2", MIXED_35),
    "Mixed_6a": ("mixed_3", REDUCE_35),
    "Mixed_6b": ("mixed_4", MIXED_17),
    "Mixed_6c": ("mixed_5", MIXED_17),
    "Mixed_6d": ("mixed_6", MIXED_17),
    "Mixed_6e": ("mixed_7", MIXED_17),
    "Mixed_7a": ("mixed_8", REDUCE_17),
    "Mixed_7b": ("mixed_9", MIXED_8),
    "Mixed_7c": ("mixed_10", MIXED_8),
}
SCOPES = STEM | {
    f"{block}.{branch}": f"{scope}/{convolution}"
    for block, (scope, branches) in BLOCKS.items()
    for branch, convolution in branches.items()
}
PARAMETERS = {
    "conv.weight": "conv2d_params",
    "bn.weight": "batchnorm/gamma",
    "bn.bias": "batchnorm/beta",
    "bn.running_mean": "batchnorm/moving_mean",
    "bn.running_var": "batchnorm/moving_variance",
}
NODES = {
    f"{module}.{key}": f"{scope}/{node}"
    for module, scope in SCOPES.items()
    for key, node in PARAMETERS.items()
} | {"fc.weight": "softmax/weights", "fc.bias": "softmax/biases"}

FLOAT = 1  # DT_FLOAT of types.proto


def read_graph(path: Path) -> dict[str, Tensor]:
    """Return the weights in a frozen graph, as far as it has them.

    Args:
        path: The graph, a serialised GraphDef.

    Returns:
        By the names of `networks.inception`, in torch's layout: convolutions (out, in, H, W),
        the last layer (classes, 2048). Other nodes of the graph are passed over.

    Raises:
        ValueError: If the file is no GraphDef.
    """
    constants = dict(_constants(memoryview(path.read_bytes())))
    found = {key: constants[node] for key, node in NODES.items() if node in constants}
    return {key: _torch_layout(value) for key, value in found.items()}


def _torch_layout(value: Tensor) -> Tensor:
    """Turn (H, W, in, out) into (out, in, H, W), (in, out) into (out, in)."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(value.ndim)
    return value if order is None else value.permute(order).contiguous()


def _constants(graph: memoryview) -> Iterator[tuple[str, Tensor]]:
    """Yield name and value of each float32 constant of a GraphDef."""
    for node in _messages(graph, 1):
        if _text(node, 2) != "Const":
            continue
        for attribute in _messages(node, 5):
            if _text(attribute, 1) != "value":
                continue
            for value in _messages(attribute, 2):
                for tensor in _messages(value, 8):
                    if dict(_fields(tensor)).get(1) == FLOAT:
                        yield _text(node, 1), _tensor(tensor)


def _tensor(message: memoryview) -> Tensor:
    """Read a TensorProto: raw bytes, or a list whose last value stands for all that follow."""
    shape = [
        int(dict(_fields(dimension)).get(1, 0))
        for dimensions in _messages(message, 2)
        for dimension in _messages(dimensions, 2)
    ]
    content = b"".join(_messages(message, 4)) or b"".join(_messages(message, 5))
    if len(content) % 4:
        raise ValueError(f"a constant of {len(content)} bytes is not float32")
    values = np.frombuffer(content, "<f4").astype(np.float32)
    missing = math.prod(shape) - len(values)
    if missing < 0 or (missing and not len(values)):
        raise ValueError(f"a constant of shape {shape} has {len(values)} values")
    if missing:
        values = np.pad(values, (0, missing), "edge")
    return torch.from_numpy(values.reshape(shape))


def _text(message: memoryview, number: int) -> str:
    """Return a string field; empty when it is absent."""
    return b"".join(_messages(message, number)).decode()


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the contents of all fields with this number."""
    for key, value in _fields(message):
        if key == number:
            if isinstance(value, int):
                raise ValueError(f"field {number} is a number where a message belongs")
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and content of each field: an int (wire type 0) or bytes (1, 2, 5)."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            content, position = _varint(message, position)
            yield number, content
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is not in use")
        if number == 0 or position + length > len(message):
            raise ValueError("a field is longer than its message")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number that starts at a position, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("a number is longer than its message")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number has more than ten bytes")
