"""Publishes with pynsq, of which only the address is changed.

usage: publish.py HOST:PORT TOPIC DELAY_MS [tls=CA.pem] [snappy] [deflate] [auth=SECRET]; bodies are pub, mpub-1, mpub-2, dpub-0 to dpub-9.
"""
import asyncio
import ssl
import sys

import nsq

# How long the whole run may take, in seconds.
LIMIT = 30


def options(words):
    """What the writer asks for beside the plain protocol."""
    asked = {}
    for word in words:
        name, _, value = word.partition("=")
        if name == "tls":
            asked["tls_v1"] = True
            asked["tls_options"] = {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": value}
        elif name == "auth":
            asked["auth_secret"] = value
        else:
            asked[name] = True
    return asked


async def publish(address, topic, delay_ms, asked):
    writer = nsq.Writer([address], **asked)

    async def call(method, *args):
        done = asyncio.get_running_loop().create_future()

        def answered(_connection, answer):
            if answer == b"OK":
                done.set_result(answer)
            else:
                done.set_exception(RuntimeError(f"{method}: {answer!r}"))

        getattr(writer, method)(topic, *args, callback=answered)
        await done

    while not writer.conns:
        await asyncio.sleep(0.02)
    await call("pub", b"pub")
    await call("mpub", [b"mpub-1", b"mpub-2"])
    for number in range(10):
        await call("dpub", delay_ms, b"dpub-%d" % number)
    print("ok")


async def main():
    address, topic, delay_ms = sys.argv[1:4]
    asked = options(sys.argv[4:])
    await asyncio.wait_for(publish(address, topic, int(delay_ms), asked), LIMIT)


if __name__ == "__main__":
    asyncio.run(main())
