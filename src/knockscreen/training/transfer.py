"""Starting from a checkpoint trained on other data: what fits is carried over, by name.

Genes are matched by Ensembl id, targets by id, context levels by name; tensors whose shape is the
same are copied whole; everything else keeps its fresh start. What was carried over is reported.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from knockscreen import checkpoint
from knockscreen.data.cells import Vocabulary
from knockscreen.errors import CheckpointError
from knockscreen.models.vae import VaeSettings
from knockscreen.names import is_decoy


@dataclass
class Start:
    """Tensors to start from, and which rows of which table they fill."""

    tensors: dict[str, Tensor]
    rows: dict[str, tuple[list[int], list[int]]]
    """Table name -> (rows here, rows there)."""
    report: str = ""

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Copy into ``model`` what fits, and complete the report."""
        state = model.state_dict()
        whole = 0
        for name, value in self.tensors.items():
            if name not in state:
                continue
            if name in self.rows:
                here, there = self.rows[name]
                if state[name].shape[1:] == value.shape[1:] and here:
                    state[name][here] = value[there].to(state[name])
            elif state[name].shape == value.shape:
                state[name].copy_(value)
                whole += 1
        self.report = f"{self.report}; {whole} of {len(state)} tensors carried over whole"


def shared_rows(here: tuple[str, ...], there: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Return the positions of the names that both lists have, here and there.

    Decoys are made of other cells in each training, whatever their names.
    """
    place = {name: i for i, name in enumerate(there) if not is_decoy(name)}
    pairs = [(i, place[name]) for i, name in enumerate(here) if name in place]
    return [a for a, _ in pairs], [b for _, b in pairs]


def read_vae(path: Path | str, vocabulary: Vocabulary, settings: VaeSettings) -> Start:
    """Return what a VAE checkpoint has for this panel.

    Raises
    ------
    CheckpointError
        No gene in common, or another size.
    """
    tensors, about = checkpoint.load(path, "vae")
    trained = checkpoint.read_vocabulary(about)
    here, there = shared_rows(vocabulary.gene_ids, trained.gene_ids)
    if not here:
        msg = (
            f"{path} has no gene in common with the panel: its first is '{trained.gene_ids[0]}', "
            f"the panel's '{vocabulary.gene_ids[0]}'; set vae.init_from to a checkpoint of the "
            "same kind of gene ids, or to null."
        )
        raise CheckpointError(msg)
    width = tensors["gene_table.weight"].shape[1]
    if width != settings.size.width:
        msg = f"{path} has width {width}, this VAE {settings.size.width}; set vae.size alike."
        raise CheckpointError(msg)
    tensors = {n: value for n, value in tensors.items() if not n.startswith("linear.")}
    table = ([0, *(i + 1 for i in here)], [0, *(i + 1 for i in there)])
    report = f"{len(here)} of {len(vocabulary.gene_ids)} genes found in {path}"
    if settings.linear:
        report += "; the linear part of the cells is fitted anew"
    return Start(tensors, {"gene_table.weight": table, "log_theta.weight": table}, report)


class FlowStart(Start):
    """What a flow checkpoint has for this vocabulary.

    Raises
    ------
    CheckpointError
        Its network learned another part of the velocity (``flow.gaussian``).
    """

    def __init__(self, path: Path | str, vocabulary: Vocabulary, *, gaussian: bool) -> None:
        tensors, about = checkpoint.load(path, "flow")
        if about["settings"].get("gaussian", False) != gaussian:
            had = str(not gaussian).lower()
            msg = (
                f"{path} was trained with flow.gaussian {had}, so that its network means something "
                f"else; set flow.gaussian to {had}, or train without flow.init_from."
            )
            raise CheckpointError(msg)
        trained = checkpoint.read_vocabulary(about)
        net = {
            name[4:]: value
            for name, value in tensors.items()
            if name.startswith("net.") and not name.startswith("net.gaussians.")
        }
        tables = {name: net.pop(name) for name in list(net) if name.startswith("factors.")}
        targets = shared_rows(vocabulary.target_ids, trained.target_ids)
        rows = {"target.weight": _with_null(targets, vocabulary.target_ids, trained.target_ids)}
        found = 0
        for k, factor in enumerate(vocabulary.factors):
            if factor in trained.factors:
                j = trained.factors.index(factor)
                here, there = vocabulary.levels[k], trained.levels[j]
                levels = shared_rows(here, there)
                net[f"factors.{k}.weight"] = tables[f"factors.{j}.weight"]
                rows[f"factors.{k}.weight"] = _with_null(levels, here, there)
                found += len(levels[0])
        report = (
            f"{len(targets[0])} of {len(vocabulary.target_ids)} targets and "
            f"{found} context levels found in {path}"
        )
        super().__init__(net, rows, report)


def _with_null(
    pairs: tuple[list[int], list[int]], here: tuple[str, ...], there: tuple[str, ...]
) -> tuple[list[int], list[int]]:
    """Return pairs of rows with the last rows, the nulls, added."""
    return [*pairs[0], len(here)], [*pairs[1], len(there)]
