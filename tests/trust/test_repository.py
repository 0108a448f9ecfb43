from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Root

from marram.lab.attacks.publisher import MemoryShelf, Publisher
from marram.schema.errors import Conflict, Invalid, Missing, Permanent, Refused
from marram.schema.signed import SignedDocument
from marram.trust import repository, signers
from marram.trust.draft import Draft, merged
from marram.trust.repository import DAY_S, Repository

APP = "apps/main/gate/1.json"


class Time:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def cloud(time: Time) -> Publisher:
    return Publisher(now_s=time)


def draft_of(cloud: Publisher) -> Draft:
    documents = cloud.repository.documents()
    return Draft(documents.root, documents.targets)


def test_the_same_again_signs_nothing(cloud: Publisher) -> None:
    assert cloud.repository.publish({APP: b"one"})
    before = len(cloud.shelf.documents)
    assert not cloud.repository.publish({APP: b"one"})
    assert not cloud.repository.retire(["apps/main/other/1.json"])
    assert len(cloud.shelf.documents) == before
    assert cloud.repository.retire([APP]) and cloud.repository.targets() == set()


@pytest.mark.parametrize(
    "path", ["apps/other/gate/1.json", "../apps/main/gate/1.json", "apps/main/gate", "apps/main/../1.json", "", "a"]
)
def test_only_the_projects_own_paths_are_signed(cloud: Publisher, path: str) -> None:
    with pytest.raises(Invalid, match="is not for the key"):
        cloud.repository.publish({path: b"x"})


def test_the_list_never_outgrows_what_devices_take(cloud: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "MOST_TARGETS", 3)
    cloud.repository.publish({f"apps/main/gate/{n}.json": b"x" for n in range(3)})
    with pytest.raises(Permanent, match="4 versions would be signed"):
        cloud.repository.publish({"apps/main/gate/9.json": b"x"})


def test_each_role_is_signed_anew_in_time_and_not_before(cloud: Publisher, time: Time) -> None:
    assert cloud.repository.refresh() == []
    time.now_s += 0.6 * DAY_S
    assert cloud.repository.refresh() == ["timestamp"]
    time.now_s += 3 * DAY_S
    assert cloud.repository.refresh() == ["snapshot", "timestamp"]
    time.now_s += 40 * DAY_S
    assert cloud.repository.refresh() == ["main", "snapshot", "timestamp"]
    assert all(at > time.now_s for at in cloud.repository.expires_s().values())


def test_of_two_that_publish_at_once_nothing_is_lost(cloud: Publisher) -> None:
    class Racing(MemoryShelf):
        """Before this one can add, another process does."""

        others = 3

        def add(self, documents: list[SignedDocument]) -> None:  # type: ignore[override]
            if Racing.others:
                Racing.others -= 1
                cloud.repository.publish({f"apps/main/other/{Racing.others}.json": b"x"})
            super().add(documents)

    racing = Racing()
    racing.documents = cloud.shelf.documents

    def shared(documents: list[SignedDocument]) -> None:
        MemoryShelf.add(racing, documents)
        cloud.shelf.documents = racing.documents

    cloud.shelf.add = shared  # type: ignore[method-assign,assignment]
    keys = {key.public_key.keyid: key for key in cloud.online.values()}
    assert Repository(racing, keys, cloud.now_s).publish({APP: b"one"})
    assert Repository(racing, keys, cloud.now_s).targets() == {APP, *(f"apps/main/other/{n}.json" for n in range(3))}


def test_only_the_next_root_and_newer_targets_come_into_force(cloud: Publisher, time: Time) -> None:
    """A device goes from root to root: one that was left out would shut every device out for good."""
    present = cloud.repository.documents()
    for version in (0, 1, 3):
        draft = draft_of(cloud)
        draft.renew(("root",), time.now_s)
        assert draft.root is not None
        draft.root.signed.version = version
        draft.sign(cloud.root_keys)
        with pytest.raises(Conflict, match=f"version {version} of root; version 1 is in force"):
            cloud.repository.replace(draft.root, None)
    with pytest.raises(Conflict, match="of targets"):
        cloud.repository.replace(None, present.targets)
    assert cloud.repository.documents().root.to_bytes() == present.root.to_bytes()


