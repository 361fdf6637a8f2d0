"""The files and the options of a request.

Files are written to a folder that exists only for the request, under names without special characters, and are read by
the job of the model as those of ``visionattn infer``. A request never names a file of the server.
"""

import base64
import binascii
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from visionattn.errors import DataError
from visionattn.inference.job import Job
from visionattn.serve.models import Limits

__all__ = ["AttentionFields", "PredictFields", "Upload", "given_options", "parse", "read", "request_folder"]

LONGEST_NAME = 120
MOST_LAYERS = 1000
"""Longest list of layers that is read; the model has a smaller limit, which is the number of its layers."""
SUFFIX = re.compile(r"(\.pcd)?\.[A-Za-z0-9]{1,5}$")
FILE_FIELDS = ("files", "file", "images", "image")
"""Names of the fields with files in a form; others are options."""


class PredictFields(BaseModel):
    """Fields of a request for predictions, apart from the files."""

    model_config = ConfigDict(extra="allow")  # numbers of the job, which `ServedModel.predictor_for` checks

    model: str | None = Field(None, description="name of the model; by default the only or first one")
    score_thr: float | dict[str, float] | None = Field(
        None, description="discard detections with a lower score; an object has thresholds by class"
    )
    tile: int | Literal["auto"] | None = Field(None, description="cut larger images into tiles of that side in pixels")
    overlap: int | None = Field(None, description="overlap of tiles in pixels")
    tta: bool | None = Field(None, description="also predict on mirrored images, and merge")
    scales: list[float] | None = Field(None, description="predict at these multiples of the test size, and merge")
    opacity: float | None = Field(None, description="opacity of masks and maps in overlays")
    line_width: int | None = Field(None, description="line width in overlays in pixels")
    hide_labels: bool | None = Field(None, description="draw no names and scores in overlays")
    overlay: bool = Field(False, description="add the prediction drawn on the input, as a data URL")
    maps: bool = Field(True, description="add per-pixel results, as data URLs of PNG images")
    preview: bool = Field(False, description="add the input as it was read, as a data URL")
    view: bool = Field(False, description="add the address of a page with a 3-D view of a point cloud")

    @field_validator("scales", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:  # runs after the validator below
        return value if value is None or isinstance(value, list) else [value]

    @field_validator("score_thr", "scales", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Read JSON in a field of a form, or numbers separated by spaces or commas."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith(("{", "[")):
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError("is not valid JSON") from error
        parts = value.replace(",", " ").split()
        return parts if len(parts) > 1 else value


class AttentionFields(BaseModel):
    """Fields of a request for attention maps, apart from the file."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="name of the model; by default the only or first one")
    x: float = Field(description="column of the query in pixels of the image")
    y: float = Field(description="row of the query in pixels of the image")
    layers: list[int] | None = Field(
        None, description="indices of the attention layers; by default all", max_length=MOST_LAYERS
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value


@dataclass(frozen=True)
class Upload:
    """One file of a request.

    Attributes:
        label: its name in answers.
        stem, suffix: parts of the name, with letters, digits and underscores only; the suffix may be empty.
        content: the bytes.
    """

    label: str
    stem: str
    suffix: str
    content: bytes

    @classmethod
    def named(cls, name: str | None, number: int, content: bytes) -> "Upload":
        """Return an upload; only the last part of the name is used, and only in answers."""
        label = re.split(r"[\\/]", name or "")[-1]
        label = "".join(c for c in label if c.isprintable())[-LONGEST_NAME:] or f"file {number}"
        found = SUFFIX.search(label)
        suffix = found[0] if found else ""
        stem = re.sub(r"[^A-Za-z0-9]+", "_", label.removesuffix(suffix)) or "file"
        return cls(label, stem, suffix.lower(), content)


def given_options(fields: PredictFields) -> dict[str, Any]:
    """Return the options of a request for `ServedModel.predictor_for`."""
    about = {"model", "overlay", "maps", "preview", "view"}
    return {name: value for name, value in fields.model_dump(exclude=about).items() if value is not None}


async def parse(request: Request, fields: type[BaseModel], limits: Limits) -> tuple[BaseModel, list[Upload]]:
    """Read a request: a multipart form with files, or JSON with base64 texts.

    Raises:
        HTTPException: 413 for too many files, 415 for another type, 422 for malformed content.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        given, uploads = await _form(request, limits)
    elif kind == "application/json":
        given, uploads = _json(await request.body(), limits)
    else:
        raise HTTPException(
            415,
            f"send multipart/form-data with files, or application/json with base64 texts, not {kind[:80] or 'nothing'}",
        )
    if not uploads:
        raise HTTPException(422, 'no file given; add one as the field "files" of a form, or to "images" in JSON')
    try:
        return fields.model_validate(given), uploads
    except ValidationError as error:
        raise HTTPException(422, problem(error)) from error


async def _form(request: Request, limits: Limits) -> tuple[dict[str, Any], list[Upload]]:
    try:
        form = await request.form(max_files=limits.max_files, max_fields=64)
    except HTTPException as error:
        if error.status_code != 400:  # the body is too large
            raise
        many = "Too many files" in str(error.detail)
        text = f"more than {limits.max_files} files" if many else f"the form is malformed ({error.detail})"
        raise HTTPException(413 if many else 422, text) from error
    given: dict[str, Any] = {}
    uploads: list[Upload] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                uploads.append(Upload.named(value.filename, len(uploads) + 1, await value.read()))
            elif name in FILE_FIELDS:
                raise HTTPException(422, f'the field "{name}" must be a file with a name, not text')
            else:
                given[name] = f"{given[name]} {value}" if name in given else value
    finally:
        await form.close()
    return {name: value for name, value in given.items() if value != ""}, uploads


def _json(body: bytes, limits: Limits) -> tuple[dict[str, Any], list[Upload]]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the request is not valid JSON ({' '.join(str(error).split())[:120]})") from error
    images = content.pop("images", []) if isinstance(content, dict) else None
    if not isinstance(images, list):
        got = f", got {json.dumps(content)[:80]}" if not isinstance(content, dict) else ""
        raise HTTPException(422, f'the JSON content must be an object with a list "images"{got}')
    if len(images) > limits.max_files:
        raise HTTPException(413, f"more than {limits.max_files} files")
    uploads = []
    for number, entry in enumerate(images, 1):
        entry = {"data": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
            raise HTTPException(422, f'images.{number - 1} must be a base64 text, or an object with "name" and "data"')
        if not isinstance(entry.get("name", ""), str):
            raise HTTPException(422, f"images.{number - 1}.name must be text")
        data = entry["data"]
        if data.startswith("data:"):
            data = data.partition(",")[2]
        try:
            decoded = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise HTTPException(422, f"images.{number - 1} is not valid base64 ({error})") from error
        uploads.append(Upload.named(entry.get("name"), number, decoded))
    return content, uploads


def problem(error: ValidationError) -> str:
    """Return the first problem of the fields of a request in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"][:1])[:80]
    text = first["msg"].removeprefix("Value error, ")
    return f"`{where}`: {text[:1].lower()}{text[1:]}"


@contextmanager
def request_folder() -> Iterator[Path]:
    """Create a folder that exists in the block."""
    folder = Path(tempfile.mkdtemp(prefix="visionattn-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read(job: Job, folder: Path, upload: Upload) -> Any:
    """Write an upload to a new folder and return the item that the job reads from it.

    Raises:
        DataError: the file cannot be read; the message names the upload.
    """
    folder.mkdir()
    path = folder / f"{upload.stem}{upload.suffix}"
    path.write_bytes(upload.content)
    try:
        return job.read(path)
    except DataError as error:
        raise type(error)(str(error).replace(str(path), upload.label)) from error
