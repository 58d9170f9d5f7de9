"""Where a file keeps what we need: the columns that each preset expects.

A role (target gene, guide, ...) has candidate columns in order of preference; a column named in
``data.columns`` goes first and must be there. A role without a column is None.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from knockscreen.config import Columns
from knockscreen.errors import DataError, suggest

Preset = Literal["zhu2025", "scldm_cd4", "generic"]
INDEX = "index"
"""Stands for the index of ``obs`` or ``var`` where a column name is asked for."""

OBS_ROLES = (
    "target_gene",
    "target_gene_id",
    "guide_id",
    "guide_umis",
    "guide_type",
    "replicate",
    "low_quality",
    "pct_mt",
    "library_size",
)

OBS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "zhu2025": {
        "target_gene": ("perturbed_gene_name",),
        "target_gene_id": ("perturbed_gene_id",),
        "guide_id": ("guide_id",),
        "guide_umis": ("top_guide_UMI_counts",),
        "guide_type": ("guide_type",),
        "replicate": ("replicate", "lane_id"),
        "low_quality": ("low_quality",),
        "pct_mt": ("pct_counts_mt",),
    },
    "scldm_cd4": {
        "target_gene_id": ("guide_target_ensembl",),
        "target_gene": ("guide_target_gene_symbol",),
        "guide_id": ("guide_id",),
        "replicate": ("replicate",),
        "pct_mt": ("pct_counts_mt",),
    },
    "generic": {
        "target_gene": ("target_gene",),
        "target_gene_id": ("target_gene_id",),
        "guide_id": ("guide_id",),
        "guide_umis": ("guide_umis",),
        "replicate": ("replicate",),
        "low_quality": ("low_quality",),
        "pct_mt": ("pct_counts_mt",),
        "library_size": ("library_size",),
    },
}
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "zhu2025": ("target_gene", "guide_id"),
    "scldm_cd4": ("target_gene_id",),
    "generic": ("target_gene",),
}
"""Roles that a file of the preset must have; ``target_gene`` may also be met by its id."""

GENE_SYMBOL = ("gene_symbol", "gene_name", "gene_symbols", "feature_name", "symbol")
GENE_ID = ("ensembl_id", "gene_id", "gene_ids", "feature_id")

_ZHU_FILE = re.compile(r"^(?P<donor>[^_.]+)_(?P<condition>[^_.]+)(?:[_.]|$)")
_ZHU_FROM_NAME = {
    "donor": ("donor", "donor_id"),
    "condition": ("culture_condition", "condition", "time", "timepoint"),
}


@dataclass(frozen=True)
class ObsColumns:
    """The obs column of each role in one file; None where the file has none."""

    target_gene: str | None = None
    target_gene_id: str | None = None
    guide_id: str | None = None
    guide_umis: str | None = None
    guide_type: str | None = None
    replicate: str | None = None
    low_quality: str | None = None
    pct_mt: str | None = None
    library_size: str | None = None


def require(name: str, available: Sequence[str], *, file: Path, setting: str, axis: str) -> str:
    """Return ``name`` if the file has that column.

    Raises
    ------
    DataError
        It has not; the sentence names the nearest columns and the setting to change.
    """
    if name in available or name == INDEX:
        return name
    msg = (
        f"{axis} column '{name}' not found in {file}{suggest(name, available)}; "
        f"map it under {setting} in the configuration."
    )
    raise DataError(msg)


def obs_columns(
    preset: Preset, overrides: Columns, available: Sequence[str], *, file: Path
) -> ObsColumns:
    """Return which obs column of ``file`` plays which role.

    Raises
    ------
    DataError
        A column named in ``data.columns``, or one that the preset cannot do without, is missing.
    """
    found: dict[str, str | None] = {}
    for role in OBS_ROLES:
        explicit = getattr(overrides, role, None)
        if explicit is not None:
            setting = f"data.columns.{role}"
            found[role] = require(explicit, available, file=file, setting=setting, axis="obs")
        else:
            candidates = OBS[preset].get(role, ())
            found[role] = next((name for name in candidates if name in available), None)
    for role in REQUIRED[preset]:
        has_target = role.startswith("target_gene") and (
            found["target_gene"] or found["target_gene_id"]
        )
        if found[role] is None and not has_target:
            name = OBS[preset][role][0]
            require(name, available, file=file, setting=f"data.columns.{role}", axis="obs")
    return ObsColumns(**found)


def from_file_name(preset: Preset, column: str, file: Path) -> str | None:
    """Return the level of a context column that the file name tells, or None.

    Only files of preset ``zhu2025`` are read so, e.g. ``D1_Rest.assigned_guide.h5ad``.

    >>> from_file_name("zhu2025", "culture_condition", Path("D1_Rest.assigned_guide.h5ad"))
    'Rest'
    """
    match = _ZHU_FILE.match(file.name)
    if preset != "zhu2025" or match is None:
        return None
    for part, columns in _ZHU_FROM_NAME.items():
        if column in columns:
            return match[part]
    return None
