"""Parameters: what they may be, how they are read, and what tells two settings apart."""

from __future__ import annotations

import enum
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, PipelineError, WorkerError
from firstlight.pipeline import Event, Inline, Parameter, ParameterSpec, Pipeline, run
from firstlight.testing._pipeline_contract import Collect, ContractData, mixed


class Method(enum.Enum):
    FAST = 1
    EXACT = 2


@dataclass(frozen=True)
class Everything:
    """A parameter of each kind."""

    n: Annotated[int, Parameter(ge=1, le=100, unit="px", description="how many")] = 5
    distance: Annotated[float, Parameter(unit="m", ge=0)] = 0.2
    label: str = "q"
    fast: bool = True
    mode: Literal["sum", "mean", 3] = "sum"
    method: Method = Method.FAST
    mask: NDArray[np.bool_] | None = None
    flat: Annotated[NDArray[np.float32], Parameter(ge=0)] = field(default_factory=lambda: np.ones(2, np.float32))
    counts: NDArray[np.uint16] = field(default_factory=lambda: np.ones(2, np.uint16))
    calibration: Path = Path("/none.poni")
    center_px: tuple[float, float] = (1.0, 2.0)
    extra: Any = None
    state: list[int] = field(default_factory=list, init=False)

    def __call__(self, event: Event) -> int:
        return self.n


def everything(worker: Any = None) -> Pipeline:
    return Pipeline("all", inputs=["eiger"], worker=worker or Everything(), reducer=Collect)


def spec(name: str) -> ParameterSpec:
    return {found.name: found for found in everything().parameter_specs}[name]


def test_annotations_say_what_parameters_may_be() -> None:
    kinds = {found.name: found.kind for found in everything().parameter_specs}
    assert kinds == {
        "n": "int", "distance": "float", "label": "str", "fast": "bool", "mode": "choice", "method": "choice",
        "mask": "array", "flat": "array", "counts": "array", "calibration": "file", "center_px": "json",
        "extra": "object",
    }  # fmt: skip
    assert (spec("n").limits, spec("n").unit, spec("n").description, spec("n").default) == (
        (1, 100),
        "px",
        "how many",
        5,
    )
    assert spec("mode").choices == ("sum", "mean", 3) and spec("method").choices == ("FAST", "EXACT")
    assert spec("mask").optional and not spec("flat").optional
    assert everything(Everything).parameter_specs[0].default == 5  # also of a class that is not made yet
    assert everything(mixed).parameter_specs == ()


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("n", "7", 7),
        ("n", np.int64(7), 7),
        ("distance", "1e-3", 1e-3),
        ("distance", 2, 2.0),
        ("label", "17", "17"),
        ("fast", "false", False),
        ("mode", "mean", "mean"),
        ("mode", "3", 3),
        ("method", "EXACT", Method.EXACT),
        ("method", 2, Method.EXACT),
        ("method", Method.FAST, Method.FAST),
        ("mask", "null", None),
        ("mask", None, None),
        ("center_px", "[3, 4]", (3.0, 4.0)),
        ("extra", "[3, 4]", [3, 4]),
        ("extra", "text", "text"),
    ],
)
def test_values_are_read_as_their_kind_says(name: str, given: Any, found: Any) -> None:
    converted = spec(name).convert(given)
    assert converted == found and type(converted) is type(found)


