"""List the trained models, or show the details of one: data, licenses, scores, addresses and limits.

Without PATTERN, the models of the package and the whole models that their authors published are listed; with a pattern,
also the backbones. The files of published models are downloaded when they are first used, see --model of infer, test,
export and attention.
"""

import argparse
import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visionattn.zoo.records import Record

WIDTH = 250
"""Columns of the tables if the output is not a terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn models``."""
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        help="part of a name, or a glob in quotes such as '*dinat*coco*'; a complete name shows the details",
    )
    parser.add_argument("--job", metavar="JOB", help="only models for this job, such as panoptic or detection")
    parser.add_argument("--all", action="store_true", help="also list the backbones")
    parser.add_argument("--json", action="store_true", help="write all details as JSON")
    parser.add_argument(
        "--check-links",
        action="store_true",
        help="ask the servers whether the files are there, without downloading them",
    )


def run(args: argparse.Namespace) -> int:
    """Print the list or the details; return 0, or 1 if an address that is not known to be dead does not work."""
    from visionattn.errors import ConfigError
    from visionattn.zoo import find_model, model_names, similar
    from visionattn.zoo.records import backbones, published, select, shipped

    plain = not (args.json or args.check_links)
    if plain and args.pattern in model_names():
        print(find_model(args.pattern).card.read_text(encoding="utf-8").strip())
        return 0
    models = [*shipped(), *published()]
    if args.all or args.pattern is not None or args.job is not None or args.check_links:
        models += backbones()
    exact = [record for record in models if record.name == args.pattern]
    if exact and plain:
        _show(exact[0])
        return 0
    found = exact or select(models, args.pattern, args.job)
    if not found:
        if select(models, args.pattern, None):
            jobs = ", ".join(sorted({record.job for record in models}))
            raise ConfigError(f"no such model has the `job` {args.job!r}; jobs: {jobs}")
        raise ConfigError(f"no model has a name like {args.pattern!r}; {similar(args.pattern)}")
    if args.check_links:
        return _check(found)
    if args.json:
        json.dump([dataclasses.asdict(record) for record in found], sys.stdout, indent=2)
        print()
        return 0
    _list(found, everything=args.pattern is None and args.job is None)
    return 0


def _console() -> Any:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=WIDTH)


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    return table


def _list(found: "list[Record]", everything: bool) -> None:
    from visionattn.io.cache import models_dir

    console = _console()
    by_kind: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(found, key=lambda record: not record.usable):  # those that cannot be used come last
        by_kind.setdefault((record.kind, "" if record.kind == "package" else record.job), []).append(record)
    for (kind, job), records in by_kind.items():
        console.print(_models_table({"package": "In the package", "backbone": "Backbones"}.get(kind, job), records))
        console.print()
    print(f"Scores are those of the authors. Downloaded weights are in {models_dir()}.")
    use = "attention IMAGE" if all(record.kind == "backbone" for record in found) else "infer IMAGES"
    print(f"Details: visionattn models NAME. Use: visionattn {use} --model NAME.")
    if everything and all(record.kind != "backbone" for record in found):
        print("Backbones with ImageNet weights: visionattn models --all.")


def _models_table(title: str, records: "list[Record]") -> Any:
    """Return a table without empty columns, sorted by data in the order in which these first appear."""
    places = list(dict.fromkeys(record.data for record in records))
    if records[0].kind != "package":
        records = sorted(records, key=lambda record: places.index(record.data))
    columns: dict[str, list[str]] = {"name": [record.name for record in records]}
    columns["about" if records[0].kind == "package" else "data"] = [record.data for record in records]
    for metric in dict.fromkeys(metric for record in records for metric in record.scores):
        columns[metric] = [str(record.scores.get(metric, "")) for record in records]
    columns["parameters"] = [_millions(record.parameters) for record in records]
    columns["note"] = [_note(record) for record in records]
    columns = {label: texts for label, texts in columns.items() if any(texts)}
    table = _table(title[:1].upper() + title[1:], *columns)
    for column in table.columns:
        column.justify = "left" if column.header in ("name", "about", "data", "note") else "right"
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _millions(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters / 1e6:.1f} M"


def _note(record: "Record") -> str:
    from visionattn.zoo.records import is_downloaded

    if not record.usable:
        return f"not usable: {record.note}"
    return "downloaded" if record.kind != "package" and is_downloaded(record) else record.note


def _show(record: "Record") -> None:
    """Print all details of a model."""
    from visionattn.io.cache import recorded_sha256
    from visionattn.io.links import needs_browser
    from visionattn.zoo.records import is_downloaded

    digest = recorded_sha256(f"{record.name}.pth")
    state = f"downloaded, SHA-256 {digest}" if digest else "downloaded" if is_downloaded(record) else "not downloaded"
    scores = ", ".join(f"{metric} {value}" for metric, value in record.scores.items())
    parameters = _count(record.name) if record.kind == "backbone" else record.parameters
    lines = {
        "job": record.job,
        "data": record.data,
        "scores": f"{scores} (published, not measured here)" if scores else "",
        "parameters": f"{parameters:,}" if parameters else "",
        "config": record.config,
        "checked here": record.checked,
        "paper": record.paper,
        "code": f"{record.repository} (license: {record.code_license})",
        "license of the weights": record.weights_license,
        "address": "\n".join(record.urls),
        "file": f"{record.file} ({state})" if record.file and record.usable else "",
        "note": record.note,
    }
    width = max(map(len, lines))
    print(record.name, "", sep="\n")
    for label, text in lines.items():
        for number, line in enumerate(text.split("\n") if text else ()):
            print(f"{label if number == 0 else '':<{width}}  {line}")
    if not record.usable:
        return
    manual = " --weights FILE" if needs_browser(record.urls[0]) else ""
    if record.kind == "backbone":
        print(f"\nvisionattn attention IMAGE --model {record.name}{manual}")
        print(f'timm.create_model("{record.name}", pretrained=True)')
    else:
        print(f"\nvisionattn infer IMAGES --model {record.name}{manual}")


def _count(name: str) -> int:
    import timm

    return sum(parameter.numel() for parameter in timm.create_model(name, device="meta").parameters())


def _check(found: "list[Record]") -> int:
    """Ask for every address, print a table, and return 1 if one is dead that is not known to be."""
    from visionattn.io.links import check_link, reported_dead

    names = {url: record.name for record in found for url in record.urls}
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(names, pool.map(check_link, names), strict=True))
    dead = [url for url, answer in answers.items() if not answer.ok and not reported_dead(url)]
    table = _table("Addresses", "name", "state", "answer", "address")
    for url, answer in answers.items():
        state = "ok" if answer.ok else "dead" if url in dead else "dead, as reported"
        table.add_row(names[url], state, answer.text, url)
    _console().print(table)
    print(f"\n{len(dead)} of {len(answers)} addresses do not work, besides those that were reported")
    return int(bool(dead))
