"""The routes of the server."""

import asyncio
import functools
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from visionattn import __version__
from visionattn.errors import (
    ConfigError,
    DataError,
    FormatError,
    LimitError,
    OutOfMemoryError,
    VisionattnError,
    summary,
)
from visionattn.inference.heatmap import color_bar
from visionattn.inference.writing import encode_png, to_json
from visionattn.serve import schema
from visionattn.serve.attention import AttentionMaps
from visionattn.serve.guard import CONTENT_POLICY, RETRY_AFTER, Guard
from visionattn.serve.models import Limits, ServedModel, check_passes
from visionattn.serve.records import build_record, describe_answer
from visionattn.serve.uploads import AttentionFields, PredictFields, Upload, given_options, parse, read, request_folder
from visionattn.serve.worker import BusyError, Worker

__all__ = ["create_app"]

T = TypeVar("T")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
KEPT_VIEWS = 8
ECHOED = 80
"""Most characters of a value of a request in a message."""
CHECKED = 0.5
"""Seconds after which a waiting request is checked for a client that has gone."""
VIEW_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; sandbox allow-scripts; " \
    "frame-ancestors 'self'"  # fmt: skip
ERRORS = {
    401: "the token is missing or wrong", 403: "the request is of a page from elsewhere",
    413: "too many bytes, pixels or files", 415: "the type of the request or of a file is not supported",
    422: "an option is invalid, or a file is damaged", 503: "the queue is full; try again after Retry-After seconds",
    504: "the time limit was exceeded",
}  # fmt: skip
DESCRIBED: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Error, "description": text} for status, text in ERRORS.items()
}


class Server:
    """The models, the threads and the stored pages of a server.

    Args:
        models: the models by name.
        limits: the limits of requests.
    """

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.worker = Worker(limits.queue)
        self.attention = AttentionMaps()
        self.reading = asyncio.Semaphore(2 * limits.batch_size)
        self.views: OrderedDict[str, str] = OrderedDict()
        self.readers = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), "visionattn-reader")

    def close(self) -> None:
        """End the threads."""
        self.worker.stop()
        self.readers.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, action: Callable[..., T], *args: Any) -> T:
        """Return the result of a function that takes long, without delaying other requests."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, functools.partial(action, *args))

    def model(self, name: str | None) -> ServedModel:
        """Return a model by name, or the first one.

        Raises:
            ConfigError: there is none of this name.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ConfigError(f"`model` must be one of {', '.join(self.models)}, got {name!r:.80}")
        return self.models[name]

    def keep_view(self, page: str) -> str:
        """Store a page, and return its address."""
        name = secrets.token_urlsafe(16)
        self.views[name] = page
        while len(self.views) > KEPT_VIEWS:
            self.views.popitem(last=False)
        return f"views/{name}"

    async def predict(self, request: Request) -> str:
        """Return the answer to a request for predictions as JSON."""
        fields, uploads = await parse(request, PredictFields, self.limits)
        return await _while_connected(request, self._predict(fields, uploads))

    async def _predict(self, fields: PredictFields, uploads: list[Upload]) -> str:
        served = self.model(fields.model)
        wanted = fields.model_dump(include={"overlay", "maps", "preview", "view"})
        with self.worker.admit(len(uploads)):
            predictor = await self.in_thread(served.predictor_for, given_options(fields))
            limit = min(predictor.options.batch_size, predictor.job.max_batch_size)

            async def one(index: int, upload: Upload) -> str | Exception:
                try:
                    async with self.reading:  # bounds the memory of decoded images
                        item = await self.in_thread(read, predictor.job, folder / str(index), upload)
                        check_passes(predictor, item)
                        future = self.worker.submit(id(predictor), predictor.predict, item, limit)
                        prediction = await asyncio.wrap_future(future)
                        return await self.in_thread(
                            build_record, predictor, item, prediction, index, upload.label, wanted, self.keep_view
                        )
                except (VisionattnError, BusyError) as error:
                    return error
                except Exception as error:  # for example, the image is too small for the model
                    return VisionattnError(f"{upload.label}: prediction failed ({_reason(error)})")

            with request_folder() as folder:  # until the end, as models of videos read them
                found = await asyncio.gather(*(one(index, upload) for index, upload in enumerate(uploads)))
        errors = [entry for entry in found if isinstance(entry, Exception)]
        general = [entry for entry in errors if isinstance(entry, (BusyError, ConfigError))]
        if general or len(errors) == len(found):
            raise (general or errors)[0]
        key = f"{predictor.job.records.removesuffix('s')}_id"
        records = [
            to_json({key: index, "file": uploads[index].label, "error": str(entry)})
            if isinstance(entry, Exception)
            else entry
            for index, entry in enumerate(found)
        ]
        head = to_json(describe_answer(served.name, predictor))
        return f"{head[:-1]}, {to_json(predictor.job.records)}: [{', '.join(records)}]}}"

    async def attend(self, request: Request) -> str:
        """Return the answer to a request for attention maps as JSON."""
        fields, uploads = await parse(request, AttentionFields, self.limits)
        return await _while_connected(request, self._attend(fields, uploads))

    async def _attend(self, fields: AttentionFields, uploads: list[Upload]) -> str:
        if len(uploads) > 1:
            raise HTTPException(422, f"one file is required, got {len(uploads)}")
        served = self.model(fields.model)
        with self.worker.admit(1), request_folder() as folder:
            if not served.attends:
                raise ConfigError(f"the model {served.name} does not support attention maps")
            item = await self.in_thread(read, served.predictor.job, folder / "0", uploads[0])

            def run(images: Any) -> list[dict[str, Any]]:
                return [self.attention.maps(served, image, fields.x, fields.y, fields.layers) for image in images]

            try:
                found = await asyncio.wrap_future(self.worker.submit(object(), run, item))
            except (VisionattnError, BusyError):
                raise
            except Exception as error:
                raise VisionattnError(f"{uploads[0].label}: attention failed ({_reason(error)})") from error
        return to_json({"model": served.name, **found})

    async def timed(self, action: Callable[[Request], Any], request: Request) -> Response:
        """Return the answer to a request, or an error after the time limit."""
        try:
            text = await asyncio.wait_for(action(request), self.limits.timeout)
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise HTTPException(504, f"the request took more than {self.limits.timeout:g} seconds") from error
        except BusyError as error:
            text = f"{self.worker.admitted} of {self.worker.capacity} places in the queue are taken; try again later"
            raise HTTPException(503, text, RETRY_AFTER) from error
        except ClientDisconnect as error:  # nobody receives the answer
            raise HTTPException(499, "the client has gone") from error
        return Response(text, media_type="application/json")


