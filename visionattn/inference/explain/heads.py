"""Importance of attention heads: what changes when heads are removed.

Several measures, of a head removed alone and of all others of its layer removed, as in the visual analytics of ViTs by
Li et al. (arXiv 2303.13731).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from visionattn.inference.explain.attention import AttentionCall, intercept_attention

__all__ = ["MEASURES", "REMOVED", "head_importance", "predict"]

MEASURES = ("probability", "divergence", "cosine")
"""Decrease of the probability of a class; Jensen-Shannon divergence of the class probabilities, in bits; and 1 - cosine
similarity of the features before the classifier (the class token, or the features after pooling)."""
REMOVED = ("head", "others")
"""What is removed: one head, or all other heads of its layer."""


def predict(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the features before the classifier ``[N]``, and the class probabilities ``[classes]`` if there are any."""
    if not hasattr(model, "forward_head"):
        return model(image).flatten(), None
    found = model.forward_features(image)
    features = model.forward_head(found, pre_logits=True).flatten()
    if not getattr(model, "num_classes", 0):
        return features, None
    return features, model.forward_head(found).softmax(-1).flatten()


def head_importance(
    model: nn.Module, image: Tensor, label: int | None = None, removed: Sequence[str] = REMOVED
) -> list[Tensor]:
    """Measure the effect of removing heads, that is of setting their outputs to zero.

    A forward pass for each head and each of `removed` computes only the modules that follow it.

    Args:
        model: backbone in eval mode.
        image: ``[1, C, H, W]``.
        label: the class whose probability is measured; None is the top class.
        removed: which of `REMOVED` to measure.

    Returns:
        ``[heads, len(removed), len(MEASURES)]`` for each attention call; NaN for measures that need a classifier if
        there is none.
    """
    found = []
    with torch.no_grad():
        earlier, remover = _Earlier(model, image), _Remover()
        with intercept_attention(model, image, remover):
            for index, call in enumerate(earlier.calls):
                effects = torch.zeros(call.heads, len(removed), len(MEASURES))
                with earlier.reused(index):
                    for head in range(call.heads):
                        others = [other for other in range(call.heads) if other != head]
                        for column, what in enumerate(removed):
                            remover.choose(earlier.keys[index], [head] if what == "head" else others)
                            effects[head, column] = _compare(earlier.outputs, predict(model, image), label)
                found.append(effects)
    return found


class _Remover:
    """Set the outputs of the chosen heads to zero, see `intercept_attention`."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._key, self._heads = ("", 0), torch.zeros(0, dtype=torch.long)

    def choose(self, key: tuple[str, int], heads: Sequence[int]) -> None:
        """Choose the heads to remove in the next forward pass.

        Args:
            key: name of the attention module, and the number of its earlier calls in the forward pass.
            heads: indices of the heads.
        """
        self._seen.clear()
        self._key, self._heads = key, torch.tensor(heads, dtype=torch.long)

    def __call__(self, call: AttentionCall, out: Tensor, heads_axis: int) -> Tensor:
        key = (call.name, self._seen[call.name])
        self._seen[call.name] += 1
        return out.index_fill(heads_axis, self._heads.to(out.device), 0.0) if key == self._key else out


def _compare(before: tuple[Tensor, Tensor | None], after: tuple[Tensor, Tensor | None], label: int | None) -> Tensor:
    cosine = 1 - torch.cosine_similarity(before[0].double(), after[0].double(), 0)
    if before[1] is None or after[1] is None:
        return torch.stack([cosine.new_tensor(float("nan"))] * 2 + [cosine]).float().cpu()
    p, q = before[1].double(), after[1].double()
    index = int(p.argmax()) if label is None else label
    mean = (p + q) / 2
    divergence = sum(torch.special.xlogy(x, x / mean.clamp(min=1e-300)).sum() for x in (p, q)) / 2
    return torch.stack([p[index] - q[index], divergence / torch.log(p.new_tensor(2.0)), cosine]).float().cpu()


class _Earlier:
    """A forward pass, and the outputs of the modules that ended before each attention call.

    Attributes:
        calls: the attention calls.
        keys: of the calls: the name of the module, and the number of its earlier calls.
        outputs: of `predict`.
    """

    def __init__(self, model: nn.Module, image: Tensor):
        self.calls: list[AttentionCall] = []
        self.keys: list[tuple[str, int]] = []
        self._modules = dict(model.named_modules())
        self._ended: dict[str, list[tuple[int, Tensor]]] = {}
        self._times: list[int] = []
        time = 0

        def end(name: str, output: object) -> None:
            nonlocal time
            time += 1
            kept = output.clone() if isinstance(output, Tensor) else None  # it may be changed in place
            self._ended.setdefault(name, []).append((time, kept))

        def keep(call: AttentionCall, out: Tensor, heads_axis: int) -> Tensor:
            self.keys.append((call.name, sum(name == call.name for name, _ in self.keys)))
            self.calls.append(call)
            self._times.append(time)
            return out

        handles = [
            module.register_forward_hook(lambda m, inputs, output, name=name: end(name, output))
            for name, module in self._modules.items()
        ]
        try:
            with intercept_attention(model, image, keep):
                self.outputs = predict(model, image)
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def reused(self, index: int) -> Iterator[None]:
        """Let modules that ended before a call return what they returned then, if they are called only once."""
        found: dict[str, Tensor] = {}
        for name in self._modules:  # parents come before their children
            ends = self._ended.get(name, [])
            if len(ends) == 1 and ends[0][0] <= self._times[index] and ends[0][1] is not None:
                parents = name.split(".")
                if not any(".".join(parents[:n]) in found for n in range(len(parents))):
                    found[name] = ends[0][1]
        with ExitStack() as stack:
            for name, output in found.items():
                again = mock.patch.object(self._modules[name], "forward", lambda *a, output=output, **k: output.clone())
                stack.enter_context(again)
            yield
