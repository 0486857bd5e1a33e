"""Post-training quantisation on an ONNX graph: what a target wants, ranges, weights, and the file that holds them.

`schemes` says what a target wants, `graph` what of a model that concerns, `ranges` and `calibrate` find the range of
every tensor, `equalise` and `walk` change weights, `write` makes the file and `check` holds it against the scheme.
"""
