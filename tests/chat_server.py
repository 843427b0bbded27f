"""A chat server of a few lines, which reads the question and orders its passages by a rule."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    """One request: what it says, and what the rule would answer."""

    number: int
    path: str
    headers: dict
    body: dict
    passages: dict = field(init=False)
    query: str = field(init=False)

    def __post_init__(self):
        (message,) = self.body["messages"]
        assert message["role"] == "user"
        text = message["content"]
        self.passages = {
            int(n): passage for n, passage in re.findall(r"(?m)^\[(\d+)\] (.*)$", text)
        }
        (self.query,) = re.findall(r"(?m)^Query: (.*)$", text)

    @property
    def best(self):
        """Passages by the number at their beginning, the largest first."""
        by_worth = sorted(self.passages, key=lambda n: -int(self.passages[n].split()[0]))
        return " > ".join(f"[{n}]" for n in by_worth)


def said(text, *, usage=(100, 10), finish="stop"):
    """A chat completion as a (status, body, headers)."""
    body = {"choices": [{"message": {"content": text}, "finish_reason": finish}]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, body, {}


def by_rule(asked):
    return said(asked.best)


class ChatServer:
    """`answer` makes (status, body, headers) of what was asked; `asked` keeps all requests.

    dripping: seconds between one byte of an answer and the next.
    """

    def __init__(self, answer=by_rule, *, delay_s=0.0, dripping=0.0):
        self.asked = []
        self.most_at_once = 0
        now = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                nonlocal now
                content = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    now += 1
                    outer.most_at_once = max(outer.most_at_once, now)
                    number = len(outer.asked) + 1
                    asked = Asked(number, self.path, dict(self.headers), json.loads(content))
                    outer.asked.append(asked)
                time.sleep(delay_s)
                status, body, headers = answer(asked)
                with lock:
                    now -= 1
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                for byte in content if dripping else ():
                    self.wfile.write(bytes([byte]))
                    time.sleep(dripping)
                if not dripping:
                    self.wfile.write(content)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request, client_address):
                pass  # a client that has gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
