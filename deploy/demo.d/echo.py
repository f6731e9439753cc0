#!/usr/bin/python3
"""A pod's application: an HTTP server that knows nothing of any mesh.

  /          its own name, who asks and what was asked
  /slow?n    n lines, five a second: a transfer under way
"""
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        if path == "/slow":
            for i in range(int(query or 10)):
                self.wfile.write(f"line {i} from {NAME}\n".encode())
                time.sleep(0.2)
            self.wfile.write(b"end\n")
        else:
            self.wfile.write(f"hello from {NAME}, you are {self.client_address[0]}, you asked {self.path}\n".encode())

    def log_message(self, format, *args):  # the name is the base class's
        print(self.client_address[0], format % args, flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        print(client_address[0], "connection ended early", flush=True)


NAME, PORT = sys.argv[1], int(sys.argv[2])
Server(("0.0.0.0", PORT), Handler).serve_forever()
