"""AlpacaEval's difficulty table: from a file or the hub, and a broken table refused."""

import http.server
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, assert_refused
from tests.evaluation.annotated import GOLDEN
from xlr.errors import UserError
from xlr.evaluation import difficulty


def break_header(text: str) -> str:
    return text.replace("std_delta_len", "length", 1)


def break_number(text: str) -> str:
    return text.replace("\nverbose,1,", "\nverbose,one,", 1)


def break_finite(text: str) -> str:
    return text.replace("\nverbose,1,0.454,", "\nverbose,1,nan,", 1)


def break_size(text: str) -> str:
    return text.replace("\nverbose,1,0.454,", "\nverbose,1,1e300,", 1)


def break_truth(text: str) -> str:
    return text.replace("False", "maybe", 1)


def break_length(text: str) -> str:
    return text.replace("\nverbose,1,0.454,0.2496,-2.9222,False", "\nverbose,1,0.454", 1)


def break_column(text: str) -> str:
    return text.replace("model,index", "index,index", 1)


def break_agreement(text: str) -> str:
    return text.replace("0.2496,-2.9222", "0.2496,-2.5", 1)


def break_digits(text: str) -> str:
    return text.replace("\nverbose,1,", f"\nverbose,{'9' * 5000},", 1)


def break_field(text: str) -> str:
    return text.replace("\nverbose,1,", f"\n{'x' * 200_000},1,", 1)


def break_index(text: str) -> str:
    return text.replace(",0,", ",700,")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (break_header, "has no column 'std_delta_len'"),
        (break_number, "df.csv:3: not a row of AlpacaEval's df_gamed.csv"),
        (break_finite, "df.csv:3: not a row of AlpacaEval's df_gamed.csv .*nan"),
        (break_size, "df.csv:3: .*preference is .1e300., not a number within"),
        (break_truth, 'df.csv:2: .*not_gamed_baseline is "maybe", not true or false'),
        (break_length, "df.csv:3: .*instruction_difficulty is null, not a number"),
        (break_column, "has the column 'index' more than once"),
        (break_agreement, "df.csv:.*instruction 1 has another instruction_difficulty above"),
        (break_digits, "df.csv:3: .*index is .*99…, not a number from 0"),
        (break_field, "df.csv:3: .*field larger than field limit"),
        (break_index, "does not number the instructions from 0"),
    ],
)
def test_a_bad_difficulty_table_is_refused(broken: Callable[[str], str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "df.csv"
    file.write_text(broken((GOLDEN / "df_gamed.csv").read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        difficulty.load(str(file))


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that serves the table."""

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.wfile.write(self.respond())

    def respond(self) -> bytes:
        known = self.path == "/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv"
        table = (GOLDEN / "df_gamed.csv").read_bytes() if known else b""
        self.send_response(200 if known else 404)
        for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", '"table"'), ("Content-Length", str(len(table)))):
            self.send_header(name, value)
        self.end_headers()
        return table

    def log_message(self, *_: Any) -> None:
        pass


def test_the_table_is_downloaded_from_the_hub_once(cli: Cli, tmp_path: Path) -> None:
    file, table = GOLDEN / "graded.json", "tatsu-lab/alpaca_eval"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
        environment |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        fetched = cli("winrate", file, "--difficulty", table, "--json", **environment)
        other = cli("winrate", file, "--difficulty", "some/other", **environment)
        assert_refused(other, "some/other: not a file, and df_gamed.csv cannot be downloaded")
        server.shutdown()
    assert fetched.returncode == 0, fetched.stderr
    expected = cli("winrate", file, "--difficulty", GOLDEN / "df_gamed.csv", "--json").stdout
    assert fetched.stdout == expected
    assert cli("winrate", file, "--difficulty", table, "--json", **environment).stdout == expected
    # Offline, because online the client would retry for 24 s.
    offline = environment | {"HF_HOME": str(tmp_path / "another"), "HF_HUB_OFFLINE": "1"}
    refused = cli("winrate", file, "--difficulty", table, **offline)
    assert_refused(refused, "tatsu-lab/alpaca_eval: not a file, and df_gamed.csv cannot be downloaded")
