"""To and from other libraries: PyTorch's weights (:mod:`.torch`), ONNX files (:mod:`.onnx`).

Both lay images out as NCHW; here they are NHWC.
"""
