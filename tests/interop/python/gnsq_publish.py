"""Publishes with gnsq, of which only the address is changed.

usage: gnsq_publish.py HOST:PORT TOPIC DELAY_MS; bodies are pub, mpub-1, mpub-2, dpub-0 to dpub-9.
"""
import sys

import gnsq


def main():
    address, topic, delay_ms = sys.argv[1:]
    producer = gnsq.Producer(address)
    producer.start()
    producer.publish(topic, b"pub")
    producer.multipublish(topic, [b"mpub-1", b"mpub-2"])
    for number in range(10):
        producer.publish(topic, b"dpub-%d" % number, defer=int(delay_ms))
    producer.close()
    producer.join()
    print("ok")


if __name__ == "__main__":
    main()
