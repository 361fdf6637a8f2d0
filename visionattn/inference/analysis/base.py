"""What a job adds to ``visionattn test --report``: the interface between `Job.analysis` and the page."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.engine.train.testing import TestResult

__all__ = ["Analysis", "Findings", "Section", "TestData"]


@dataclass(frozen=True)
class TestData:
    """The test data of a model.

    Attributes:
        classes: class names by label.
        palette: RGB colors by label that the dataset defines, or None.
        config: the whole config.
    """

    __test__ = False  # not a pytest class

    classes: tuple[str, ...]
    palette: Sequence[tuple[int, int, int]] | None
    config: Mapping[str, Any]

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...] | None:
        """RGB color of each class, or None for the default colors."""
        return tuple(map(tuple, self.palette)) if self.palette and len(self.palette) == len(self.classes) else None


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        title: heading.
        blocks: HTML from `visionattn.inference.analysis.blocks` and `plots`.
    """

    title: str
    blocks: Sequence[str]


@dataclass(frozen=True)
class Findings:
    """Result of an analysis.

    Attributes:
        sections: sections of the page, after the metrics.
        figures: the numbers of the page, plain values for ``analysis.json``.
        thresholds: the score thresholds found, by the names that ``Options.score_thr`` of the job has; None for a name
            without a threshold. Empty if the job has no score thresholds.
        criterion: what the thresholds maximize.
    """

    sections: Sequence[Section]
    figures: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float | None] = field(default_factory=dict)
    criterion: str = ""


class Analysis(ABC):
    """Collects what an analysis needs from each prediction, and evaluates it at the end of the test.

    Args:
        data: the test data.
    """

    def __init__(self, data: TestData) -> None:
        self.data = data

    @abstractmethod
    def add(self, sample: Mapping[str, Any]) -> None:
        """Add one data sample of mmengine, as a dict, with the annotations and the prediction of one image."""

    @abstractmethod
    def findings(self, result: "TestResult") -> Findings:
        """Return the result after the last sample."""
