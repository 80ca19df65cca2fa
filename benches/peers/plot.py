"""The ratios as an SVG: one row per case and tier of ours, one bar per number of threads, on a log axis."""
import math
from html import escape

from cases import GROUPS, multiplies_in_bf16
from results import best_peer, ratio_text

WIDTH, LEFT, RIGHT = 1040, 400, 150
BAR, GAP, HEAD = 9, 7, 34
WINS = ["#7fb3d5", "#2471a3", "#1a5276", "#154360"]
LOSSES = ["#e59866", "#ca6f1e", "#af601a", "#935116"]
TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def svg(run):
    threads = sorted({line["threads"] for line in run["cases"]})
    sections = [(title, rows_of(run["cases"], group)) for group, title in GROUPS.items()]
    sections = [(title, rows) for title, rows in sections if rows]
    ratios = [ratio for _, rows in sections for row in rows for bars in row[1].values() for ratio, _ in bars.values()]
    axis = Axis(ratios or [1.0])
    body, top = [], 70
    y = top
    for title, rows in sections:
        y += HEAD
        body.append(f'<text x="16" y="{y - 8}" class="group">{escape(title)}</text>')
        body += axis.labels(y - 8)
        for label, bars in rows:
            body += row_of(label, bars, threads, axis, y)
            y += BAR * len(threads) + GAP
    height = y + 24
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
         STYLE, f'<rect width="{WIDTH}" height="{height}" fill="white"/>']
        + title_of(run, threads) + list(axis.lines(top, y)) + body + ["</svg>", ""])


STYLE = """<style>
text { font: 11px system-ui, 'DejaVu Sans', sans-serif; fill: #333 }
.title { font-size: 17px; font-weight: 600 }
.group { font-size: 13px; font-weight: 600 }
.value { font-size: 9px }
.label { text-anchor: end }
.tick { text-anchor: middle; fill: #777 }
</style>"""


class Axis:
    def __init__(self, ratios):
        self.low = math.log(min(0.5, min(ratios) * 0.9))
        self.high = math.log(max(2.0, max(ratios) * 1.05))

    def x(self, ratio):
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log(ratio) - self.low) / (self.high - self.low)

    def ticks(self):
        return [tick for tick in TICKS if self.low <= math.log(tick) <= self.high]

    def lines(self, top, bottom):
        for tick in self.ticks():
            style = 'stroke="#333" stroke-width="1.2"' if tick == 1 else 'stroke="#ddd"'
            yield f'<line x1="{self.x(tick):.1f}" x2="{self.x(tick):.1f}" y1="{top}" y2="{bottom}" {style}/>'

    def labels(self, y):
        for tick in self.ticks():
            yield f'<rect x="{self.x(tick) - 15:.1f}" y="{y - 11}" width="30" height="14" fill="white"/>'
            yield f'<text x="{self.x(tick):.1f}" y="{y}" class="tick">{tick:g}x</text>'


def rows_of(lines, group):
    """(label, {threads: {variant: (ratio, peer)}}), the bf16-dot tier in rows of its own."""
    rows = {}
    for line in lines:
        if line["group"] != group:
            continue
        for tier in (("rows", "panels"), ("bf16-dot",), ("bf16-dot-panels",)):
            found = {variant: best_peer(line, variant) for variant in tier if best_peer(line, variant)}
            if found:
                label = f"{line['label']}  {line['dtype']}" + (f"  {tier[0]}" if multiplies_in_bf16(tier[0]) else "")
                rows.setdefault(label, {})[line["threads"]] = {
                    variant: (ratio, name) for variant, (name, ratio) in found.items()}
    return list(rows.items())


def row_of(label, by_threads, threads, axis, y):
    middle = y + BAR * len(threads) / 2
    out = [f'<text x="{LEFT - 8}" y="{middle + 4:.1f}" class="label">{escape(label)}</text>']
    for index, count in enumerate(threads):
        if count in by_threads:
            out += bar_of(by_threads[count], index, axis, y + BAR * index)
    return out


def bar_of(found, index, axis, y):
    """A bar for rows (or the tier), a ring for panels."""
    (ratio, peer), *others = found.values()
    colour = (WINS if ratio >= 1 else LOSSES)[min(index, len(WINS) - 1)]
    start, end = sorted((axis.x(1), axis.x(ratio)))
    out = [f'<rect x="{start:.1f}" y="{y:.1f}" width="{max(end - start, 0.8):.1f}" height="{BAR - 1}" fill="{colour}"/>']
    right = max(axis.x(1), axis.x(ratio))
    for other, _ in others:
        colour = "#1a5276" if other >= 1 else "#af601a"
        out.append(f'<circle cx="{axis.x(other):.1f}" cy="{y + BAR / 2 - 0.5:.1f}" r="3.2" fill="white" '
                   f'stroke="{colour}" stroke-width="1.6"/>')
        right = max(right, axis.x(other) + 4)
    out.append(f'<text x="{right + 5:.1f}" y="{y + BAR - 1:.1f}" class="value">{ratio_text(ratio)} {escape(peer)}</text>')
    return out


def title_of(run, threads):
    machine = run["machine"]
    out = [
        '<text x="16" y="26" class="title">Best peer\'s time / our time, for each case (log scale; right of 1x ours is faster)</text>',
        f'<text x="16" y="44">{escape(machine["cpu"])}, {machine["cores"]} cores, {run["date"]}. Bars: keys from borrowed '
        'rows, or the bf16-dot tier (from rows, from panels) where it says so. Rings: keys from panels. Beside a bar: its ratio and the best peer.</text>',
    ]
    x = 16
    for index, count in enumerate(threads):
        for colours, word in ((WINS, "ahead"), (LOSSES, "behind")):
            out.append(f'<rect x="{x}" y="54" width="12" height="9" fill="{colours[min(index, 3)]}"/>')
            out.append(f'<text x="{x + 17}" y="62">{word}, {count} thread{"s" * (count > 1)}</text>')
            x += 120
    return out
