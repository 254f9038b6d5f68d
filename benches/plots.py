#!/usr/bin/env python3
"""Draws the plots of docs/performance.md from what benches/series.sh measured.

    pip install matplotlib==3.11.2
    benches/plots.py DIR docs/images
"""

import json
import re
import sys
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402 (the backend is chosen first)

# Told apart also by those who do not see red and green alike.
COLOURS = {"nsqdelayd": "#0072b2", "redis": "#d55e00", "nsqd": "#999999"}
SERVERS = ("nsqdelayd", "redis", "nsqd")


def main(measured, images):
    images.mkdir(parents=True, exist_ok=True)
    # The same picture from the same figures: no dates and no random ids in the files.
    plt.rcParams.update({"svg.hashsalt": "nsqdelayd", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})
    for name, draw in PLOTS.items():
        figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        axes.set_axisbelow(True)
        draw(measured, axes)
        figure.savefig(images / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def rows(measured, name, target="nsqdelayd"):
    report = json.loads((measured / f"{name}.json").read_text())
    return [row for row in report["rows"] if row["target"] == target]


def span(row, what):
    return next(span for span in row["spans"] if span["what"] == what)


def middle(spans, of):
    """The span whose figure is the median."""
    return min(spans, key=lambda span: abs(span[of] - median(s[of] for s in spans)))


def stack(axes, labels, spans):
    """One bar for each span: CPU of each server, us a message."""
    bottom = [0.0] * len(spans)
    for server in SERVERS:
        heights = [span["cpu_us"].get(server, 0.0) for span in spans]
        axes.bar(labels, heights, 0.6, bottom=bottom, label=server, color=COLOURS[server])
        bottom = [low + height for low, height in zip(bottom, heights)]
    for label, total in zip(labels, bottom):
        axes.annotate(f"{total:.3g}", (label, total), ha="center", va="bottom")
    axes.set_ylabel("CPU of the servers, µs a message")
    axes.legend()


def lateness(measured, axes):
    percentiles = {"p50": "50 %", "p90": "90 %", "p99": "99 %", "p999": "99.9 %", "max": "all"}
    for shift, target in ((-0.2, "nsqdelayd"), (0.2, "nsqd")):
        late = rows(measured, "lateness", target)[0]["lateness_ms"]
        heights = [late[key] for key in percentiles]
        places = [place + shift for place in range(len(heights))]
        bars = axes.bar(places, heights, 0.38, label=target, color=COLOURS[target])
        axes.bar_label(bars, [f"{height:.3g}" for height in heights])
    axes.set_xticks(range(len(percentiles)), percentiles.values())
    axes.set_yscale("log")
    axes.set_ylim(1, 500)
    axes.set_xlabel("share of the messages")
    axes.set_ylabel("at most so late, ms")
    axes.set_title("Lateness at 1,000 messages a second")
    axes.legend(loc="upper left", ncols=2)


def rates(measured, axes):
    for door, pattern, colour in (("DPUB", "rate-[0-9]*", "nsqdelayd"), ("MDPUB of 100", "rate-mdpub-*", "redis")):
        names = [path.stem for path in measured.glob(f"{pattern}.json")]
        found = {int(name.rsplit("-", 1)[1]): span(rows(measured, name)[0], "in and out") for name in names}
        points = [(rate, found[rate]["servers_cpu_us"]) for rate in sorted(found)]
        axes.plot(*zip(*points), "o-", label=door, color=COLOURS[colour])
        for point in points:
            axes.annotate(f"{point[1]:.0f}", point, textcoords="offset points", xytext=(0, 6), ha="center")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(10, 2000)
    axes.set_xlabel("messages a second")
    axes.set_ylabel("CPU of the servers, µs a message")
    axes.set_title("A message in and out, by how many come")
    axes.legend()


def pending(measured, axes):
    labels, spans = [], []
    for count, label in ((10_000, "10 thousand"), (1_000_000, "1 million"), (12_000_000, "12 million")):
        for what in ("in", "out"):
            labels.append(f"{what}\n{label}")
            measured_spans = [span(row, what) for row in rows(measured, f"pending-{count}")]
            spans.append(middle(measured_spans, "servers_cpu_us"))
    stack(axes, labels, spans)
    axes.set_title("A message in, and out, by how many others are pending")


def bodies(measured, axes):
    sizes = (50, 500, 5_000, 100_000)
    for target in ("nsqdelayd", "nsqd"):
        totals = []
        for size in sizes:
            row = rows(measured, f"body-{size}", target)[0]
            totals.append(sum(span(row, what)["servers_cpu_us"] for what in ("in", "out")))
        axes.plot(sizes, totals, "o-", label=f"{target}: in and out", color=COLOURS[target])
        for size, total in zip(sizes, totals):
            axes.annotate(f"{total:.0f}", (size, total), textcoords="offset points", xytext=(0, 5), ha="center")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("bytes of a body")
    axes.set_ylabel("CPU of the servers, µs a message")
    axes.set_title("By size of body")
    axes.legend()


def burst(measured, axes):
    spans = [
        middle([span(row, "out") for row in rows(measured, "burst", target)], "seconds")
        for target in ("nsqdelayd", "nsqd")
    ]
    labels = [f"{name}: {span['seconds']:.2f} s" for name, span in zip(("nsqdelayd", "nsqd's own DPUB"), spans)]
    stack(axes, labels, spans)
    axes.set_title("200,000 messages due at one instant")


def headline(measured, axes):
    line = re.compile(r"(\d+) s .*?: \d+ in \(\+(\d+)\), \d+ out \(\+(\d+)\)")
    seconds = [tuple(map(int, found.groups())) for found in map(line.search, log(measured)) if found]
    at, came, went = zip(*seconds)
    axes.plot(at, [count / 1000 for count in came], label="in", color=COLOURS["nsqdelayd"])
    axes.plot(at, [count / 1000 for count in went], label="out", color=COLOURS["redis"])
    axes.set_xlabel("s")
    axes.set_ylabel("thousand messages a second")
    axes.set_title("60,000 a second with 120 s of delay: 7.2 million pending")
    axes.legend()


def log(measured):
    return (measured / "headline.log").read_text().splitlines()


PLOTS = {
    "lateness": lateness,
    "burst": burst,
    "cpu-by-rate": rates,
    "cpu-by-pending": pending,
    "cpu-by-body": bodies,
    "headline": headline,
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