def test_arrays_come_as_lists_text_or_files() -> None:
    wanted = np.array([[0.5, 1.0]], np.float32)
    file = io.BytesIO()
    np.save(file, wanted)
    for given in (wanted, [[0.5, 1]], "[[0.5, 1]]", file.getvalue(), wanted.astype(np.float64)):
        found = spec("flat").convert(given)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted)
    assert spec("mask").convert([0, 1, True]).dtype == np.bool_


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("n", 0, "parameter n cannot be 0: it is 1 to 100 px"),
        ("n", "101", "parameter n cannot be '101': it is 1 to 100 px"),
        ("n", 2.5, "parameter n cannot be 2.5: it is a whole number, 1 to 100 px"),
        ("n", True, "parameter n cannot be True"),
        ("n", None, "parameter n cannot be None"),
        ("distance", -1, "it is at least 0 m"),
        ("distance", "nan", "it is at least 0 m"),
        ("label", 5, "parameter label cannot be 5: it is text"),
        ("fast", "perhaps", "parameter fast cannot be 'perhaps': it is true or false"),
        ("mode", "median", "it is one of sum, mean, 3"),
        ("method", "SLOW", "it is one of FAST, EXACT"),
        ("mask", [0, 2], "not all of its elements are bool"),
        ("flat", [-1.0], "it is at least 0"),
        ("flat", [[1], [1, 2]], "parameter flat cannot be"),
        ("flat", "[1,", "parameter flat cannot be"),
        ("flat", b"GIF89", "bytes of an array are those of a .npy file"),
        ("flat", ["a"], "an array holds numbers"),
        ("counts", [70000], "not all of its elements are uint16"),
        ("counts", [-1], "not all of its elements are uint16"),
        ("counts", [1.5], "not all of its elements are uint16"),
        ("calibration", "/no/such/file", "there is no such file"),
        ("calibration", 3, "a file is named by a path"),
        ("center_px", "[1]", "parameter center_px cannot be"),
        ("center_px", "32", "it is tuple[float, float], as JSON where it is text"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_limits(name: str, given: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        everything().with_parameters(**{name: given})
    assert text in str(caught.value) and name in str(caught.value)


def test_a_pickle_is_no_array() -> None:
    file = io.BytesIO()
    np.save(file, np.array([object()]), allow_pickle=True)
    with pytest.raises(ConfigurationError, match="parameter flat cannot be"):
        spec("flat").convert(file.getvalue())


def test_a_file_counts_with_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.poni", tmp_path / "b.poni"
    first.write_text("distance 1")
    second.write_text("distance 1")
    hashes = [everything().with_parameters(calibration=str(path)).parameters_hash for path in (first, second)]
    assert hashes[0] == hashes[1]
    second.write_text("distance 2")
    assert everything().with_parameters(calibration=second).parameters_hash != hashes[0]


def test_facts_are_json() -> None:
    facts = everything().parameter_set().facts()
    assert facts["values"] == {
        "n": 5, "distance": 0.2, "label": "q", "fast": True, "mode": "sum", "method": "FAST", "mask": None,
        "flat": [1.0, 1.0], "counts": [1, 1], "calibration": "/none.poni", "center_px": [1.0, 2.0], "extra": None,
    }  # fmt: skip
    assert spec("n").facts()["limits"] == [1, 100]
    big = everything().with_parameters(flat=np.ones((40, 50))).parameter_set().facts()
    assert big["values"]["flat"] == "<array of float32, 40 x 50>"


# -- while it runs ----------------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """Tells what was done to it."""

    offset: int = 0
    log: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.offset == 13:
            raise ValueError("an unlucky offset")

    def setup(self) -> None:
        self.log.append("setup")

    def __call__(self, event: Event) -> tuple[int, list[str]]:
        return event.index + self.offset, list(self.log)


class Kept(Counted):
    """One that stays."""

    def retune(self, parameters: dict[str, Any]) -> None:
        self.log.append(f"retune {parameters['offset']}")


class Told(Collect):
    """A reducer that wants to know."""

    def retune(self, parameters: dict[str, Any]) -> None:
        self.found[-len(self.found) - 1] = parameters["offset"]


def changed_at(worker: Any, reducer: Any, n: int = 6) -> Any:
    pipeline = Pipeline("live", inputs=["eiger"], worker=worker, reducer=reducer)
    running = run(pipeline, ContractData.of(range(1, n + 1)).items(), on=Inline())
    for _ in range(3):
        running.join(0.0)  # one event
    running.set_parameters(offset="100")
    running.result()
    return running


def test_parameters_change_between_events() -> None:
    running = changed_at(Counted(), Collect)
    found = running.reducer.found
    assert [found[index][0] for index in range(1, 7)] == [1, 2, 3, 104, 105, 106]
    assert found[6][1] == ["setup"]  # a new one, set up
    first, second = running.parameter_history
    assert (first.number, second.number) == (1, 2) and first.hash != second.hash and first.set_ns < second.set_ns
    assert running.parameters is second and second.values == {"offset": 100}
    assert running.pipeline.parameters == {"offset": 100}


def test_a_worker_may_stay_and_be_told() -> None:
    found = changed_at(Kept(), Collect).reducer.found
    assert found[6] == (106, ["setup", "retune 100"])


def test_a_reducer_may_be_told() -> None:
    found = changed_at(Counted, Told).reducer.found
    assert found[-1] == 0 and found[-5] == 100


def test_what_is_refused_changes_nothing() -> None:
    pipeline = Pipeline("live", inputs=["eiger"], worker=Counted(), reducer=Collect)
    running = run(pipeline, ContractData.of([1]).items())
    for values, text in (
        ({"gain": 3}, "has no parameter 'gain'"),
        ({"offset": "many"}, "cannot be 'many'"),
        ({"offset": 13}, "Counted cannot be made: an unlucky offset"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            running.set_parameters(**values)
    assert running.set_parameters(offset=0) is running.parameters  # it is what it was
    assert running.result().found[1][0] == 1 and len(running.parameter_history) == 1
    with pytest.raises(PipelineError, match="is over; its parameters stay as they are"):
        running.set_parameters(offset=1)


class Refuses(Kept):
    def retune(self, parameters: dict[str, Any]) -> None:
        raise RuntimeError("not now")


def test_a_worker_that_cannot_take_parameters_ends_the_run() -> None:
    with pytest.raises(WorkerError, match=r"Refuses .* could not take other parameters: RuntimeError: not now"):
        changed_at(Refuses(), Collect)
