"""The JSON schema of report.json, from its types.

`python -m xlr.findings.schema > docs/report.schema.json` writes it.
"""

from typing import Any

from pydantic import TypeAdapter

from xlr.findings.found import Found
from xlr.run.files import as_json


def schema() -> dict[str, Any]:
    """The schema, of JSON Schema's draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(Found).json_schema()}


if __name__ == "__main__":
    print(as_json(schema()), end="")
