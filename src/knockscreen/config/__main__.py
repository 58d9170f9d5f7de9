"""``python -m knockscreen.config > workflow/schemas/config.schema.json``."""

import sys

from knockscreen.config import json_schema

sys.stdout.write(json_schema())
