"""Runs the analysis of a model's job during a test, and writes its files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionattn.inference.analysis.base import Findings, Section, TestData
from visionattn.inference.analysis.blocks import columns, paragraph, table
from visionattn.inference.analysis.page import write_page
from visionattn.inference.analysis.thresholds import write_thresholds
from visionattn.inference.job import job_of
from visionattn.inference.report import REPORT_FILE

if TYPE_CHECKING:
    from visionattn.engine.train.testing import TestResult

__all__ = ["ANALYSIS_FILE", "Recorder"]

ANALYSIS_FILE = "analysis.json"


class Recorder:
    """The observer of a test that writes ``report.html``, ``analysis.json`` and, if there are any, thresholds."""

    def start(self, model: Any, config: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Create the analysis of the model's job.

        Args:
            model: the network.
            config: the whole config.
            meta: meta information of the test data: ``classes``, and ``palette`` if it defines one.
        """
        self.job = job_of(type(model), config)
        classes = tuple(str(name) for name in meta.get("classes") or ())
        self.analysis = self.job.analysis(TestData(classes, meta.get("palette"), config))

    def add(self, sample: Mapping[str, Any]) -> None:
        """Add one data sample with its prediction."""
        if self.analysis is not None:
            self.analysis.add(sample)

    def write(self, out: Path, result: "TestResult") -> list[Path]:
        """Write the files and return their paths.

        Raises:
            DataError: a file cannot be written.
        """
        if self.analysis is None:
            note = paragraph(f"The errors of {self.job.name} models are not analyzed further.")
            findings = Findings([Section("Errors", [note])])
        else:
            findings = self.analysis.findings(result)
        record = result.record
        facts = {key: record[key] for key in ("checkpoint", "checkpoint_sha256", "config", "images", "date")}
        facts |= {f"data: {key}": value for key, value in record["dataset"].items() if isinstance(value, (str, dict))}
        path, files = out / REPORT_FILE, [out / REPORT_FILE, out / ANALYSIS_FILE]
        title = f"Test of {Path(record['checkpoint']).name} on {result.images} images"
        write_page(path, title, facts, [_metrics(result), *findings.sections])
        figures = {"task": self.job.name, "checkpoint_sha256": record["checkpoint_sha256"], **findings.figures}
        files[1].write_text(json.dumps(figures, indent=1) + "\n")
        if findings.thresholds:
            files.append(write_thresholds(out, findings.thresholds, findings.criterion, record))
        return files


def _metrics(result: "TestResult") -> Section:
    rows = [[name, value if value <= 1 else round(value, 2)] for name, value in result.metrics.items()]
    blocks = [table(["metric", "value"], rows)]
    titles = {"bbox": "boxes", "segm": "masks", "semantic": "pixels, in percent", "panoptic": "segments, in percent"}
    for kind, per_class in result.per_class.items():
        heads = list(next(iter(per_class.values()), {}))
        body = [[name, *(values[head] for head in heads)] for name, values in per_class.items()]
        percent = any(value > 1 for values in per_class.values() for value in values.values())
        blocks.append(table([titles.get(kind, kind), *heads], body, 2 if percent else 3))
    return Section("Metrics", [columns(*blocks)])
