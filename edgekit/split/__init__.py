"""Split computing: the head on the device, the latent on the wire as an entropy-coded packet, the tail on a server.

`artifact` says what a bundle holds, `tables` how likely symbols are; `codec` and `packet` are the wire. On the server
`models` and `batching` → `repository` → `app` → `server`; on the device `device`, `remote` and `policy` → `client`;
`bench` runs both over a `link`.
"""