def test_of_a_threshold_that_can_never_be_met_nothing_is_signed(cloud: Publisher, time: Time) -> None:
    online = {role: key.public_key for role, key in cloud.online.items()}
    for threshold in (0, 2):
        with pytest.raises(Invalid, match="can never be met"):
            repository.first_documents(cloud.root_keys, cloud.targets_key, online, threshold, time.now_s)


def test_a_document_of_another_role_is_taken_for_none(cloud: Publisher) -> None:
    documents = cloud.repository.documents()
    with pytest.raises(Permanent, match="a document of the role targets where root belongs"):
        repository.parse(Root, documents.targets.to_bytes())
    draft = draft_of(cloud)
    draft.present_root = documents.targets  # type: ignore[assignment]
    with pytest.raises(Invalid, match="this is no draft"):
        Draft.from_bytes(draft.to_bytes())


def test_versions_go_on_after_a_backup(cloud: Publisher, time: Time) -> None:
    backup = dict(cloud.shelf.documents)
    for number in range(5):
        time.now_s += 60
        cloud.repository.publish({f"apps/main/gate/{number}.json": b"x"})
    seen = cloud.shelf.newest("timestamp")
    cloud.shelf.documents = backup
    time.now_s += 60
    cloud.repository.publish({APP: b"x"})
    restored = cloud.shelf.newest("timestamp")
    assert seen and restored and restored.version > seen.version


def test_without_its_key_nothing_is_signed(cloud: Publisher) -> None:
    with pytest.raises(Missing, match="none of the keys that may sign main"):
        Repository(cloud.shelf, {}).publish({APP: b"x"})
    with pytest.raises(Missing, match="nothing was ever signed"):
        Repository(MemoryShelf(), {}).root()


# ---------------------------------------------------------------- drafts


def test_a_draft_travels_and_comes_into_force(time: Time) -> None:
    cloud = Publisher(root_keys=3, threshold=2, now_s=time)
    time.now_s += DAY_S
    draft = draft_of(cloud)
    draft.renew(("root", "targets"), time.now_s)
    with pytest.raises(Refused, match=r"root needs 2 more .*present root keys.*targets needs 1 more"):
        draft.check()
    paper = draft.to_bytes()
    copies = []
    for signer in (cloud.root_keys[0], cloud.root_keys[2], cloud.targets_key):
        copy = Draft.from_bytes(paper)
        assert copy.sign([signer]) == 1
        with pytest.raises(Refused):
            copy.check()
        copies.append(Draft.from_bytes(copy.to_bytes()))
    paper_again = [copy.to_bytes() for copy in copies]
    for order in (copies, [Draft.from_bytes(each) for each in reversed(paper_again)]):
        whole = merged(order)  # in whatever order they come back
        whole.check()
    cloud.repository.replace(whole.root, whole.targets)
    assert cloud.repository.documents().root.signed.version == 2
    with pytest.raises(Conflict, match="version 2 is in force by now"):
        cloud.repository.replace(whole.root, None)


def test_a_strangers_key_counts_for_nothing(cloud: Publisher, time: Time) -> None:
    draft = draft_of(cloud)
    draft.renew(("root",), time.now_s)
    assert draft.sign([signers.new_signer(), cloud.targets_key]) == 0
    with pytest.raises(Refused):
        draft.check()


def test_a_change_of_root_keys_is_signed_by_the_old_ones_and_by_the_new(cloud: Publisher, time: Time) -> None:
    old, new = cloud.root_keys[0], signers.new_signer()
    draft = draft_of(cloud)
    draft.replace_key("root", old.public_key.keyid, new.public_key, time.now_s)
    for signer, lacking in ((old, "new root keys"), (new, "present root keys")):
        copy = Draft.from_bytes(draft.to_bytes())
        assert copy.sign([signer]) == 1
        with pytest.raises(Refused, match=lacking):
            copy.check()
        assert len(copy.missing()) == 1
    assert draft.sign([old, new]) == 2
    draft.check()
    cloud.repository.replace(draft.root, None)


