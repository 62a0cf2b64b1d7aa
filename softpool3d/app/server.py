"""Serves the page on this machine, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from softpool3d.errors import UsageError, WorkError, os_reason

LIMIT = "2gb"  # of an upload


def check_address(host: str, port: int, password: str | None) -> None:
    """Checks where the page is to be served.

    Raises:
        UsageError: for another host than this machine's own without a password, a host that is not of this machine, or
            a port that is in use.
    """
    if not is_loopback(host) and not password:
        raise UsageError(
            f"--host {host}: whoever reaches this machine could use the page; set a password, in the environment as "
            "SOFTPOOL3D_PASSWORD or with --password"
        )
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            if os.name == "posix":  # as the server does: a port whose last connections are just closing is free
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        wrong = f"--host {host}" if isinstance(error, socket.gaierror) else f"--port {port}"
        why = os_reason(error)
        raise UsageError(f"{wrong}: {why}; give another, as in --port {port + 1}") from None


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def served(
    weights: str | None, runs: Path, host: str, port: int, password: str | None, opens: bool = False, limit: str = LIMIT
) -> Iterator[str]:
    """Yields the page's address, and serves it meanwhile. Uploads lie in a temporary folder that is removed at the end.

    Args:
        weights, runs: as for `Answers`.
        opens: opens a browser.
        limit: of an upload, such as 2gb.

    Raises:
        UsageError: as `check_address` and `Answers` do.
        WorkError: as `Answers` does, or if the server does not start.
    """
    check_address(host, port, password)
    with TemporaryDirectory(prefix="softpool3d-app-", ignore_cleanup_errors=True) as folder:
        _keep_to_itself(folder)
        import gradio as gr

        from softpool3d.app.answers import Answers
        from softpool3d.app.live import Live
        from softpool3d.app.markup import HEAD
        from softpool3d.app.page import page

        answers = Answers(weights, runs, Path(folder))
        if answers.note:
            print(answers.note, file=sys.stderr)
        made = page(answers, Live(runs))
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        try:
            _, address, _ = made.queue().launch(
                server_name=f"[{host}]" if ":" in host else host,  # as addresses write IPv6
                server_port=port,
                auth=(lambda _, given: secrets.compare_digest(given.encode(), password.encode())) if password else None,
                auth_message="Any name, and the password that the page was started with.",
                max_file_size=limit,
                inbrowser=opens,
                head=HEAD,
                theme=gr.themes.Default(**fonts),
                footer_links=[],
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
            )
        except OSError as error:
            raise WorkError(f"--port {port}: the page cannot be served ({error})") from None
        try:
            yield address
        finally:
            made.close(verbose=False)


def serve(weights: str | None, runs: Path, host: str, port: int, password: str | None, opens: bool) -> None:
    """Serves the page until a signal ends the process; arguments and errors as for `served`."""
    with served(weights, runs, host, port, password, opens) as address:
        if not is_loopback(host):
            print(
                f"warning: whoever reaches {host} and knows the password has this machine decode what they send; the "
                "password goes over the network as it is, so put a server with HTTPS in front",
                file=sys.stderr,
            )
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def _keep_to_itself(folder: str) -> None:
    """Sets gradio's variables, before it is loaded: no telemetry, uploads in `folder`, and nothing of what the
    environment may ask for, such as folders to open or a tunnel."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_DISABLE_TELEMETRY": "1"}