async def _while_connected(request: Request, action: Coroutine[Any, Any, T]) -> T:
    """Return the result of an action, or cancel it when the client has gone; the body must have been read."""
    task = asyncio.ensure_future(action)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=CHECKED)
            if not task.done() and await request.is_disconnected():
                raise HTTPException(499, "the client has gone")
        return task.result()
    finally:
        task.cancel()


def _reason(error: Exception) -> str:
    """Return the message of an error of another library without paths, such as those where OpenCV was built."""
    return " ".join(word for word in summary(error).split() if "/" not in word and "\\" not in word)[:200]


def _shorten(text: str) -> str:
    """Return a message in one line in which the values of the request have at most `ECHOED` characters."""
    text = " ".join(text.split())
    for pattern in (rf"'[^']{{{ECHOED},}}'", rf"\S{{{ECHOED + 1},}}"):
        text = re.sub(pattern, lambda found: f"{found[0][: ECHOED - 4]} ...", text)
    return text


def _status(error: Exception) -> int:
    if isinstance(error, (LimitError, OutOfMemoryError)):
        return 413
    if isinstance(error, FormatError):
        return 415
    return 422 if isinstance(error, (DataError, ConfigError)) else 500


def _page_files() -> dict[str, tuple[bytes, str]]:
    """Return the content and the type of each file of the page."""
    folder = resources.files("visionattn.serve").joinpath("page")
    found = {file.name: file for file in folder.iterdir() if file.is_file()}
    kinds = {name: TYPES.get(name[name.rfind(".") :]) for name in found}
    files = {name: (file.read_bytes(), f"{kinds[name]}; charset=utf-8") for name, file in found.items() if kinds[name]}
    return files | {"colors.png": (encode_png(color_bar(256, 1)), "image/png")}


def create_app(models: Mapping[str, ServedModel], limits: Limits, host: str = "127.0.0.1", token: str = "") -> FastAPI:
    """Return the application.

    Args:
        models: the models by name, see `visionattn.serve.models.load_models`.
        limits: limits of requests.
        host: address that the server listens on.
        token: token that requests need; an empty text for none.
    """
    server = Server(models, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        server.close()

    app = FastAPI(title="visionattn", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.server = server
    app.add_middleware(Guard, host=host, token=token, max_bytes=limits.max_bytes)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": _shorten(str(error.detail))}, error.status_code, error.headers)

    @app.exception_handler(VisionattnError)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": _shorten(str(error))}, _status(error))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"unexpected {type(error).__name__}; see the output of the server"}, 500)

    @app.get("/health", response_model=schema.Health)
    async def health() -> dict[str, Any]:
        """Return the state of the server."""
        waiting = server.worker.admitted
        return {"status": "ok", "version": __version__, "waiting": waiting, "capacity": limits.queue}

    @app.get("/models", response_model=list[schema.ModelInfo])
    async def list_models() -> list[dict[str, Any]]:
        """Return the models, with their classes and options; the first one is the default."""
        return [model.describe() for model in models.values()]

    @app.post(
        "/predict",
        responses={200: {"model": schema.Predictions}, **DESCRIBED},
        openapi_extra={"requestBody": schema.body_of(PredictFields, several=True)},
    )
    async def predict(request: Request) -> Response:
        """Predict on files. If only some of them cannot be read, their records have an ``error``."""
        return await server.timed(server.predict, request)

    @app.post(
        "/attention",
        responses={200: {"model": schema.Attention}, **DESCRIBED},
        openapi_extra={"requestBody": schema.body_of(AttentionFields, several=False)},
    )
    async def attention(request: Request) -> Response:
        """Return where the backbone attends from a position of an image, for each layer and head."""
        return await server.timed(server.attend, request)

    @app.get("/samples/{name}", response_class=Response)
    async def sample(name: str) -> Response:
        """Return an image of the package to try a model on."""
        path = models[name].sample if name in models else None
        if path is None:
            raise HTTPException(404, f"there is no sample for {name[:80]!r}")
        return Response(path.read_bytes(), media_type=f"image/{path.suffix[1:].replace('jpg', 'jpeg')}")

    @app.get("/views/{name}", response_class=Response)
    async def view(name: str) -> Response:
        """Return a page with a 3-D view of a point cloud; only the latest ones are kept."""
        if name not in server.views:
            raise HTTPException(404, "this view is not stored any longer; predict again")
        headers = {"content-security-policy": VIEW_POLICY}
        return Response(server.views[name], media_type="text/html", headers=headers)

    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    files = _page_files()

    @app.get("/", include_in_schema=False)
    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str = "index.html") -> Response:
        if name not in files:
            raise HTTPException(404, f"there is no file {name[:80]!r}")
        content, kind = files[name]
        headers = {"content-security-policy": CONTENT_POLICY, "cache-control": "no-cache"}
        return Response(content, media_type=kind, headers=headers)
