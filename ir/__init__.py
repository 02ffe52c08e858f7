"""The intermediate representation: types, graphs, operators, text and msgpack forms."""

if __name__ != "flowgrad.ir":
    raise ImportError(f"import flowgrad.ir, not {__name__}")

OPSET = 28
"""The opset of the default ONNX domain whose meaning the operators of a graph have."""
