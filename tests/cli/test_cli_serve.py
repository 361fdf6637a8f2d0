"""What `visionattn serve` refuses, and what it prints."""

import socket

import pytest

pytest.importorskip("mmengine")
pytest.importorskip("fastapi")

from fixtures.rectangles import RectangleModel

from visionattn import cli, errors
from visionattn.errors import MissingDependencyError
from visionattn.inference import Predictor
from visionattn.serve import models as served
from visionattn.serve.models import Limits, ServedModel


@pytest.fixture(autouse=True)
def _models(monkeypatch):
    model = ServedModel("boxes", "from_pretrained", Predictor.from_model(RectangleModel()))
    monkeypatch.setattr(served, "load_models", lambda *args: {"boxes": model})
    monkeypatch.delenv("VISIONATTN_TOKEN", raising=False)


@pytest.fixture
def started(monkeypatch) -> list:
    """Collect the servers in place of running them."""
    import uvicorn

    servers: list = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: servers.append((self.config, sockets[0])))
    return servers


def fails(capsys, *arguments: str) -> str:
    assert cli.main(["serve", *arguments]) == 1
    return capsys.readouterr().err


def test_other_addresses_require_a_token(capsys, monkeypatch, started):
    for host in ("0.0.0.0", "192.168.0.1", "::"):
        assert "environment variable VISIONATTN_TOKEN is required" in fails(capsys, "--host", host)
    monkeypatch.setenv("VISIONATTN_TOKEN", "short")
    assert "VISIONATTN_TOKEN must have at least 16 characters, got 5" in fails(capsys, "--host", "0.0.0.0")
    assert "at least 16" in fails(capsys)
    assert started == []
    monkeypatch.setenv("VISIONATTN_TOKEN", "0123456789abcdef")
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 0
    output = capsys.readouterr().out
    assert "requests need the token in VISIONATTN_TOKEN" in output
    assert "0123456789abcdef" not in output
    started[0][1].close()


def test_address(capsys, started):
    assert cli.main(["serve", "--port", "0"]) == 0
    config, listening = started[0]
    host, port = listening.getsockname()
    assert host == "127.0.0.1"
    assert f"page: http://127.0.0.1:{port}/" in capsys.readouterr().out
    assert config.proxy_headers is False
    listening.close()


def test_wrong_values(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot be used (Address already in use)" in fails(capsys, "--port", str(taken.getsockname()[1]))
    assert "--port must be in [0, 65535], got 99999" in fails(capsys, "--port", "99999")
    assert "--queue must be greater than 0, got 0" in fails(capsys, "--queue", "0")
    assert "--timeout must be greater than 0, got nan" in fails(capsys, "--timeout", "nan")
    assert "--max-files must be at most --queue, got 16 and 4" in fails(capsys, "--queue", "4")


def test_missing_packages(capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    real = errors.importlib.import_module
    monkeypatch.setattr(
        errors.importlib, "import_module", lambda name, *rest: missing(name) if name == "uvicorn" else real(name, *rest)
    )
    assert "uvicorn is not installed; run: pip install 'visionattn[serve]'" in fails(capsys)
    with pytest.raises(MissingDependencyError):
        errors.require("uvicorn", "serve")


def test_models_by_name(monkeypatch):
    monkeypatch.undo()
    found = served.load_models(["digits"], [], "cpu", Limits(max_pixels=1000))
    assert list(found) == ["digits"]
    about = found["digits"].describe()
    assert (about["task"], about["sample"], about["attention"]) == ("detection", True, True)
    assert found["digits"].predictor.options.max_pixels == 1000
    assert found["digits"].predictor_for({"score_thr": 0.9}).options.max_pixels == 1000
