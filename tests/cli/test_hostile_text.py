"""Text from outside cannot steer the terminal."""

from __future__ import annotations

import json
import threading
import unicodedata
from http.server import BaseHTTPRequestHandler, HTTPServer

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from e2rank_rag.store import QdrantStore
from e2rank_rag.types import Document
from tests.cli.parts import one_line
from tests.kit import write_jsonl

STEERING = st.characters(categories=["Cc", "Cf", "Zl", "Zp"], exclude_characters="\x00")
ATTACKS = [
    "\x1b[2J\x1b[31m",
    "\x1b]0;title\x07",
    "\x9b2J\x90",
    "\u202egpj.exe",
    "\u2066\u2069\u200f\u2028",
    "\x7f\b\b\r",
    "[bold red]",
]
HOSTILE = st.lists(
    st.one_of(st.sampled_from(ATTACKS), STEERING, st.sampled_from("ab ")), max_size=6
)
HOSTILE_TEXT = HOSTILE.map(lambda parts: "x" + "".join(parts))


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@example(**dict.fromkeys(["id", "text", "key", "value", "name"], "x" + "".join(ATTACKS)))
@given(id=HOSTILE_TEXT, text=HOSTILE_TEXT, key=HOSTILE_TEXT, value=HOSTILE_TEXT, name=HOSTILE_TEXT)
def test_nothing_from_outside_reaches_the_terminal_raw(
    run_raw, tmp_path_factory, bert, tiny_bert, id, text, key, value, name
):
    folder = tmp_path_factory.mktemp("hostile")
    index = folder / "index"
    store = QdrantStore.open(index, "documents")
    store.prepare(bert.dim, fingerprint=bert.fingerprint, model=name)
    store.upsert([Document(id, text, {key: value, "title": value})], bert.encode_documents([text]))
    store.close()
    by_bert = ["--index", index, "--model", tiny_bert]
    hostile_file = folder / (name.replace("/", "") + ".jsonl")
    bad = [{"_id": id, "text": ""}, {key: value}, {"_id": id, "text": text, key: [value]}]
    write_jsonl(hostile_file, [*bad, bad[-1]])
    commands = [
        ["search", text, *by_bert],
        ["search", "q", *by_bert, "--json"],
        ["search", "q", "--index", index],
        ["search", "q", *by_bert, "--collection", name],
        ["search", "q", "--index", name],
        ["search", "q", "--index", f"htp://{name}"],
        ["search", "q", *by_bert, "--debug", "--collection", name],
        ["search", "q", *by_bert, "--reranker", "r", "--system", name],
        ["check", index, "--models", tiny_bert, "--no-measure"],
        ["check", index, "--models", f"./{name}", "--no-measure"],
        ["check", index, "--collection", name],
        ["index", hostile_file, *by_bert],
        ["index", hostile_file, *by_bert, "--skip-bad"],
        ["index", folder / name, *by_bert],
        ["index", "a", name, *by_bert],
        ["evaluate", folder / name],
        ["evaluate", folder, "--systems", name],
        ["report", folder / name],
        ["report", folder, "--output", name],
        ["report", folder, "--split", name],
        ["train", hostile_file],
        ["train", folder / name, f"{name}=1"],
        [f"--{name}"],
        [name],
    ]
    for command in commands:
        shown = "".join(run_raw(*command))
        steering = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")}
        assert steering <= {"\n", "\u200c", "\u200d"}, command


def test_a_servers_reply_does_not_reach_the_terminal_raw(run, tiny_bert):
    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"status": {"error": "".join(ATTACKS)}}).encode()
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        code, _, err = run("search", "q", "--index", url, "--model", tiny_bert)
        server.shutdown()
    assert code == 1
    assert one_line(err)
    assert r"refused (400): \x1b[2J\x1b[31m\x1b]0;title\x07" in err
