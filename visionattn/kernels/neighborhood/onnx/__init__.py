"""ONNX implementations of neighborhood attention; imported only when ONNX files are written."""
