"""The evidence as a maintainer gets it: plain, narrow, complete, and a message that mail tools take."""

import email
import email.policy
import json
import mailbox
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab.lab import bundle
from rseqlab.study import evidence
from rseqlab.study.answer import answers
from rseqlab.study.claims import claims
from rseqlab.study.run import SHIPPED, open_run

COMMAND = [sys.executable, "-m", "rseqlab.cli", "evidence", "--run", SHIPPED]
LONG_ID = "CAHk-=wjk-2c4XvWjdzc-bs9Hbgvy-p7ASSnKKphggr5qDoXRDQ-and-much-longer-still@mail.gmail.com"
SENDER = '"Éric Ångström, of Ünïversity of Somewhere Far Away and Long" <eric@example.org>'


@pytest.fixture(scope="module")
def run():
    return open_run(SHIPPED)


@pytest.fixture(scope="module")
def text(run):
    return evidence.text(run)


@pytest.fixture(scope="module")
def message_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mail") / "evidence.mbox"
    arguments = ["--options", "--mbox", "--from", SENDER, "--to", "List <linux@example.org>"]
    result = subprocess.run(
        [*COMMAND, *arguments, "--in-reply-to", LONG_ID, "--out", str(path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return path


def test_the_text_is_plain_narrow_and_names_every_claim_and_the_run(run, text):
    assert text.isascii() and "\t" not in text
    assert [line for line in text.splitlines() if len(line) > evidence.COLUMNS or line != line.rstrip()] == []
    for claim in claims():
        assert re.search(rf"^  {claim.id}\b", text, re.MULTILINE), claim.id
    assert run.bundle.digest in text and "?" not in evidence.plain("±–µ’é")  # noqa: RUF001
    for word in ("Method", "Environment", "Null results", "Not measured", "To redo it"):
        assert word in text


def test_every_table_has_the_command_that_gives_it(text):
    for title in re.findall(r"^(.*):\n\n {10,}median", text, re.MULTILINE):
        after = text.split(title, 1)[1]
        assert re.match(r":\n\n(.+\n)+\n  \$ rseqlab run --profile \w+ [a-z-]+\n", after), title


def test_sections_can_be_chosen(run):
    some = evidence.text(run, ["options"])
    assert "\nOptions\n" in some and "\nClaims\n" not in some and "grow-symbol" in some
    assert "\nNull results, and what was not measured\n" in some and "claims are not measured" in some


def test_answers_are_sentences_of_this_run(run):
    found = answers(run)
    assert len(found) == 5
    for one in found:
        assert one.sentence.endswith(".") and one.question in evidence.plain(one.question)
    assert "yes" in found[0].sentence or "breaks" in found[0].sentence


def test_the_message_is_what_mail_readers_take(message_file):
    (mail,) = mailbox.mbox(message_file)
    mail = email.message_from_bytes(bytes(mail), policy=email.policy.default)
    assert mail["In-Reply-To"].strip() == mail["References"].strip() == f"<{LONG_ID}>"
    assert mail["From"].addresses[0].display_name.startswith("Éric Ångström, of Ünïversity")
    assert mail["Subject"].startswith("Re: ") and not mail.defects
    raw = message_file.read_bytes()
    assert raw.isascii() and max(map(len, raw.splitlines())) <= 998
    assert raw.decode().count(LONG_ID) == 2  # never folded, never encoded
    assert "Options\n-------" in mail.get_content()


def test_git_send_email_takes_it(message_file, tmp_path):
    here = subprocess.run(["git", "--exec-path"], capture_output=True, text=True).stdout.strip()
    there = (Path(here) / "git-send-email").exists() and Path("/usr/share/perl5/Mail/Address.pm").exists()
    require_or_skip(there, "git send-email", "install it with `make deps`")
    command = [
        "git",
        "send-email",
        "--dry-run",
        "--confirm=never",
        "--suppress-cc=all",
        "--to=list@example.org",
    ]
    who = {
        f"GIT_{role}_{part}": "x@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for part in ("NAME", "EMAIL")
    }
    environment = os.environ | who | {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    result = subprocess.run(
        [*command, str(message_file)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "Result: OK" in result.stdout and f"In-Reply-To: <{LONG_ID}>" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mbox"], "--from"),
        pytest.param(["--to", "a@b"], "--mbox", marks=pytest.mark.thorough),
        pytest.param(["--mbox", "--from", "nobody"], "no address", marks=pytest.mark.thorough),
        (["--mbox", "--from", "a@b\nBcc: c@d"], "no address"),
        pytest.param(["--mbox", "--from", "a@b.c", "--to", ""], "no address", marks=pytest.mark.thorough),
        pytest.param(
            ["--mbox", "--from", "a@b.c", "--in-reply-to", "no id"],
            "no message id",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            ["--mbox", "--from", "a@b.c", "--in-reply-to", "<a@b> <c@d>"],
            "no message id",
            marks=pytest.mark.thorough,
        ),
        (["--mbox", "--from", "a@b.c", "--subject", "one\nBcc: c@d"], "one line"),
    ],
)
def test_what_is_no_message_is_refused_before_the_work(arguments, says, tmp_path):
    result = subprocess.run(
        [*COMMAND, *arguments, "--out", str(tmp_path / "out"), "--json"], capture_output=True, text=True
    )
    document = json.loads(result.stdout)
    assert result.returncode == 2 and document["kind"] == "usage" and says in document["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_json_holds_the_text(tmp_path):
    result = subprocess.run([*COMMAND, "--options", "--json"], capture_output=True, text=True)
    document = json.loads(result.stdout)
    bundle.validate(document, "evidence", "stdout")
    assert document["text"].isascii() and not Path(tmp_path / "out").exists()
