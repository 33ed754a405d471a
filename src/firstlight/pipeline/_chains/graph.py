"""What a chain, or one pipeline, looks like: who reads what, as text, for Mermaid, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from firstlight.pipeline._chains.chain import Chain
from firstlight.pipeline._pipeline import Pipeline

__all__ = ["Graph", "Node", "as_mermaid", "as_text", "graph_of"]


@dataclass(frozen=True, slots=True)
class Node:
    """A source or a stage.

    Attributes
    ----------
    lines
        What there is to say about it, besides its name.
    """

    name: str
    is_source: bool
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes, and ``(from, to)`` between them; sources first, each stage behind its inputs."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]

    def behind(self, name: str) -> list[str]:
        """Who reads this."""
        return [end for start, end in self.edges if start == name]

    def before(self, name: str) -> list[str]:
        """What this reads."""
        return [start for start, end in self.edges if end == name]


def graph_of(what: Chain | Pipeline) -> Graph:
    """The graph of a chain, or of one pipeline."""
    if isinstance(what, Pipeline):
        nodes = [Node(name, True) for name in what.inputs] + [Node(what.name, False, _about(what))]
        return Graph(what.name, tuple(nodes), tuple((name, what.name) for name in what.inputs))
    sources = [Node(name, True) for name in what.sources]
    stages = [
        Node(stage.name, False, (*_about(stage.pipeline), _count(stage.workers, "process", "processes")))
        for stage in what.stages
    ]
    edges = [(name, stage.name) for stage in what.stages for name in stage.pipeline.inputs]
    return Graph(what.name, (*sources, *stages), tuple(edges))


def _about(pipeline: Pipeline) -> tuple[str, ...]:
    lines = [f"worker {pipeline.worker_name}"]
    if isinstance(pipeline.reducer, Mapping):
        lines += [f"reducer {name}: {_called(make)}" for name, make in pipeline.reducer.items()]
    else:
        lines.append(f"reducer {_called(pipeline.reducer)}")
    if len(pipeline.inputs) > 1:
        lines.append(f"events {type(pipeline.align).__name__}")
    if pipeline.detectors:
        lines.append(f"image of {', '.join(pipeline.detectors)}")
    return tuple(lines)


def _called(make: object) -> str:
    return str(getattr(make, "__qualname__", None) or type(make).__qualname__)


def _count(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def as_text(graph: Graph) -> str:
    """A tree below each source; what was drawn before is only named again.

    >>> print(as_text(Graph("g", (Node("eiger", True), Node("hits", False, ("worker Find",))), (("eiger", "hits"),))))
    eiger
    └─ hits  worker Find
    """
    drawn: set[str] = set()
    nodes = {node.name: node for node in graph.nodes}
    lines: list[str] = []
    for node in graph.nodes:
        if node.is_source:
            lines += [node.name, *_branches(graph, nodes, node.name, "", drawn)]
    return "\n".join(lines)


def _branches(graph: Graph, nodes: Mapping[str, Node], name: str, indent: str, drawn: set[str]) -> Iterator[str]:
    readers = graph.behind(name)
    for reader in readers:
        last = reader == readers[-1]
        again = reader in drawn
        drawn.add(reader)
        told = "(above)" if again else ", ".join(nodes[reader].lines)
        yield f"{indent}{'└─' if last else '├─'} {reader}  {told}".rstrip()
        if not again:
            yield from _branches(graph, nodes, reader, indent + ("   " if last else "│  "), drawn)


def as_mermaid(graph: Graph) -> str:
    """A flowchart for Mermaid, as Markdown pages of GitLab and GitHub draw it."""
    keys = {node.name: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        label = "<br/>".join(_escaped([f"{node.name}", *node.lines]))
        lines.append(
            f'    {keys[node.name]}{"([" if node.is_source else "["}"{label}"{"])" if node.is_source else "]"}'
        )
    lines += [f"    {keys[start]} --> {keys[end]}" for start, end in graph.edges]
    return "\n".join(lines)


def _escaped(texts: Sequence[str]) -> list[str]:
    return [text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;") for text in texts]
