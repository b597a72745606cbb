# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A server that sends back what it gets, and its clients, with gRPC: "serve PORT", "ask HOST PORT"."""

import sys
import time
from concurrent import futures

import grpc

CLIENTS = 4
SECONDS = 2


def serve(port):
    # Messages are bytes: what protobuf makes of them is no matter of the transport.
    handlers = grpc.method_handlers_generic_handler(
        "Echo",
        {
            "unary": grpc.unary_unary_rpc_method_handler(lambda message, _: message),
            "stream": grpc.stream_stream_rpc_method_handler(lambda messages, _: messages),
        },
    )
    server = grpc.server(futures.ThreadPoolExecutor(CLIENTS))
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def unary(channel, message):
    call = channel.unary_unary("/Echo/unary")
    begun, count = time.monotonic(), 0
    while time.monotonic() < begun + SECONDS:
        assert call(message) == message
        count += 1
    return count / (time.monotonic() - begun)


def stream(channel, message):
    begun, count = time.monotonic(), 0

    def messages():
        while time.monotonic() < begun + SECONDS:
            yield message

    for back in channel.stream_stream("/Echo/stream")(messages()):
        assert back == message
        count += 1
    return count / (time.monotonic() - begun)


def ask(host, port):
    for what, client, size in (
        ("calls/s 1 KiB there and back", unary, 1 << 10),
        ("calls/s 1 MiB there and back", unary, 1 << 20),
        ("messages/s 64 KiB there and back, streams", stream, 1 << 16),
    ):
        message = bytes(range(256)) * (size // 256)
        # A channel is a connection, if they are not to share one.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.insecure_channel(f"{host}:{port}", options) for _ in range(CLIENTS)]
        with futures.ThreadPoolExecutor(CLIENTS) as threads:
            rates = list(threads.map(lambda channel: client(channel, message), channels))
        for channel in channels:
            channel.close()
        print(f"figure {sum(rates)} {what}", flush=True)


match sys.argv[1:]:
    case ["serve", port]:
        serve(int(port))
    case ["ask", host, port]:
        ask(host, port)
