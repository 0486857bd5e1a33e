"""An SSH server on loopback that runs real commands, with keys, a home and a PATH of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import asyncssh


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Server:
    """Serves `folder`/home to whoever has the key `folder`/client, on a port that stays when it is started again."""

    def __init__(self, folder: Path, password_only: bool = False) -> None:
        self.folder, self.port, self.password_only = folder, 0, password_only
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.env = {"HOME": str(self.home), "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        script(folder / "bin" / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        client = asyncssh.generate_private_key("ssh-ed25519")
        client.write_private_key(folder / "client")
        client.write_public_key(folder / "client.pub")
        (folder / "client").chmod(0o600)
        self._connections: list[asyncssh.SSHServerConnection] = []
        self.start()

    @property
    def jobs(self) -> Path:
        return self.home / ".cache" / "edgekit" / "device" / "jobs"

    @property
    def files(self) -> Path:
        return self.jobs.parent / "files"

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port = self._listener.get_port()

    def kill(self) -> None:
        """End as a machine does whose network fails: all connections break off, the processes go on."""
        asyncio.run_coroutine_threadsafe(self._abort(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _abort(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.abort()
        self._connections.clear()
        await asyncio.sleep(0.05)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _listen(self) -> asyncssh.SSHAcceptor:
        server = self

        class Login(asyncssh.SSHServer):
            def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
                server._connections.append(connection)

            def password_auth_supported(self) -> bool:
                return server.password_only

        return await asyncssh.listen(
            "127.0.0.1",
            self.port,
            reuse_address=True,
            server_factory=Login,
            server_host_keys=[self.host_key],
            authorized_client_keys=None if self.password_only else str(self.folder / "client.pub"),
            process_factory=self._run,
            encoding=None,
        )

    async def _run(self, process: asyncssh.SSHServerProcess) -> None:
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_shell(
            process.command, stdin=pipe, stdout=pipe, stderr=pipe, env=self.env, cwd=self.home
        )
        feeding = asyncio.create_task(_pump(process.stdin, child.stdin))
        feeding.add_done_callback(lambda _: child.stdin.close())
        try:
            await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
            process.exit(await child.wait())
        finally:
            feeding.cancel()
            for stream in (1, 2):  # so that whoever writes on learns that nobody listens
                child._transport.get_pipe_transport(stream).close()


async def _pump(source: Any, sink: Any) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionError, asyncssh.Error):
        while content := await source.read(1 << 16):
            sink.write(content)
            await sink.drain()


def client_path(folder: Path, server: Server) -> str:
    """A PATH whose `ssh` knows the server's host key and the client's key, and nothing of this machine's own."""
    known = folder / "known_hosts"
    public = server.host_key.export_public_key().decode().strip()
    known.write_text(f"[127.0.0.1]:{server.port} {public}\n")
    config = folder / "ssh_config"
    config.write_text(
        f"Host *\n UserKnownHostsFile {known}\n GlobalKnownHostsFile none\n"
        f" IdentityFile {server.folder / 'client'}\n IdentitiesOnly yes\n IdentityAgent none\n"
    )
    script(folder / "client-bin" / "ssh", f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    return f"{folder / 'client-bin'}:{os.environ['PATH']}"
