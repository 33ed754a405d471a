"""The picture of a layout: modules where they are, each with its name, and a mark where its first pixel comes to."""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np

from firstlight.processors._layout import Layout, Module

__all__ = ["layout_svg"]

_WIDTH, _MARGIN = 640.0, 20.0
_STYLE = """
  .paper { fill: #ffffff } .image { fill: #eceff3 } .module { fill: #dcebfa; stroke: #3b78b5; stroke-width: 1.5 }
  .first { fill: #c2410c } text { font-family: ui-sans-serif, system-ui, sans-serif; fill: #1d2733; text-anchor: middle }
"""


def layout_svg(layout: Layout) -> str:
    """The layout as an SVG document of its own, 640 pixels wide."""
    rows, columns = layout.shape
    scale = _WIDTH / columns
    height = rows * scale
    parts = [_drawn(module, scale) for module in layout.modules]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 2 * _MARGIN:.0f}" height="{height + 2 * _MARGIN:.0f}" '
        f'role="img">\n<title>{escape(layout.name)}: {rows} x {columns} pixels</title>\n<style>{_STYLE}</style>\n'
        f'<rect class="paper" width="100%" height="100%"/>\n<g transform="translate({_MARGIN:.0f} {_MARGIN:.0f})">\n'
        f'<rect class="image" width="{_WIDTH:.1f}" height="{height:.1f}"/>\n' + "\n".join(parts) + "\n</g></svg>\n"
    )


def _drawn(module: Module, scale: float) -> str:
    (y, x), (bottom, right) = module.origin, module.end
    left, top, width, height = x * scale, y * scale, (right - x) * scale, (bottom - y) * scale
    # Where pixel (0, 0) comes to is told by what puts it there.
    corner = np.argwhere(module.turned(np.arange(4).reshape(2, 2)) == 0)[0]
    mark = min(width, height) * 0.12
    mark_x = left + (width - mark) * corner[1]
    mark_y = top + (height - mark) * corner[0]
    size = max(min(width / (0.7 * max(len(str(module.key)), 2)), height / 2, 18.0), 5.0)
    return (
        f'<rect class="module" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
        f'<rect class="first" x="{mark_x:.1f}" y="{mark_y:.1f}" width="{mark:.1f}" height="{mark:.1f}"/>'
        f'<text x="{left + width / 2:.1f}" y="{top + height / 2 + size / 3:.1f}" font-size="{size:.1f}">'
        f"{escape(str(module.key))}</text>"
    )
