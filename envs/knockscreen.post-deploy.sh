#!/usr/bin/env bash
# Run by Snakemake inside the new environment, in the folder snakemake was called from.
set -euo pipefail
python -m pip install -c constraints.txt -e .
