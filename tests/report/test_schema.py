"""docs/report.schema.json is what report.json follows."""

from pathlib import Path

import jsonschema

from tests.report.conftest import load
from xlr.findings import schema
from xlr.report import report
from xlr.run.files import as_json, read_json

FILE = Path(__file__).parents[2] / "docs" / "report.schema.json"


def test_the_schema_in_docs_is_up_to_date() -> None:
    """`python -m xlr.findings.schema > docs/report.schema.json` writes it."""
    assert FILE.read_text(encoding="utf-8") == as_json(schema.schema())


def test_every_key_of_the_report_has_a_description() -> None:
    root = schema.schema()
    assert all("description" in value or "$ref" in value for value in root["properties"].values())


def test_a_real_report_follows_the_schema(run: Path) -> None:
    report.make([load(run)], run)
    validator = jsonschema.Draft202012Validator(read_json(FILE))
    validator.check_schema(validator.schema)
    found = read_json(run / "report.json")
    assert [error.message for error in validator.iter_errors(found)] == []
    found["iterations"]["1"]["stages"]["pair"]["facts"]["ar"]["alpha"] = "0.1"
    del found["changes"]
    assert len(list(validator.iter_errors(found))) == 2
