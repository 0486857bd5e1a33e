"""Split computing: the head on the device, the latent on the wire as an entropy-coded packet, the tail on a server.

Flow: `artifact` (what a bundle holds) and `tables` → `codec` → `packet` → `protocol` → `server` and `client` → `bench`.
"""
