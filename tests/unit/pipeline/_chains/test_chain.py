"""Chains: what is refused before anything runs, in which order stages stand, and how they are drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from firstlight.errors import ConfigurationError
from firstlight.pipeline import Chain, Pipeline, Stage
from firstlight.pipeline._chains.graph import as_mermaid, as_text, graph_of
from firstlight.pipeline._chains.graph_svg import as_svg
from firstlight.processors import Layout, Module
from firstlight.testing._pipeline_contract import Collect, MeanRows, RowMeans


def find(event: Any) -> None:
    """A worker."""


def pipeline(*inputs: str, **more: Any) -> Pipeline:
    return Pipeline("p", inputs=inputs, worker=find, reducer=Collect, **more)


def stage(name: str, *inputs: str, **more: Any) -> Stage:
    return Stage(name, pipeline(*inputs), **more)


SERIAL = Chain(
    "serial",
    ["eiger", "motor"],
    [
        stage("map", "index", "motor"),
        stage("sum", "hits"),
        stage("hits", "eiger", workers=4),
        stage("index", "hits"),
    ],
)


def test_stages_stand_behind_their_inputs() -> None:
    names = [stage.name for stage in SERIAL.stages]
    assert sorted(names) == ["hits", "index", "map", "sum"]
    assert names.index("hits") < names.index("index") < names.index("map") and names.index("hits") < names.index("sum")
    assert SERIAL.before("map") == ["index"]


def test_a_stage_gives_its_pipeline_name_inputs_and_output() -> None:
    made = Stage("hits", pipeline("eiger"), inputs=["pilatus"])
    assert (made.pipeline.name, made.pipeline.output, made.pipeline.inputs) == ("hits", "hits", ("pilatus",))
    assert Stage("hits", pipeline("eiger")).inputs == ("eiger",)


@pytest.mark.parametrize(
    ("sources", "stages", "problem"),
    [
        (["eiger"], [], "chain 'c' has no stages"),
        (["eiger"], [stage("a", "eiger"), stage("a", "eiger")], "chain 'c' has two stages 'a'"),
        (["eiger", "a"], [stage("a", "eiger")], "'a' is a source, and cannot be a stage as well"),
        (["eiger"], [stage("a", "eigr")], "input 'eigr' of stage 'a' is neither a source nor a stage; sources: eiger"),
        (["eiger", "panda"], [stage("a", "eiger")], "no stage has source 'panda' as an input"),
        (["e"], [stage("a", "e", "c"), stage("b", "a"), stage("c", "b")], "chain 'c' goes round: "),
    ],
)
def test_chains_that_cannot_be_are_refused(sources: list[str], stages: list[Stage], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Chain("c", sources, stages)


def test_a_cycle_is_told_by_its_stages() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Chain("c", ["e"], [stage("a", "e", "b"), stage("b", "a")])
    assert caught.value.text.split(": ")[1] in ("a -> b -> a", "b -> a -> b")


def test_stages_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot write to 'eiger': that is one of its inputs"):
        stage("eiger", "eiger")
    with pytest.raises(ConfigurationError, match="n and prefetch of at least 1"):
        stage("hits", "eiger", workers=0)
    with pytest.raises(ConfigurationError):
        stage("", "eiger")


def test_the_text_is_a_tree_below_each_source() -> None:
    assert as_text(graph_of(SERIAL)).splitlines() == [
        "eiger",
        "└─ hits  worker find, reducer Collect, 4 processes",
        "   ├─ sum  worker find, reducer Collect, 1 process",
        "   └─ index  worker find, reducer Collect, 1 process",
        "      └─ map  worker find, reducer Collect, events ByIndex, 1 process",
        "motor",
        "└─ map  (above)",
    ]


def test_one_pipeline_is_drawn_too() -> None:
    several = Pipeline(
        "mean", inputs=["m0", "m1"], worker=RowMeans(), reducer={"rows": MeanRows, "all": Collect},
        detectors={"quad": Layout("quad", [Module("m0", shape=(1, 1)), Module("m1", shape=(1, 1), origin=(1, 0))])},
    )  # fmt: skip
    assert as_text(graph_of(several)).splitlines() == [
        "m0",
        "└─ mean  worker RowMeans, reducer rows: MeanRows, reducer all: Collect, events ByIndex, image of quad",
        "m1",
        "└─ mean  (above)",
    ]


def test_mermaid_has_a_node_for_each_and_an_edge_for_each_input() -> None:
    lines = as_mermaid(graph_of(SERIAL)).splitlines()
    assert lines[0] == "flowchart LR" and '    n0(["eiger"])' in lines
    assert sum("-->" in line for line in lines) == 5 and len(lines) == 1 + 6 + 5
    odd = Chain(
        'a "b" <c>', ["e"], [Stage("s", Pipeline("p", inputs=["e"], worker=lambda event: None, reducer=Collect))]
    )
    assert "&lt;lambda>" in as_mermaid(graph_of(odd))


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each node."""
    found = []
    for rect in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect"):
        if rect.get("class") in ("source", "stage"):
            x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    return found


def test_the_picture_holds_all_nodes_apart_from_each_other() -> None:
    svg = as_svg(graph_of(SERIAL))
    root = ET.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    found = boxes(svg)
    assert len(found) == 6 and all(x > 0 and y > 0 and right < width and low < height for x, y, right, low in found)
    for number, (x, y, right, low) in enumerate(found):
        for other in found[:number]:
            assert right < other[0] or other[2] < x or low < other[1] or other[3] < y
    paths = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("class") == "edge"]
    assert len(paths) == 5
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "serial" and {"eiger", "motor", "hits", "index", "map", "sum", "4 processes"} <= set(texts)


def test_names_are_escaped_in_the_picture() -> None:
    odd = Chain(
        "a < b & c", ["e"], [Stage("s", Pipeline("p", inputs=["e"], worker=lambda event: None, reducer=Collect))]
    )
    assert next(ET.fromstring(as_svg(graph_of(odd))).iter("{http://www.w3.org/2000/svg}title")).text == "a < b & c"
