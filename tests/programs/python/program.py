# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A server that sends back what it gets, and its clients, with asyncio over TLS: "serve PORT", "ask HOST PORT"."""

import asyncio
import ssl
import sys
import time

CLIENTS = 4
SECONDS = 2


async def send(writer, message):
    writer.write(len(message).to_bytes(4) + message)
    await writer.drain()


async def receive(reader):
    size = int.from_bytes(await reader.readexactly(4))
    return await reader.readexactly(size)


async def echo(reader, writer):
    try:
        while True:
            await send(writer, await receive(reader))
    except asyncio.IncompleteReadError:
        writer.close()


async def serve(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/data/certificate.pem", "/data/key.pem")
    server = await asyncio.start_server(echo, "0.0.0.0", port, ssl=context)
    await server.serve_forever()


async def client(host, port, message):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    begun, count = time.monotonic(), 0
    while time.monotonic() < begun + SECONDS:
        await send(writer, message)
        assert await receive(reader) == message
        count += 1
    rate = count / (time.monotonic() - begun)
    writer.close()
    await writer.wait_closed()
    return rate


async def ask(host, port):
    for size in (1 << 10, 1 << 20):
        message = bytes(range(256)) * (size // 256)
        rates = await asyncio.gather(*(client(host, port, message) for _ in range(CLIENTS)))
        print(f"figure {sum(rates)} messages/s {size >> 10} KiB there and back, TLS")


match sys.argv[1:]:
    case ["serve", port]:
        asyncio.run(serve(int(port)))
    case ["ask", host, port]:
        asyncio.run(ask(host, int(port)))