def test_a_change_of_targets_keys_is_signed_by_the_new_ones(cloud: Publisher, time: Time) -> None:
    new = signers.new_signer()
    draft = draft_of(cloud)
    draft.replace_key("targets", cloud.targets_key.public_key.keyid, new.public_key, time.now_s)
    draft.sign([*cloud.root_keys, cloud.targets_key])
    with pytest.raises(Refused, match="targets needs 1 more of the targets keys"):
        draft.check()
    assert draft.sign([new]) == 1
    draft.check()
    cloud.repository.replace(draft.root, draft.targets)
    assert cloud.repository.publish({APP: b"one"})


@pytest.mark.parametrize("role", ["main", "snapshot", "timestamp"])
def test_with_an_online_key_all_that_it_signed_is_signed_anew(cloud: Publisher, time: Time, role: str) -> None:
    cloud.repository.publish({APP: b"one"})
    old, new = cloud.online[role], signers.new_signer()
    draft = draft_of(cloud)
    draft.replace_key(role, old.public_key.keyid, new.public_key, time.now_s)
    draft.sign([*cloud.root_keys, cloud.targets_key])
    draft.check()
    cloud.online[role] = new
    cloud.repository.replace(draft.root, draft.targets)
    documents = cloud.repository.documents()
    for each, signer in cloud.online.items():
        assert set(documents.of(each).signatures) == {signer.public_key.keyid}
        delegator = documents.targets.signed if each == "main" else documents.root.signed
        delegator.verify_delegate(each, documents.of(each).signed_bytes, documents.of(each).signatures)
    assert cloud.repository.targets() == {APP}


def test_one_more_targets_key_leaves_what_is_signed_as_it_is(cloud: Publisher, time: Time) -> None:
    cloud.repository.publish({APP: b"one"})
    new = signers.new_signer()
    draft = draft_of(cloud)
    draft.add_key("targets", new.public_key, time.now_s)
    draft.sign(cloud.root_keys)
    draft.check()
    cloud.repository.replace(draft.root, draft.targets)
    draft = draft_of(cloud)
    draft.renew(("targets",), time.now_s + 1)
    assert draft.sign([new]) == 1
    draft.check()
    cloud.repository.replace(draft.root, draft.targets)
    assert cloud.repository.targets() == {APP}


def test_what_was_signed_before_another_change_is_not_signed_any_more(cloud: Publisher, time: Time) -> None:
    draft = draft_of(cloud)
    draft.renew(("root", "targets"), time.now_s)
    draft.sign([*cloud.root_keys, cloud.targets_key])
    draft.check()
    draft.renew(("root", "targets"), time.now_s)
    assert draft.root and draft.targets and not draft.root.signatures and not draft.targets.signatures


def test_drafts_of_different_changes_are_not_put_together(cloud: Publisher, time: Time) -> None:
    one, other, targets = draft_of(cloud), draft_of(cloud), draft_of(cloud)
    one.renew(("root",), time.now_s)
    other.renew(("root",), time.now_s + 1)
    targets.renew(("targets",), time.now_s)
    for pair in ((one, other), (one, targets), (targets, one)):
        with pytest.raises(Invalid, match="different changes"):
            merged(pair)


def test_what_a_draft_changes_is_told_from_its_documents(cloud: Publisher, time: Time) -> None:
    draft, new = draft_of(cloud), signers.new_signer().public_key
    draft.add_key("root", new, time.now_s)
    draft.set_threshold("root", 2, time.now_s)
    told = Draft.from_bytes(draft.to_bytes()).describe()
    assert told[0].startswith("root: version 1 becomes 2, good until 2028-01-")
    assert told[1:] == [f"root: the key {new.keyid[:12]} may sign", "root: 2 keys must sign instead of 1"]


