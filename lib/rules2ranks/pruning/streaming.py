"""A model larger than memory: run, and pruned, from its files, one decoder layer at a time.

    model = Streamed(folder, "bfloat16")
    scores = model.importance(batch, loss, "flap")
    model.prune(plan(model.skeleton, scores, 0.3), out)

Memory holds the embeddings, one layer, and what goes through it. Gradients would need all layers at once, so importance
is what activations show: FLAP's or Wanda's.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from rules2ranks import checkpoints, importance
from rules2ranks.calibration import Loss, Moments, Positions, collect
from rules2ranks.decoders import decoder_layers, groups
from rules2ranks.importance import Means, Scores
from rules2ranks.models import Dtype, causal_lm_skeleton
from rules2ranks.pruning import files
from rules2ranks.pruning.plans import Plan
from rules2ranks.pruning.slicing import check_plan, sliced


class Streamed:
    """A causal language model in a folder, whose layers are read when they run and given up afterwards.

    `skeleton` is the model: its parameters are on "meta" but within `running`, where it computes as any other, on
    `device`. A folder that `pruning.save_pruned` or `prune` wrote will do, too.

    Raises:
        ValueError, OSError: as `models.load_causal_lm` of the configuration, or `pruning.skeleton` of a pruned folder.
    """

    def __init__(self, folder: str | Path, dtype: Dtype | None = None, device: torch.device | str = "cpu"):
        self.folder, self.device = Path(folder), torch.device(device)
        pruned = (self.folder / files.ABOUT).is_file()
        self.skeleton = files.skeleton(self.folder) if pruned else causal_lm_skeleton(folder, dtype or "float32")
        self.skeleton.eval().requires_grad_(False)
        self.layers = decoder_layers(self.skeleton)
        self._dtype = getattr(torch, dtype) if dtype else self.skeleton.dtype
        self._homes = self._found()

    def read(self, name: str) -> Tensor:
        """A tensor by its name in the model, in the type asked for.

        Raises:
            ValueError: the files have none of that name.
        """
        if name not in self._homes:
            raise ValueError(f"{self.folder} holds no tensor {name}, which its config.json calls for")
        file, known = self._homes[name]
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(known).to(self.device, self._dtype)

    def _found(self) -> dict[str, tuple[Path, str]]:
        """Where each of the model's tensors is: a file, and the name there, which transformers may have changed."""
        model = self.skeleton
        renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
        state, found = model.state_dict(), {}
        for file in checkpoints.weights(self.folder):
            with safe_open(file, "pt") as tensors:
                for known in tensors.keys():
                    name, _ = rename_source_key(known, renamings, [], model.base_model_prefix, state)
                    found[name] = file, known
        return found

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        """The model, able to compute: embeddings and head are there, and each layer while it runs."""
        model, of_layers = self.skeleton, set()
        for name, layer in self.layers.items():
            of_layers |= {f"{name}.{path}" for path, _ in layer.named_parameters()}
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self.device)
        with ExitStack() as stack:
            stack.callback(model.tie_weights)  # what was tied is so again
            stack.callback(_empty, model)
            self._fill(model, "", [name for name, _ in model.named_parameters() if name not in of_layers])
            model.tie_weights()
            for name, layer in self.layers.items():
                stack.enter_context(layer.register_forward_pre_hook(lambda *_, name=name: self._read_layer(name)))
                stack.enter_context(layer.register_forward_hook(lambda layer, args, output: _empty(layer)))
            yield model

    @contextmanager
    def loaded(self, name: str) -> Iterator[nn.Module]:
        """One layer with its values."""
        try:
            self._read_layer(name)
            yield self.layers[name]
        finally:
            _empty(self.layers[name])

    def importance(self, batch: Any, loss: Loss, kind: str = "flap", *, positions: Positions | None = None) -> Scores:
        """What `pruning.importance` gives for one batch, by a measure of activations; `loss` may return anything.

        Raises:
            ValueError: the measure needs something else than activations; or as `pruning.importance`.
        """
        measure = importance.MEASURES.get(kind)
        if measure is None or measure.needs != "activations":
            known = [name for name, each in importance.MEASURES.items() if each.needs == "activations"]
            raise ValueError(f"from disk importance must be of activations ({' or '.join(known)}), got {kind!r}")
        with self.running() as model:
            parts = [part for layer in groups(model) for part in layer.parts]
            moments = collect(model, [part.output.module for part in parts], Moments, [batch], loss, positions)
        scores, seen = [], iter(moments)
        for name in self.layers:
            with self.loaded(name) as layer:
                scores += [importance.of_inputs(measure, part, next(seen)) for part in groups(layer)[0].parts]
        return Scores(kind, scores[0::2], scores[1::2], importance.means(moments))

    def block_importance(self, batch: Any, loss: Loss, *, positions: Positions | None = None) -> list[float]:
        """What `pruning.block_importance` gives for one batch."""
        with self.running() as model:
            return importance.block_importance(model, [batch], loss, positions=positions)

    def evaluated(self, scores: Callable[[nn.Module], Any]) -> Any:
        """What `scores` says of the model: a pass over the files for each time that it runs."""
        with self.running() as model, torch.no_grad():
            return scores(model)

    def prune(self, plan: Plan, folder: str | Path, *, means: Means | None = None) -> None:
        """Write what `pruning.prune` with this plan leaves, a file a layer, as `pruning.save_pruned` writes it in one.

        The skeleton has the pruned shapes afterwards, and can only be looked at.

        Raises:
            ValueError: the plan or the means were made for other shapes.
        """
        check_plan(self.skeleton, plan)
        folder, written = Path(folder), {}
        folder.mkdir(parents=True, exist_ok=True)
        of_layers = {f"{name}.{path}" for name, layer in self.layers.items() for path in layer.state_dict()}
        rest = [name for name in files.weights_of(self.skeleton) if name not in of_layers]
        buffers = dict(self.skeleton.named_buffers())
        shards = [*self.layers, None]
        for number, name in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = (
                self._cut(name, plan, means)
                if name
                else {n: buffers[n] if n in buffers else self.read(n) for n in rest}
            )
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(tensors, folder / file, metadata={"format": "pt"})
            written |= dict.fromkeys(tensors, file)
        files.write_about(self.skeleton, folder)
        files.write_index(folder, written)

    def _cut(self, name: str, plan: Plan, means: Means | None) -> dict[str, Tensor]:
        """The tensors of a layer without what is to go; in its place comes the cut one, without values."""
        number = list(self.layers).index(name)
        own = Plan(plan.ratio, plan.removed, plan.spread, (plan.layers[number],))
        mean = means and Means([means.attention[number]], [means.channels[number]])
        with self.loaded(name) as layer:
            cut = sliced(layer, own, mean)
        tensors = {f"{name}.{key}": tensor for key, tensor in cut.state_dict().items()}
        self.skeleton.set_submodule(name, cut)
        self.layers[name] = cut
        _empty(cut)
        return tensors

    def _read_layer(self, name: str) -> None:
        layer = self.layers[name]
        self._fill(layer, f"{name}.", [path for path, _ in layer.named_parameters()])

    def _fill(self, module: nn.Module, prefix: str, paths: list[str]) -> None:
        for path in paths:
            place, _, leaf = path.rpartition(".")
            owner, tensor = module.get_submodule(place), self.read(prefix + path)
            if tensor.shape != (wanted := getattr(owner, leaf).shape):
                raise ValueError(
                    f"{self.folder}: {prefix}{path} is {tuple(tensor.shape)}, config.json calls for {tuple(wanted)}"
                )
            setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))


def _empty(module: nn.Module) -> None:
    """Give up a module's values; its shapes stay."""
    for path, parameter in list(module.named_parameters()):
        place, _, leaf = path.rpartition(".")
        setattr(module.get_submodule(place), leaf, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
