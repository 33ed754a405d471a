"""The picture of a graph: layers from left to right, each stage right of everything that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from firstlight.pipeline._chains.graph import Graph, Node

__all__ = ["as_svg"]

_FONT = "ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_TITLE_PX, _NAME_PX, _LINE_PX = 16, 15, 12
#: Mean width of a character over the size of the font; a little wide, so that text never leaves its box.
_NAME_ASPECT, _LINE_ASPECT = 0.62, 0.56
_PAD, _GAP_X, _GAP_Y, _MARGIN = 14, 72, 26, 24
_TITLE = 40
_STYLE = f"""
  .paper {{ fill: #ffffff }}
  text {{ font-family: {_FONT}; fill: #1d2733 }}
  .title {{ font-size: {_TITLE_PX}px; font-weight: 600 }}
  .name {{ font-size: {_NAME_PX}px; font-weight: 600 }}
  .line {{ font-size: {_LINE_PX}px; fill: #52606d }}
  .source {{ fill: #eef4fb; stroke: #3b78b5 }}
  .stage {{ fill: #ffffff; stroke: #7b8794 }}
  .source, .stage {{ stroke-width: 1.5 }}
  .edge {{ fill: none; stroke: #7b8794; stroke-width: 1.5 }}
  .head {{ fill: #7b8794 }}
  @media (prefers-color-scheme: dark) {{
    .paper {{ fill: #12171d }} text {{ fill: #e4e9ef }} .line {{ fill: #a3b1bf }}
    .source {{ fill: #17283a; stroke: #6ba3d8 }} .stage {{ fill: #1b222b; stroke: #8593a1 }}
    .edge {{ stroke: #8593a1 }} .head {{ fill: #8593a1 }}
  }}
"""


@dataclass(slots=True)
class _Box:
    """A node, or the place where an edge passes through a layer that it skips (`node` is None)."""

    node: Node | None
    width: float = 0.0
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def as_svg(graph: Graph) -> str:
    """The graph as an SVG document of its own, light or dark as the viewer likes it."""
    boxes = {node.name: _box(node) for node in graph.nodes}
    layers, paths = _layers(graph, boxes)
    _sort(layers, paths)
    width, height = _place(layers)
    width = max(width, len(graph.name) * _TITLE_PX * _NAME_ASPECT + 2 * _MARGIN)
    parts = [_edge(path) for path in paths] + [_drawn(box) for box in boxes.values()]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">\n<title>{escape(graph.name)}</title>\n'
        f"<style>{_STYLE}</style>\n"
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>\n'
        '<rect class="paper" width="100%" height="100%" rx="8"/>\n'
        f'<text class="title" x="{_MARGIN}" y="{_MARGIN + 10}">{escape(graph.name)}</text>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _box(node: Node) -> _Box:
    width = max(
        len(node.name) * _NAME_PX * _NAME_ASPECT, *(len(line) * _LINE_PX * _LINE_ASPECT for line in node.lines), 60
    )
    height = 2 * _PAD + _NAME_PX + len(node.lines) * (_LINE_PX + 5)
    return _Box(node, width + 2 * _PAD, height - 2)


def _layers(graph: Graph, boxes: dict[str, _Box]) -> tuple[list[list[_Box]], list[list[_Box]]]:
    """Boxes by layer, and for each edge the boxes that it goes through."""
    depth: dict[str, int] = {}
    for node in graph.nodes:  # inputs come before those who read them
        depth[node.name] = 1 + max((depth[name] for name in graph.before(node.name)), default=-1)
    layers: list[list[_Box]] = [[] for _ in range(max(depth.values()) + 1)]
    for node in graph.nodes:
        layers[depth[node.name]].append(boxes[node.name])
    paths = []
    for start, end in graph.edges:
        passing = [_Box(None, 0.0, _LINE_PX) for _ in range(depth[start] + 1, depth[end])]
        for number, box in enumerate(passing, start=depth[start] + 1):
            layers[number].append(box)
        paths.append([boxes[start], *passing, boxes[end]])
    return layers, paths


def _sort(layers: list[list[_Box]], paths: list[list[_Box]]) -> None:
    """Each layer in the order of what its boxes come from, so that edges cross little."""
    for before, layer in pairwise(layers):
        order = {id(box): place for place, box in enumerate(before)}

        def mean(box: _Box, order: dict[int, int] = order) -> float:
            found = [order[id(a)] for path in paths for a, b in pairwise(path) if b is box]
            return sum(found) / len(found)

        layer.sort(key=mean)


def _place(layers: list[list[_Box]]) -> tuple[float, float]:
    """Give every box its place; returns width and height of the picture."""
    heights = [sum(box.height for box in layer) + _GAP_Y * (len(layer) - 1) for layer in layers]
    x, tallest = float(_MARGIN), max(heights)
    for layer, height in zip(layers, heights, strict=True):
        y = _MARGIN + _TITLE + (tallest - height) / 2
        widest = max(box.width for box in layer)
        for box in layer:
            box.x, box.y = x, y
            # A box is as wide as its layer: edges begin and end in line, and pass where nothing is.
            box.width = widest
            y += box.height + _GAP_Y
        x += widest + _GAP_X
    return x - _GAP_X + _MARGIN, tallest + 2 * _MARGIN + _TITLE


def _edge(path: list[_Box]) -> str:
    x, y = path[0].x + path[0].width, path[0].middle
    steps = [f"M{x:.1f},{y:.1f}"]
    for box in path[1:]:
        bend = (box.x - x) / 2
        steps.append(f"C{x + bend:.1f},{y:.1f} {box.x - bend:.1f},{box.middle:.1f} {box.x:.1f},{box.middle:.1f}")
        x, y = box.x, box.middle
        if box.node is None:
            x = box.x + box.width
            steps.append(f"L{x:.1f},{y:.1f}")
    return f'<path class="edge" d="{" ".join(steps)}" marker-end="url(#head)"/>'


def _drawn(box: _Box) -> str:
    assert box.node is not None
    kind, radius = ("source", box.height / 2) if box.node.is_source else ("stage", 6)
    x, y = box.x + _PAD, box.y + _PAD + _NAME_PX - 4
    texts = [f'<text class="name" x="{x:.1f}" y="{y:.1f}">{escape(box.node.name)}</text>']
    for number, line in enumerate(box.node.lines, start=1):
        texts.append(f'<text class="line" x="{x:.1f}" y="{y + number * (_LINE_PX + 5):.1f}">{escape(line)}</text>')
    shape = (
        f'<rect class="{kind}" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'rx="{radius:.0f}"/>'
    )
    return shape + "".join(texts)
