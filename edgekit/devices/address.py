"""Where a device is: ssh://user@host:port, or a line of a fleet file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from edgekit.errors import BadInput
from edgekit.files import read_toml

FORM = "ssh://[USER@]HOST[:PORT][?python=PATH]"
# Nothing here can begin with "-", and so be taken for an option of ssh.
PATTERN = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?/?(?:\?(?P<query>.*))?"
)
PYTHON = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./+-]*")


@dataclasses.dataclass(frozen=True)
class Address:
    """A device that OpenSSH can reach.

    Attributes:
        name: what tables call it: its name in the fleet file, else its host.
        host: a name, an address, or an alias of ~/.ssh/config.
        user, port: None leaves them to ssh.
        python: the interpreter there, a path or a name.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"

    def __str__(self) -> str:
        """The address without its name, as it can be given again."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"ssh://{user}{host}{port}"

    @property
    def options(self) -> tuple[str, ...]:
        """What ssh is given, up to the host."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)

    @property
    def command(self) -> str:
        """The ssh command that a user would type."""
        return " ".join(("ssh", *(("-p", str(self.port)) if self.port else ()), self.login))

    @property
    def login(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host


def parse_address(text: str, name: str | None = None) -> Address:
    """Raises BadInput where `text` is not FORM."""
    found = PATTERN.fullmatch(text)
    if found is None:
        raise BadInput(f"{text!r} is no device; write {FORM}, e.g. ssh://pi@raspberrypi.local")
    query = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    python = query.pop("python", "python3")
    if query:
        raise BadInput(f"{text!r}: {next(iter(query))} is not known here; write {FORM}")
    if not PYTHON.fullmatch(python):
        raise BadInput(f"{text!r}: python is the path of an interpreter, e.g. /home/pi/venv/bin/python3")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise BadInput(f"{text!r}: a port is a number from 1 to 65535")
    host = found["ipv6"] or found["host"]
    return Address(name or host, host, found["user"], port, python)


def read_fleet(path: Path) -> list[Address]:
    """The devices of a TOML file: `name = "ssh://…"`, a line each.

    Raises:
        BadInput: no such file, no TOML, or a value that is no address.
    """
    table: dict[str, Any] = read_toml(path)
    if not table or not all(isinstance(value, str) for value in table.values()):
        raise BadInput(f'{path}: write a line for each device: NAME = "{FORM}"')
    return [parse_address(value, name) for name, value in table.items()]


def addresses(devices: Sequence[str], fleet: Path | None) -> list[Address]:
    """What --device and --fleet name, each device once.

    Raises:
        BadInput: no address, or two devices of one name or address.
    """
    found = [*map(parse_address, devices), *(read_fleet(fleet) if fleet else [])]
    for index, address in enumerate(found):
        if any(str(address) == str(other) for other in found[:index]):
            raise BadInput(f"{address} is named twice; two runs on one device would disturb each other")
    names = [address.name for address in found]
    return [
        dataclasses.replace(address, name=str(address)) if names.count(address.name) > 1 else address
        for address in found
    ]
