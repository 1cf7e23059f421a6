#!/usr/bin/env python3
"""Uploads a W&B run with `wandb sync` to a server of its own: sync.py DIRECTORY UPLOADED.

Prints "step loss" of each step that arrived and, last, "exit CODE". The files that arrived are then
in UPLOADED, which must not be there yet; in UPLOADED.lines are the console's lines, which W&B shows
as the run's logs, without the time that stands before each.
"""
import gzip
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.parse

history, exit_codes, console, uploaded = [], [], {}, {}


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def read(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def answer(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        uploaded[urllib.parse.unquote(os.path.relpath(self.path, "/upload"))] = self.read()
        self.answer({})

    def do_POST(self):
        request = json.loads(self.read())
        if "file_stream" in self.path:
            for name, file in (request.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    history.extend(json.loads(line) for line in file["content"])
                if name == "output.log":
                    for number, line in enumerate(file["content"], file["offset"]):
                        console[number] = line.split(" ", 1)[1]
            if request.get("complete"):
                exit_codes.append(request.get("exitcode"))
            self.answer({"limits": {}})
            return
        variables = request.get("variables", {})
        if "upsertBucket" in request["query"]:
            project = {"id": "p", "name": variables["project"],
                       "entity": {"id": "e", "name": variables["entity"]}}
            bucket = {"id": "b", "name": variables["name"], "displayName": "", "description": "",
                      "config": "{}", "sweepName": None, "historyLineCount": 0, "project": project}
            self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        elif "RunUploadUrls" in request["query"]:
            root = f"http://{self.headers['Host']}/upload/"
            files = [{"node": {"name": name, "url": root + urllib.parse.quote(name)}}
                     for name in variables["files"]]
            bucket = {"id": "b", "files": {"uploadHeaders": [], "edges": files}}
            self.answer({"data": {"model": {"bucket": bucket}}})
        elif "__type" in request["query"]:
            types = "QueryType", "MutationType", "ServerInfoType", "ServerSettingsType"
            self.answer({"data": {name: {"fields": []} for name in types}})
        else:
            self.answer({"data": {}})


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        environment = dict(os.environ, HOME=home, WANDB_API_KEY=40 * "0",
                           WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}",
                           WANDB_ERROR_REPORTING="false")
        wandb = os.path.join(os.path.dirname(sys.executable), "wandb")
        subprocess.run([sys.executable, "-W", "ignore", wandb, "sync", "--entity=entity",
                        "--project=project", sys.argv[1]], env=environment, cwd=home, check=True,
                       timeout=120, stdout=sys.stderr)
    os.mkdir(sys.argv[2])
    for name, content in uploaded.items():
        with open(os.path.join(sys.argv[2], name), "wb") as file:
            file.write(content)
    with open(sys.argv[2] + ".lines", "w") as file:
        file.writelines(console[number] for number in range(len(console)))
    for line in history:
        print(line["_step"], line["train/loss"])
    print("exit", *exit_codes)


main()
