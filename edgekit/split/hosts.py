"""Which addresses are heard on this machine alone."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host's name or address stands for this machine, by itself and without asking anybody."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
