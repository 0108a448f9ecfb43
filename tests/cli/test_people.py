"""`marram user` and `marram audit` as they are typed."""

from __future__ import annotations

import io
import json
import os
import pty
import sqlite3
import subprocess
import sys

import pytest
from tests.cli.fleet import Terminal

from marram.schema.people import Role
from marram.store import AuditFilter

WORDS = "correct horse battery"


def typed(monkeypatch: pytest.MonkeyPatch, text: str = WORDS + "\n") -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_people_are_added_changed_and_removed(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "marram user add NAME --role admin" in marram_("user", "list")
    typed(monkeypatch)
    assert "ann is an admin; sign in at http://" in marram_("user", "add", "Ann", "-", "--role", "admin")
    typed(monkeypatch, WORDS + "\r\n")  # from a file of another system
    marram_("user", "add", "bob", "-")
    assert [(each["name"], each["role"]) for each in marram_.json("user", "list")] == [
        ("ann", "admin"),
        ("bob", "viewer"),
    ]
    assert marram_("user", "role", "bob", "operator") == "bob is an operator\n"
    assert marram_.served.api().sign_in("bob", WORDS).role is Role.OPERATOR
    marram_("user", "disable", "bob")
    assert "disabled" in marram_("user", "list")
    marram_("user", "enable", "bob")
    typed(monkeypatch, "another horse, another battery\n")
    assert "signed out everywhere" in marram_("user", "passwd", "bob", "-")
    assert marram_.served.api().sign_in("bob", "another horse, another battery").user == "bob"
    marram_("user", "remove", "bob", "--yes")
    assert [each["name"] for each in marram_.json("user", "list")] == ["ann"]


WRONG = [
    (["add", "ann", WORDS], "a password does not belong on a command line"),
    (["add", "a b", "-"], '"a b" is not a name'),
    (["add", "../x", "-"], "is not a name"),
    (["add", "ann"], "there is no terminal to ask for a password. … | marram user add ann -"),
    (["passwd", "ann"], "there is no terminal to ask for a password. … | marram user passwd ann -"),
    (["passwd", "-"], "whose password is it?"),
    (["passwd"], "this machine's token has no password"),
    (["role", "nobody", "admin"], 'no user "nobody"'),
    (["role", "ann", "king"], '"king" is no role. There are viewer, operator, admin.'),
    (["add", "ann", "-", "--role", "admn"], '"admn" is no role; did you mean "admin"?'),
    (["disable", ".."], 'there is nothing called ".."'),
    (["token", "create"], "whose token is it to be?"),
    (["token", "create", "ann", "--scopes", "everything"], '"everything" is not a scope; use some of read'),
    (["token", "create", "ann", "--ttl", "400 d"], "--ttl: 400 d is too long; 366 d at most"),
    (["token", "revoke", "none"], 'no API token "none"'),
]


def test_what_is_wrong_is_named(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, says in WRONG:
        typed(monkeypatch)
        fault = marram_.fault("user", *arguments)
        assert says in fault and WORDS not in fault


@pytest.mark.parametrize(
    ("password", "says"), [("short\n", "is shorter than 12"), ("", "password"), ("x" * 5000, "password")]
)
def test_a_poor_password_is_refused(
    marram_: Terminal, monkeypatch: pytest.MonkeyPatch, password: str, says: str
) -> None:
    typed(monkeypatch, password)
    assert says in marram_.fault("user", "add", "ann", "-")
    assert marram_.served.state.people.everybody() == []


def test_tokens_are_made_listed_and_revoked(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch)
    marram_("user", "add", "ann", "-", "--role", "operator")
    token = marram_(
        "user", "token", "create", "ann", "--scopes", "read,deploy", "--name", "nightly", "--ttl", "2 d"
    ).strip()
    assert marram_.served.api(token).me().user == "ann" and "only told here" in marram_.said
    shown = marram_("user", "token", "list", "ann")
    assert "nightly" in shown and "deploy, read" in shown and token not in shown
    assert "the token" in marram_.fault("user", "list", "--token", token)
    (made,) = marram_.json("user", "token", "list", "ann")
    marram_("user", "token", "revoke", made["id"])
    assert "over" in marram_.fault("device", "list", "--token", token)
    assert "revoked" in marram_("user", "token", "list", "ann")


def test_a_password_is_asked_for_twice_without_being_shown(marram_: Terminal) -> None:
    def ask(*answers: str) -> tuple[int, str]:
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "marram", "user", "add", "ann", "--role", "admin"],
            stdin=terminal, stdout=terminal, stderr=terminal, env=os.environ, start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        shown, left = b"", list(answers)
        while True:
            try:
                shown += os.read(controller, 4096)
            except OSError:  # it ended
                break
            if left and shown.endswith(b": "):
                os.write(controller, left.pop(0).encode() + b"\n")
                shown += b"\n"
        os.close(controller)
        return process.wait(30), shown.decode()

    status, shown = ask(WORDS, "something else")
    assert status == 2 and "the two are not the same" in shown and WORDS not in shown
    status, shown = ask(WORDS, WORDS)
    assert status == 0 and "ann is an admin" in shown and WORDS not in shown
    assert marram_.served.api().sign_in("ann", WORDS).user == "ann"


def test_the_audit_log_is_shown_exported_and_proven(marram_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "token.create" in marram_("audit", "list")
    typed(monkeypatch)
    marram_("user", "add", "ann", "-")
    marram_.served.state.audit.add("device:\x1b[31mred\u202e", "odd", "a\nb")
    shown = marram_("audit", "list")
    assert "\x1b" not in shown and "\u202e" not in shown and "device:�[31mred�" in shown and "a�b" in shown
    assert [row["action"] for row in marram_.json("audit", "list", "--action", "user")] == ["user.add"]
    assert [row["target"] for row in marram_.json("audit", "list", "--actor", "machine", "--since", "1 h")] == ["ann"]
    marram_("token", "create", "--labels", "site=a,line=2", "--uses", "3")
    assert "labels line=2 site=a; uses 3; expires " in marram_("audit", "list", "--action", "join_token")
    lines = marram_("audit", "export").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(1, len(lines) + 1)) and "\x1b" not in "".join(lines)
    assert marram_("audit", "export", "--after", str(len(lines))) == ""
    proof = marram_("audit", "verify")
    assert f"{len(lines)} changes, none touched" in proof
    kept = proof.split()[-1]
    marram_("audit", "verify", "--kept", kept)
    assert "is not what `marram audit verify` prints" in marram_.fault("audit", "verify", "--kept", "3")

    path = marram_.served.state.store.database.path
    assert path is not None
    with sqlite3.connect(path) as file:
        file.execute("DROP TRIGGER audit_no_update")
        file.execute("UPDATE audit SET actor = 'user:bob' WHERE action = 'user.add'")
    (row,) = marram_.served.state.audit.list(AuditFilter(action="user"))
    fault = marram_.fault("audit", "verify")
    assert f"row {row.id} of the audit log is broken: its content was changed" in fault and "tampered" in fault
    marram_("audit", "verify", "--json", status=2)
