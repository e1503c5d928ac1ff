#!/bin/sh
# onnx 1.23.2, onnxruntime 1.32.0: a Conv whose weights have another number of input channels than its input is found when the model runs only.
#
# Expected: all shapes are static, so `onnx.checker.check_model(model, full_check=True)`, whose full check infers shapes, or at least
# `InferenceSession(...)` refuses an input of 48 channels for weights of 5.
#
# Observed: the checker accepts the model and so does the session; `run` raises `Fail`, which derives from Exception alone, not from RuntimeError.
#
#   checker: accepted
#   session: accepted
#   run: Fail: Input channels C is not equal to kernel channels * group. C: 48 kernel channels: 5 group: 1
#
# Affected: programs that check weights files when they open them, and those that catch ValueError and RuntimeError.
# Workaround: run the session once, or compare shapes; catch Exception around `run`.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0
"$folder/env/bin/python" - 2>/dev/null <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

weights = numpy_helper.from_array(np.zeros((8, 5, 3, 3), np.float32), "w")
node = helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 48, 8, 8])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 8, 8])
graph = helper.make_graph([node], "g", [x], [y], [weights])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
print("checker: accepted")
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print("session: accepted")
try:
    session.run(None, {"x": np.zeros((1, 48, 8, 8), np.float32)})
except Exception as error:
    print(f"run: {type(error).__name__}: {str(error).rpartition('Status Message: ')[2]}")
    assert not isinstance(error, RuntimeError), "the behaviour has changed"
    assert "Input channels C" in str(error)
else:
    raise SystemExit("the behaviour has changed")
PY
