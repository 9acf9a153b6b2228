#!/usr/bin/env python3
"""Makes testdata/onnx: small networks with random weights, single operators, and what onnxruntime computes with them.

    pip install numpy onnx onnxruntime nudenet && make_onnx.py [--out testdata/onnx]

`networks.json` names the networks; their inputs and outputs are float32 in the .bin files. `operators.json` has one model for
each case, in base64. `detections.json` is what the public package nudenet makes of pictures with the small detector.
"""

import argparse
import base64
import hashlib
import json
import pathlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(7)


class Net:
    """A graph under construction."""

    def __init__(self, name, opset):
        self.name, self.opset, self.nodes, self.weights, self.count = name, opset, [], [], 0

    def weight(self, array, dtype=np.float32):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def ints(self, *values):
        return self.weight(values, np.int64)

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [f"{kind.lower()}{self.count}_{i}" for i in range(outputs)]
        self.count += 1
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"/{kind}_{self.count}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x, channels, out, k=3, stride=1, groups=1, bias=True, silu=True, shift=0.0, **attributes):
        w = self.weight(rng.normal(0, 1.4 / np.sqrt(k * k * channels / groups), (out, channels // groups, k, k)))
        inputs = [x, w] + ([self.weight(rng.normal(shift, 0.3, out))] if bias else [])
        y = self.op("Conv", *inputs, kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4, group=groups, **attributes)
        return self.op("Mul", y, self.op("Sigmoid", y)) if silu else y

    def norm(self, x, c):
        return self.op("BatchNormalization", x, self.weight(rng.uniform(0.5, 1.5, c)), self.weight(rng.normal(0, 0.3, c)),
                       self.weight(rng.normal(0, 0.3, c)), self.weight(rng.uniform(0.5, 2, c)), epsilon=1e-3)

    def model(self, inputs, outputs, metadata=None):
        value = lambda name, dims: helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        graph = helper.make_graph(self.nodes, self.name, [value(*p) for p in inputs], [value(*p) for p in outputs], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="make_onnx", ir_version=8)
        for key, text in (metadata or {}).items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, text
        onnx.checker.check_model(model, full_check=True)
        return model


def yolo(labels):
    """The parts of YOLOv8: strided convolutions, split blocks, pooling, upsampling, and a head with anchors from shapes."""
    n = Net("yolo", 17)
    a = n.conv("images", 3, 8, stride=2)
    b = n.conv(a, 8, 16, stride=2)
    left, right = n.op("Split", b, n.ints(8, 8), outputs=2, axis=1)
    b = n.conv(n.op("Concat", left, right, n.op("Add", right, n.conv(right, 8, 8)), axis=1), 24, 16, k=1)
    c = n.conv(b, 16, 32, stride=2)
    small = n.conv(c, 32, 8, k=1)
    pooled = n.op("MaxPool", small, kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1])
    c = n.conv(n.op("Concat", small, pooled, n.op("MaxPool", pooled, kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]), axis=1), 24, 16, k=1)
    up = n.op("Resize", c, "", n.weight([1, 1, 2, 2]), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    b = n.conv(n.op("Concat", up, b, axis=1), 32, 16)
    flat, anchors, strides = [], [], []
    for level, channels, stride in ((b, 16, 4), (c, 16, 8)):
        boxes = n.conv(n.conv(level, channels, 16), 16, 64, k=1, silu=False)
        classes = n.conv(n.conv(level, channels, 16), 16, len(labels), k=1, silu=False, shift=-1.5)
        both = n.op("Concat", boxes, classes, axis=1)
        shape = n.op("Shape", both)
        at = lambda i: n.op("Gather", shape, n.weight(i, np.int64), axis=0)
        batch, height, width = at(0), at(2), at(3)
        target = n.op("Concat", n.op("Unsqueeze", batch, n.ints(0)), n.ints(64 + len(labels)), n.ints(-1), axis=0)
        flat.append(n.op("Reshape", both, target))
        line = lambda size: n.op("Add", n.op("Range", n.weight(0.0), n.op("Cast", size, to=1), n.weight(1.0)), n.weight(0.5))
        across, down = line(width), line(height)
        grid = n.op("Concat", n.op("Shape", down), n.op("Shape", across), axis=0)
        y = n.op("Expand", n.op("Reshape", down, n.ints(-1, 1)), grid)
        x = n.op("Expand", n.op("Reshape", across, n.ints(1, -1)), grid)
        points = n.op("Concat", n.op("Unsqueeze", x, n.ints(-1)), n.op("Unsqueeze", y, n.ints(-1)), axis=-1)
        anchors.append(n.op("Reshape", points, n.ints(-1, 2)))
        area = n.op("Concat", n.op("Unsqueeze", n.op("Mul", height, width), n.ints(0)), n.ints(1), axis=0)
        strides.append(n.op("ConstantOfShape", area, value=helper.make_tensor("v", TensorProto.FLOAT, [1], [stride])))
    boxes, classes = n.op("Split", n.op("Concat", *flat, axis=2), n.ints(64, len(labels)), outputs=2, axis=1)
    shape = n.op("Shape", boxes)
    sides = n.op("Concat", n.op("Slice", shape, n.ints(0), n.ints(1)), n.ints(4, 16), n.op("Slice", shape, n.ints(2), n.ints(2**63 - 1)), axis=0)
    share = n.op("Softmax", n.op("Transpose", n.op("Reshape", boxes, sides), perm=[0, 2, 1, 3]), axis=1)
    reach = n.op("Conv", share, n.weight(np.arange(16).reshape(1, 16, 1, 1)))
    reach = n.op("Reshape", reach, n.op("Concat", n.op("Slice", shape, n.ints(0), n.ints(1)), n.ints(4), n.ints(-1), axis=0))
    centre = n.op("Unsqueeze", n.op("Transpose", n.op("Concat", *anchors, axis=0), perm=[1, 0]), n.ints(0))
    low = n.op("Sub", centre, n.op("Slice", reach, n.ints(0), n.ints(2), n.ints(1)))
    high = n.op("Add", centre, n.op("Slice", reach, n.ints(2), n.ints(4), n.ints(1)))
    box = n.op("Concat", n.op("Div", n.op("Add", low, high), n.weight(2.0)), n.op("Sub", high, low), axis=1)
    scaled = n.op("Mul", box, n.op("Transpose", n.op("Concat", *strides, axis=0), perm=[1, 0]))
    n.op("Concat", scaled, n.op("Sigmoid", classes), axis=1)
    n.nodes[-1].output[0] = "output0"
    names = "{" + ", ".join(f"{i}: '{label}'" for i, label in enumerate(labels)) + "}"
    return n.model([("images", ["batch", 3, "height", "width"])], [("output0", ["batch", 4 + len(labels), "places"])],
                   {"names": names, "imgsz": "[64, 64]"})


def classifier():
    """The parts of ResNet, MobileNet and EfficientNet: normalisations, depthwise and grouped kernels, gates, pools."""
    n = Net("classifier", 14)
    x = n.op("Relu", n.norm(n.conv("pixels", 3, 12, stride=2, bias=False, silu=False), 12))
    x = n.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    deep = n.op("Clip", n.norm(n.conv(x, 12, 12, groups=12, silu=False), 12), n.weight(0.0), n.weight(6.0))
    x = n.op("Add", x, n.norm(n.conv(deep, 12, 12, k=1, bias=False, silu=False), 12))
    gate = n.op("HardSigmoid", n.conv(n.op("GlobalAveragePool", x), 12, 12, k=1, silu=False), alpha=1 / 6)
    x = n.op("Mul", x, gate)
    x = n.op("HardSwish", n.conv(x, 12, 18, groups=3, silu=False))
    x = n.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = n.op("Flatten", n.op("ReduceMean", x, axes=[2, 3], keepdims=1))
    x = n.op("Gemm", x, n.weight(rng.normal(0, 0.3, (5, 18))), n.weight(rng.normal(0, 0.3, 5)), transB=1)
    n.nodes[-1].output[0] = "logits"
    return n.model([("pixels", ["batch", 3, 32, 32])], [("logits", ["batch", 5])])


def transformer():
    """The parts of ViT: patches, a class token, layer normalisation written out, attention, GELU written out."""
    n = Net("transformer", 16)
    x = n.op("Conv", "pixels", n.weight(rng.normal(0, 0.1, (16, 3, 8, 8))), n.weight(rng.normal(0, 0.1, 16)), strides=[8, 8], kernel_shape=[8, 8])
    shape = n.op("Shape", x)
    batch = n.op("Unsqueeze", n.op("Gather", shape, n.weight(0, np.int64)), n.ints(0))
    x = n.op("Transpose", n.op("Reshape", x, n.op("Concat", batch, n.ints(16, -1), axis=0)), perm=[0, 2, 1])
    token = n.op("Expand", n.weight(rng.normal(0, 1, (1, 1, 16))), n.op("Concat", batch, n.ints(1, 16), axis=0))
    x = n.op("Add", n.op("Concat", token, x, axis=1), n.weight(rng.normal(0, 0.3, (1, 17, 16))))

    def norm(x):
        centred = n.op("Sub", x, n.op("ReduceMean", x, axes=[-1]))
        variance = n.op("ReduceMean", n.op("Pow", centred, n.weight(2.0)), axes=[-1])
        y = n.op("Div", centred, n.op("Sqrt", n.op("Add", variance, n.weight(1e-5))))
        return n.op("Add", n.op("Mul", y, n.weight(rng.uniform(0.5, 1.5, 16))), n.weight(rng.normal(0, 0.2, 16)))

    def linear(x, i, o):
        return n.op("Add", n.op("MatMul", x, n.weight(rng.normal(0, 0.3, (i, o)))), n.weight(rng.normal(0, 0.1, o)))

    def heads(x, perm):
        return n.op("Transpose", n.op("Reshape", x, n.ints(0, 0, 2, 8)), perm=perm)

    y = norm(x)
    q, k, v = (heads(linear(y, 16, 16), p) for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = n.op("Softmax", n.op("Mul", n.op("MatMul", q, k), n.weight(8**-0.5)), axis=-1)
    mixed = n.op("Reshape", n.op("Transpose", n.op("MatMul", scores, v), perm=[0, 2, 1, 3]), n.ints(0, 0, 16))
    x = n.op("Add", x, linear(mixed, 16, 16))
    y = linear(norm(x), 16, 32)
    y = n.op("Mul", n.op("Mul", y, n.op("Add", n.op("Erf", n.op("Div", y, n.weight(2**0.5))), n.weight(1.0))), n.weight(0.5))
    x = n.op("Add", x, linear(y, 32, 16))
    linear(n.op("Gather", norm(x), n.weight(0, np.int64), axis=1), 16, 4)
    n.nodes[-1].output[0] = "logits"
    return n.model([("pixels", ["batch", 3, 32, 32])], [("logits", ["batch", 4])])


def cases():
    """Single operators with the settings in which exporters differ: (name, opset, operator, inputs, attributes, outputs)."""
    r = lambda *dims: rng.normal(0, 1, dims).astype(np.float32)
    i = lambda *v: np.array(v, np.int64)
    f = lambda *v: np.array(v, np.float32)
    x = ("x", r(2, 4, 7, 5))
    flat = ("x", r(3, 4, 6))
    yield "conv dilated, strided, uneven pads", 17, "Conv", [x, r(4, 4, 3, 2), r(4)], dict(dilations=[2, 1], strides=[1, 2], pads=[2, 0, 1, 1])
    yield "conv same upper", 17, "Conv", [x, r(4, 4, 3, 3)], dict(auto_pad="SAME_UPPER", strides=[2, 2])
    yield "conv same lower", 17, "Conv", [x, r(4, 4, 2, 4)], dict(auto_pad="SAME_LOWER")
    yield "conv valid", 17, "Conv", [x, r(4, 4, 2, 4)], dict(auto_pad="VALID")
    yield "conv depthwise, strided", 17, "Conv", [x, r(4, 1, 3, 3), r(4)], dict(group=4, strides=[2, 1], pads=[1, 1, 1, 1])
    yield "conv depthwise, dilated", 17, "Conv", [x, r(4, 1, 3, 2)], dict(group=4, dilations=[1, 2])
    yield "conv with a multiplier", 17, "Conv", [x, r(8, 1, 3, 3), r(8)], dict(group=4, pads=[1, 1, 1, 1])
    yield "conv 1 by 1, strided", 17, "Conv", [x, r(4, 4, 1, 1)], dict(strides=[2, 2])
    yield "conv 1 by 1, padded", 17, "Conv", [x, r(4, 4, 1, 1), r(4)], dict(pads=[1, 0, 0, 1])
    yield "max pool, hanging over", 17, "MaxPool", [x], dict(kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)
    yield "max pool, dilated", 17, "MaxPool", [x], dict(kernel_shape=[2, 2], dilations=[3, 2], pads=[1, 1, 0, 0])
    yield "max pool same", 17, "MaxPool", [x], dict(kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    yield "average pool", 17, "AveragePool", [x], dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    yield "average pool, padding counted", 17, "AveragePool", [x], dict(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    yield "average pool, hanging over", 17, "AveragePool", [x], dict(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    yield "global max pool", 17, "GlobalMaxPool", [x], {}
    for mode in ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"):
        for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
            yield f"resize {mode} {rounding}", 13, "Resize", [x, f(), f(1, 1, 1.7, 0.6)], \
                dict(mode="nearest", coordinate_transformation_mode=mode, nearest_mode=rounding)
    yield "resize to a size", 13, "Resize", [x, f(), f(), i(2, 4, 11, 4)], dict(mode="nearest")
    yield "resize of opset 10", 10, "Resize", [x, f(1, 1, 2, 3)], dict(mode="nearest")
    yield "upsample of opset 9", 9, "Upsample", [x, f(1, 1, 2, 2)], dict(mode="nearest")
    yield "upsample of opset 7", 7, "Upsample", [x], dict(mode="nearest", scales=[1.0, 1.0, 2.0, 3.0])
    yield "softmax", 13, "Softmax", [flat], dict(axis=1)
    yield "softmax of opset 11", 11, "Softmax", [flat], dict(axis=1)
    yield "log softmax", 13, "LogSoftmax", [flat], {}
    yield "matrices, one for all", 13, "MatMul", [flat, r(6, 5)], {}
    yield "matrices, batches", 13, "MatMul", [("x", r(2, 1, 3, 4)), ("y", r(5, 4, 2))], {}
    yield "matrix and vector", 13, "MatMul", [flat, r(6)], {}
    yield "vector and matrix", 13, "MatMul", [("x", r(4)), r(3, 4, 2)], {}
    yield "gemm", 13, "Gemm", [("x", r(4, 3)), r(5, 4), r(3, 5)], dict(transA=1, transB=1, alpha=0.5, beta=2.0)
    yield "gemm with a bias column", 13, "Gemm", [("x", r(3, 4)), r(4, 5), r(3, 1)], {}
    yield "batch normalisation", 15, "BatchNormalization", [x, r(4), r(4), r(4), np.abs(r(4))], dict(epsilon=0.01)
    yield "layer normalisation", 17, "LayerNormalization", [flat, r(4, 6), r(4, 6)], dict(axis=1)
    yield "mean of axes", 18, "ReduceMean", [x, i(-1, 1)], dict(keepdims=0)
    yield "mean of axes by attribute", 13, "ReduceMean", [x], dict(axes=[2])
    yield "sum", 13, "ReduceSum", [x], {}
    yield "maximum of an axis", 13, "ReduceMax", [x], dict(axes=[1], keepdims=0)
    yield "slice of opset 9", 9, "Slice", [x], dict(axes=[1, 3], starts=[-4, 1], ends=[2**31 - 1, -1])
    yield "slice with steps", 13, "Slice", [x, i(0, 2), i(100, 1000), i(2, 1), i(3, 1)], {}
    yield "split evenly", 13, "Split", [x], dict(axis=1), 2
    yield "split of opset 11", 11, "Split", [x], dict(axis=2, split=[3, 4]), 2
    yield "split by number", 18, "Split", [x], dict(axis=2, num_outputs=3), 3
    yield "gather several", 13, "Gather", [x, np.array([[0, -1], [2, 1]])], dict(axis=1)
    yield "gather the last", 13, "Gather", [x, np.array(-1)], dict(axis=2)
    yield "transpose", 13, "Transpose", [x], {}
    yield "flatten", 13, "Flatten", [x], dict(axis=3)
    yield "reshape", 13, "Reshape", [x, i(0, -1, 5)], {}
    yield "squeeze", 13, "Squeeze", [("x", r(1, 3, 1))], {}
    yield "squeeze of opset 11", 11, "Squeeze", [("x", r(1, 3, 1))], dict(axes=[-1])
    yield "unsqueeze", 13, "Unsqueeze", [flat, i(0, -1)], {}
    yield "pad", 13, "Pad", [x, i(0, 1, 0, 2, 0, 0, 3, 0), f(0.5).reshape(())], {}
    yield "expand", 13, "Expand", [("x", r(3, 1, 2)), i(2, 1, 4, 2)], {}
    yield "concat along the last axis", 13, "Concat", [("x", r(2, 3)), ("y", r(2, 2)), r(2, 1)], dict(axis=-1)
    yield "add, broadcast both ways", 13, "Add", [("x", r(4, 1, 3)), ("y", r(2, 1))], {}
    yield "divide by channels", 13, "Div", [x, np.abs(r(4, 1, 1)) + 1], {}
    yield "minimum of three", 13, "Min", [("x", r(3)), ("y", r(2, 3)), f(0.1)], {}
    yield "power", 13, "Pow", [("x", np.abs(r(7))), f(1.7)], {}
    yield "square", 13, "Pow", [flat, f(2.0)], {}
    yield "clip of opset 6", 10, "Clip", [flat], dict(min=-0.5, max=0.7)
    yield "clip below", 13, "Clip", [flat, f(0.2).reshape(())], {}
    for op, attributes in (("LeakyRelu", dict(alpha=0.2)), ("Elu", dict(alpha=0.7)), ("HardSigmoid", {}), ("Softplus", {}), ("Tanh", {}),
                           ("Exp", {}), ("Neg", {}), ("Abs", {}), ("Erf", {}), ("Floor", {}), ("Sigmoid", {}), ("Relu", {}), ("Reciprocal", {})):
        yield op, 13, op, [("x", 3 * r(2, 9))], attributes
    yield "gelu", 20, "Gelu", [flat], {}
    yield "gelu, approximate", 20, "Gelu", [flat], dict(approximate="tanh")
    yield "mish", 18, "Mish", [flat], {}
    yield "prelu", 13, "PRelu", [x, r(4, 1, 1)], {}
    yield "half precision", 13, "Cast", [flat], dict(to=TensorProto.FLOAT)


def numbers(array):
    return {"dims": list(array.shape), "values": base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()}


def single(name, opset, op, inputs, attributes, outputs=1):
    graph_inputs, weights, names, feed = [], [], [], {}
    for k, given in enumerate(inputs):
        if isinstance(given, tuple):
            graph_inputs.append(helper.make_tensor_value_info(given[0], TensorProto.FLOAT, [None] * given[1].ndim))
            feed[given[0]] = given[1]
            names.append(given[0])
        elif given.size == 0:
            names.append("")
        else:
            names.append(f"w{k}")
            weights.append(numpy_helper.from_array(given, f"w{k}"))
    results = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names, results, name="it", **attributes)
    graph = helper.make_graph([node], "case", graph_inputs, [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in results], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    content = model.SerializeToString()
    y = onnxruntime.InferenceSession(content).run(None, feed)
    return {"name": name, "model": base64.b64encode(content).decode(), "inputs": [numbers(v) for v in feed.values()], "outputs": [numbers(v) for v in y]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "testdata/onnx")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    import nudenet.nudenet as package

    labels = package.__dict__["__labels"]
    networks = []
    for name, model, dims in (("yolo", yolo(labels), (2, 3, 64, 96)), ("classifier", classifier(), (3, 3, 32, 32)), ("transformer", transformer(), (2, 3, 32, 32))):
        onnx.save(model, out / f"{name}.onnx")
        x = rng.integers(0, 256, dims).astype(np.float32) / 255
        y = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {model.graph.input[0].name: x})[0]
        (x * 255).astype(np.uint8).tofile(out / f"{name}.input.bin")
        y.tofile(out / f"{name}.output.bin")
        networks.append({"name": name, "input": list(dims), "output": list(y.shape)})
    (out / "networks.json").write_text(json.dumps(networks, indent=1) + "\n")
    (out / "operators.json").write_text(json.dumps([single(*c) for c in cases()], separators=(",", ":")).replace('{"name"', '\n{"name"') + "\n")

    detector = package.NudeDetector(str(out / "yolo.onnx"), inference_resolution=64)
    found = []
    for width, height in ((64, 64), (48, 80), (150, 20), (128, 128), (5, 9), (1, 70), (97, 333)):
        across, down = np.meshgrid(np.arange(width), np.arange(height))
        # A pattern that the test draws again; files hold blue, green, red.
        rgb = np.stack([(across * 7 + down * 3) % 256, (across * down) % 256, (across * across // 3 + down * 11) % 256], -1).astype(np.uint8)
        bgr = rgb[..., ::-1].copy()
        blob = package._read_image(bgr, 64)[0][0].transpose(1, 2, 0).astype("<f4")
        found.append({"width": width, "height": height, "blob": hashlib.sha256(blob.tobytes()).hexdigest(), "detections": detector.detect(bgr)})
    (out / "detections.json").write_text(json.dumps(found).replace('{"width"', '\n{"width"') + "\n")
    print({c["width"]: len(c["detections"]) for c in found})


if __name__ == "__main__":
    main()
