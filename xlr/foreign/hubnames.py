"""Names of datasets on the Hugging Face hub, and how they differ from paths."""

import os
import re

_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[0-9a-f]{40})?")
_FILE = re.compile(r"\.(jsonl|json|csv|tsv|parquet)(\.gz)?$")


def is_dataset_name(text: str) -> bool:
    """True for `owner/name`, also with `@commit`, unless it is a path here or ends like a file of rows."""
    return bool(_NAME.fullmatch(text)) and not _FILE.search(text) and not os.path.lexists(text)
