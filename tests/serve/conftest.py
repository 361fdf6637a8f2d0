"""Servers with models that find red and blue rectangles."""

import io
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import timm
import torch
from fixtures.rectangles import RectangleModel
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("mmdet")

from fastapi.testclient import TestClient

from visionattn.inference import Predictor
from visionattn.serve.app import create_app
from visionattn.serve.models import Limits, ServedModel


class SlowModel(RectangleModel):
    """Waits until it is released; `started` is set when a call begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.started, self.released = threading.Event(), threading.Event()

    def predict(self, images: list[np.ndarray], scale: float = 1.0) -> list[dict]:
        self.started.set()
        assert self.released.wait(20)
        return super().predict(images, scale)


class AttentionModel(RectangleModel):
    """With a small transformer as its backbone, which sees images of 64 x 64 pixels."""

    def __post_init__(self):
        super().__post_init__()
        torch.manual_seed(0)
        sizes = dict(img_size=64, patch_size=16, embed_dim=12, depth=2, num_heads=3, num_classes=0)
        self.model.backbone = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
        self.forward_passes = 0

    def image_tensor(self, image, scale=1.0):
        self.forward_passes += 1
        return torch.from_numpy(image[:64, :64].copy()).permute(2, 0, 1)[None].float() / 255


def png(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Return a BGR image as a file."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def as_png() -> Callable[..., bytes]:
    return png


@pytest.fixture
def slow_model() -> SlowModel:
    return SlowModel()


@pytest.fixture
def attention_model() -> AttentionModel:
    return AttentionModel(with_masks=True)


@pytest.fixture
def serve() -> Iterator[Callable[..., TestClient]]:
    """Start a server for models by name, and return a client for it."""
    clients: list[TestClient] = []

    def start(models: dict, limits: Limits | None = None, host: str = "127.0.0.1", token: str = "") -> TestClient:
        limits = limits or Limits()
        options = {"max_pixels": limits.max_pixels, "batch_size": limits.batch_size}
        served = {
            name: ServedModel(name, "from_pretrained", Predictor.from_model(model, **options))
            for name, model in models.items()
        }
        client = TestClient(create_app(served, limits, host, token), base_url="http://localhost:8000")
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def serve_http(serve) -> Iterator[Callable[[dict], int]]:
    """Start a server for models by name that listens on loopback, and return its port."""
    import uvicorn

    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(models: dict) -> int:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(serve(models).app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        running.append((server, thread))
        return listening.getsockname()[1]

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
