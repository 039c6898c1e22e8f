"""``nchan FRAME_BYTES RATE SECONDS FOLDER``: fan-out with nginx and nchan; this process is only the publisher.

It prints the port once nginx has its worker, then moves to another core and posts a message for every tick over one
connection.
"""

from __future__ import annotations

import ctypes
import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.peers.tick import end_after, payload
from tests.benchmarks.processes import LOAD_CORE

MODULES = "/usr/lib/nginx/modules"
CONFIGURATION = """
load_module {modules}/ngx_nchan_module.so;
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location = /v2 {{ nchan_subscriber websocket; nchan_channel_id tick; nchan_subscriber_first_message newest; }}
        location = /publish {{ nchan_publisher; nchan_channel_id tick; nchan_message_buffer_length 2; }}
    }}
}}
"""
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent has ended, however: nginx then stops its worker."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def unused_port() -> int:
    """Return a port that nobody listens on; nginx cannot say which one the kernel would choose."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(folder: str, port: int) -> None:
    """Start nginx; returns when it has a worker."""
    Path(folder, "conf").write_text(CONFIGURATION.format(modules=MODULES, folder=folder, port=port))
    command = ["nginx", "-p", folder, "-c", f"{folder}/conf"]
    master = subprocess.Popen(command, preexec_fn=end_with_parent).pid
    children = Path(f"/proc/{master}/task/{master}/children")
    while not children.read_text():
        time.sleep(0.01)  # noqa: TID251 - the worker is there when the socket is


def publish(port: int, frame_bytes: int, rate: float) -> None:
    """Post for ever; an answer is awaited before the next message."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    began = time.perf_counter()
    for seq in itertools.count(1):
        time.sleep(max(0.0, began + seq / rate - time.perf_counter()))  # noqa: TID251 - no trio here
        connection.request("POST", "/publish", payload(seq, frame_bytes))
        connection.getresponse().read()


if __name__ == "__main__":
    end_after(int(sys.argv[3]))
    unused = unused_port()
    start(sys.argv[4], unused)
    print(unused, flush=True)
    os.sched_setaffinity(0, {LOAD_CORE})
    publish(unused, int(sys.argv[1]), float(sys.argv[2]))
