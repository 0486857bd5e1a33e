"""The transport form of an ONNX file, `.ekz`, for updates over the air: whole, or as the difference to an earlier file.

`unpack.py` holds the form's description and its decoder, which runs by itself on a device.
"""
