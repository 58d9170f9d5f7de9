"""Checkpoints: weights as safetensors, everything needed to use them as JSON beside.

``model.safetensors`` holds tensors only; ``model.json`` the settings, the gene order, the
vocabularies and where it came from; its digest is kept with the weights, so that the two cannot
be of different trainings. A checkpoint of another gene order is refused by name.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from knockscreen.artifacts import atomic, read_json, write_json
from knockscreen.data.cells import Vocabulary
from knockscreen.errors import CheckpointError

FORMAT = 1
_WRITER = {"vae": "train-vae", "flow": "train-flow", "effects": "fit-effects"}


def save(path: Path | str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write ``path`` (.safetensors) and the JSON beside it, each whole or not at all."""
    path = Path(path)
    clean = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    card = {"format": FORMAT, **json.loads(json.dumps(about, default=str))}
    write_json(path.with_suffix(".json"), card)
    with atomic(path) as temporary:
        save_file(clean, temporary, metadata={"card": _digest(card)})


def _digest(card: dict[str, Any]) -> str:
    """Return a digest of a card without its notes: how long a training took is no part of it."""
    told = {key: value for key, value in card.items() if key != "notes"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def load(path: Path | str, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description of a checkpoint of this ``kind`` (vae or flow).

    Raises
    ------
    CheckpointError
        A file is missing, damaged, of another kind or of another format.
    """
    path = Path(path)
    for part in (path, path.with_suffix(".json")):
        if not part.is_file():
            msg = f"checkpoint file {part} does not exist; 'knockscreen {_WRITER[kind]}' writes it."
            raise CheckpointError(msg)
    about = read_json(path.with_suffix(".json"))
    if about.get("kind") != kind or about.get("format") != FORMAT:
        msg = (
            f"{path} is a '{about.get('kind')}' checkpoint of format {about.get('format')}, "
            f"expected '{kind}' of format {FORMAT}."
        )
        raise CheckpointError(msg)
    try:
        with safe_open(path, framework="pt") as handle:
            card = _digest(about)
            if (handle.metadata() or {}).get("card", card) != card:  # none: weights from elsewhere
                msg = (
                    f"{path.with_suffix('.json')} is not the description of {path.name}; "
                    f"'knockscreen {_WRITER[kind]}' writes both."
                )
                raise CheckpointError(msg)
            return {name: handle.get_tensor(name) for name in handle.keys()}, about  # noqa: SIM118
    except SafetensorError as error:
        msg = f"checkpoint {path} is damaged ({error}); train again or restore it."
        raise CheckpointError(msg) from None


def describe_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the vocabulary as JSON values."""
    return dict(json.loads(json.dumps(asdict(vocabulary))))


def read_vocabulary(about: dict[str, Any]) -> Vocabulary:
    """Return the vocabulary that a checkpoint was trained with."""
    v = about["vocabulary"]
    return Vocabulary(
        gene_ids=tuple(v["gene_ids"]),
        genes=tuple(v["genes"]),
        factors=tuple(v["factors"]),
        levels=tuple(tuple(level) for level in v["levels"]),
        target_ids=tuple(v["target_ids"]),
        targets=tuple(v["targets"]),
    )


def require_same(
    trained: Vocabulary, given: Vocabulary, *, checkpoint: str, conditions: bool
) -> None:
    """Refuse a panel (and, for ``conditions``, a vocabulary) other than the trained one, by name.

    Raises
    ------
    CheckpointError
        Names the first gene, factor or target that differs.
    """
    pairs = [("gene", trained.gene_ids, given.gene_ids)]
    if conditions:
        pairs += [
            ("context factor", trained.factors, given.factors),
            *(
                (f"{factor} level", a, b)
                for factor, a, b in zip(trained.factors, trained.levels, given.levels, strict=False)
            ),
            ("target", trained.target_ids, given.target_ids),
        ]
    for what, old, new in pairs:
        if old == new:
            continue
        place = next(
            (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
            min(len(old), len(new)),
        )
        was = old[place] if place < len(old) else "nothing"
        now = new[place] if place < len(new) else "nothing"
        msg = (
            f"checkpoint {checkpoint} was trained on another {what} list ({len(old)} entries, here "
            f"{len(new)}): entry {place + 1} is '{was}' there and '{now}' in the store. "
            "Train again, or start from it with init_from."
        )
        raise CheckpointError(msg)
