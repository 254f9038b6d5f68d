"""Publishes with pynsq, of which only the address is changed.

usage: publish.py HOST:PORT TOPIC DELAY_MS; bodies are pub, mpub-1, mpub-2, dpub-0 to dpub-9.
"""
import asyncio
import sys

import nsq

# How long the whole run may take, in seconds.
LIMIT = 30


async def publish(address, topic, delay_ms):
    writer = nsq.Writer([address])

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
    address, topic, delay_ms = sys.argv[1:]
    await asyncio.wait_for(publish(address, topic, int(delay_ms)), LIMIT)


if __name__ == "__main__":
    asyncio.run(main())