def test_a_draft_that_would_lock_everybody_out_is_refused(cloud: Publisher, time: Time) -> None:
    draft = draft_of(cloud)
    only = draft.keyids("root")[0]
    with pytest.raises(Invalid, match="root needs 1 keys"):
        draft.remove_key("root", only, time.now_s)
    with pytest.raises(Invalid, match="2 of them cannot be asked for"):
        draft.set_threshold("root", 2, time.now_s)
    with pytest.raises(Invalid, match="may sign root already"):
        draft.add_key("root", cloud.root_keys[0].public_key, time.now_s)
    with pytest.raises(Missing):
        draft.remove_key("targets", only, time.now_s)
    with pytest.raises(Invalid, match="0 of them cannot be asked for"):
        draft.set_threshold("root", 0, time.now_s)
    with pytest.raises(Invalid, match="snapshot is signed by the cloud itself"):
        draft.set_threshold("snapshot", 1, time.now_s)
    with pytest.raises(Invalid, match="the draft changes nothing"):
        draft_of(cloud).check()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 200_000, b'{"format": "other"}', b'{"format":"marram root draft 1"}']
)
def test_what_is_no_draft_is_refused(content: bytes) -> None:
    with pytest.raises(Invalid, match="this is no draft"):
        Draft.from_bytes(content)


def test_a_draft_of_another_format_or_far_too_large_is_refused(cloud: Publisher) -> None:
    good = draft_of(cloud).to_bytes()
    assert Draft.from_bytes(good)
    for content in (good.replace(b"root draft 1", b"root draft 2"), good + b" " * 2_000_000):
        with pytest.raises(Invalid, match="this is no draft"):
            Draft.from_bytes(content)


# ---------------------------------------------------------------- key files


def test_a_key_is_kept_for_its_owner_alone_and_never_written_over(tmp_path: Path) -> None:
    signer, file = signers.new_signer(), tmp_path / "keys" / "root.pem"
    public = signers.save(signer, file, "a passphrase")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert signers.load(file, lambda _: "a passphrase").public_key == signer.public_key
    assert signers.load_public(public) == signer.public_key
    with pytest.raises(Conflict):
        signers.save(signer, file)
    with pytest.raises(Refused, match="does not open this key"):
        signers.load(file, lambda _: "another")
    with pytest.raises(Refused, match="locked with a passphrase"):
        signers.load(file)
    file.chmod(0o644)
    with pytest.raises(Refused, match="others than its owner"):
        signers.load(file)


def test_what_is_no_key_is_said_without_its_content(tmp_path: Path) -> None:
    for content in (b"", b"secret words", b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"):
        file = tmp_path / "key.pem"
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(Invalid) as caught:
            signers.load(file)
        assert "c2Vj" not in str(caught.value) and "secret" not in str(caught.value)


def test_keys_of_another_kind_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    key, file, public = ec.generate_private_key(ec.SECP256R1()), tmp_path / "key.pem", tmp_path / "key.pub"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    file.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(Invalid, match="another kind than Ed25519"):
        signers.load(file)
    with pytest.raises(Invalid, match="another kind than Ed25519"):
        signers.load_public(public)
    good = signers.save(signers.new_signer(), tmp_path / "good.pem")
    good.write_bytes(good.read_bytes() + b"\n" * 16_384)
    with pytest.raises(Invalid, match="far too large"):
        signers.load_public(good)


def test_a_key_is_found_by_its_beginning_where_that_is_one_keys_alone() -> None:
    assert signers.find(["abc1", "abd2"], "ABC") == "abc1"
    for start, fault in (("ab", Invalid), ("", Invalid), ("x", Missing)):
        with pytest.raises(fault):
            signers.find(["abc1", "abd2"], start)
    with pytest.raises(Invalid):
        signers.find(["abc1"], "")
