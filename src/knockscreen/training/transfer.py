"""Starting from a checkpoint trained on other data: what fits is carried over, by name.

Genes are matched by Ensembl id, targets by id, context levels by name; tensors whose shape is the
same are copied whole; everything else keeps its fresh start. What was carried over is reported.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from knockscreen import checkpoint
from knockscreen.data.cells import Vocabulary
from knockscreen.errors import CheckpointError
from knockscreen.models.vae import VaeSettings


@dataclass
class Start:
    """Tensors to start from, and which rows of which table they fill."""

    tensors: dict[str, Tensor]
    rows: dict[str, tuple[list[int], list[int]]]
    """Table name -> (rows here, rows there)."""
    report: str = field(default="")

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
    """Return the positions of the names that both lists have, here and there."""
    place = {name: i for i, name in enumerate(there)}
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
            f"the panel's '{vocabulary.gene_ids[0]}'."
        )
        raise CheckpointError(msg)
    width = tensors["gene_table.weight"].shape[1]
    if width != settings.size.width:
        msg = f"{path} has width {width}, this VAE {settings.size.width}; set vae.size alike."
        raise CheckpointError(msg)
    table = ([0, *(i + 1 for i in here)], [0, *(i + 1 for i in there)])
    report = f"{len(here)} of {len(vocabulary.gene_ids)} genes found in {path}"
    return Start(tensors, {"gene_table.weight": table, "log_theta.weight": table}, report)


class FlowStart(Start):
    """What a flow checkpoint has for this vocabulary."""

    def __init__(self, path: Path | str, vocabulary: Vocabulary) -> None:
        tensors, about = checkpoint.load(path, "flow")
        trained = checkpoint.read_vocabulary(about)
        rows = {"target.weight": shared_rows(vocabulary.target_ids, trained.target_ids)}
        levels = 0
        for k, factor in enumerate(vocabulary.factors):
            if factor in trained.factors:
                j = trained.factors.index(factor)
                rows[f"factors.{k}.weight"] = shared_rows(vocabulary.levels[k], trained.levels[j])
                tensors[f"net.factors.{k}.weight"] = tensors[f"net.factors.{j}.weight"]
                levels += len(rows[f"factors.{k}.weight"][0])
        net = {name[4:]: value for name, value in tensors.items() if name.startswith("net.")}
        report = (
            f"{len(rows['target.weight'][0])} of {len(vocabulary.target_ids)} targets and "
            f"{levels} context levels found in {path}"
        )
        super().__init__(net, rows, report)
