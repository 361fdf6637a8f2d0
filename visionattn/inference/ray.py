"""Predictions with Ray Data: one `Predictor` in each worker, built once.

    import ray
    from visionattn.inference.ray import predict

    images = ray.data.from_items([{"file": path} for path in paths])
    predict(images, "nuclei", workers=4, score_thr=0.5).write_parquet("predictions")

Ray restarts workers that die and gives their batches to others, so every input is in the result once. Inputs that
cannot be read have an ``error`` in their row. The package ``ray[data]`` is required.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import ConfigError, DataError, require
from visionattn.inference.bulk.parts import to_table
from visionattn.inference.bulk.run import without_index

__all__ = ["RayPredictor", "predict"]


class RayPredictor:
    """Callable for ``ray.data.Dataset.map_batches`` that predicts on batches of files or images.

    Args:
        model: a trained model by name, the folder of a training run, or an exported ``.onnx`` file.
        column: column of the inputs: paths, or images as arrays, BGR uint8 ``[H, W, 3]`` unless the option
            ``channel_order`` says otherwise. The images of ``ray.data.read_images`` are RGB.
        **options: as for `visionattn.inference.Predictor`.
    """

    def __init__(self, model: str, column: str = "file", **options: Any) -> None:
        self.column, self.predictor = column, _load(model, options)
        self.types = {"file": str, "width": int, "height": int, "seconds": float, "error": str}
        self.types |= self.predictor.job.record_types

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Return an Arrow table: the records of the predictions, and the other columns of the batch.

        Args:
            batch: arrays or lists by column, of one length.
        """
        inputs = list(batch[self.column])
        table = to_table(list(self._records(inputs)), self.types)
        for name, values in batch.items():
            if name != self.column and name not in table.column_names:
                table = table.append_column(name, [list(values)])
        return table

    def _records(self, inputs: Sequence[Any]) -> Iterator[dict[str, Any]]:
        items = [_attempt(self.predictor.job.read, item) for item in inputs]
        readable = [item for item in items if not isinstance(item, DataError)]
        try:
            found: list[Any] = self.predictor.predict(readable)
        except Exception:  # find out which of the inputs it is
            found = [_attempt(lambda item: self.predictor.predict([item])[0], item) for item in readable]
        predictions = iter(found)
        for given, item in zip(inputs, items, strict=True):
            prediction = item if isinstance(item, DataError) else next(predictions)
            record: dict[str, Any] = {"file": str(given)} if isinstance(given, (str, Path)) else {}
            if isinstance(item, np.ndarray):
                record |= {"width": item.shape[1], "height": item.shape[0]}
            if isinstance(prediction, DataError):
                yield record | {"error": str(prediction)}
            else:
                seconds = round(prediction.seconds, 5)
                yield without_index(record | {"seconds": seconds} | self.predictor.job.record(prediction, 0))


def _attempt(action: Callable[[Any], Any], item: Any) -> Any:
    """Return the result for an item, or the error as a `DataError`; an error of the config concerns all items."""
    try:
        return action(item)
    except DataError as error:
        return error
    except ConfigError:
        raise
    except Exception as error:  # for example, the image is too small for the model
        return DataError(f"prediction failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")


def _load(model: str, options: Mapping[str, Any]) -> Any:
    from visionattn.inference.predictor import Predictor
    from visionattn.zoo import known_names

    if model in known_names():
        return Predictor.from_pretrained(model, **options)
    if model.endswith(".onnx"):
        return Predictor.from_onnx(model, **options)
    return Predictor.from_run(model, **options)


def predict(
    dataset: Any, model: str, *, workers: int = 1, gpus: float = 0, batch_size: int = 32, **options: Any
) -> Any:
    """Return a ``ray.data.Dataset`` with the predictions for another.

    Args:
        dataset: a ``ray.data.Dataset``.
        model: see `RayPredictor`.
        workers: number of processes, each with its own copy of the model.
        gpus: GPUs per process; 0 predicts on the CPU.
        batch_size: rows per call.
        **options: as for `RayPredictor`.
    """
    require("ray.data")
    return dataset.map_batches(
        RayPredictor,
        fn_constructor_args=(model,),
        fn_constructor_kwargs=options,
        concurrency=workers,
        num_gpus=gpus,
        batch_size=batch_size,
    )
