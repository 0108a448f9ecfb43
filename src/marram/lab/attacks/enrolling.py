"""Attacks on how a device gets its identity, and keeps it: joining and renewing, over HTTPS and the bus."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from marram.bus import subjects
from marram.edge.platform import machine
from marram.edge.renewing import Renewing
from marram.lab.attacks.impostor import Impostor
from marram.lab.attacks.scene import Identity, Scene, Suite
from marram.schema.api import RenewAsk, Renewed, StandingAsk
from marram.schema.errors import MarramError, Permanent, Threat, Untrusted
from marram.store import TokenRow
from marram.trust import JOIN, identity, new_token, pki
from marram.trust.authority import Authority
from marram.trust.keys import Keys

RACERS = 8

SUITE = Suite()


def _ask(scene: Scene, token: str, csr: bytes | None = None, name: str | None = None) -> None:
    """Join without the manners of our own command."""
    csr = csr or identity.request(identity.new_key())
    with scene.api() as cloud:
        cloud.join(token, csr.decode(), name=name, info=machine())


def _foreign(scene: Scene) -> Authority:
    """Of another cloud."""
    return Authority.create(Keys(scene.path("other-cloud")), time.time())


# ---------------------------------------------------------------- the token


@SUITE.attack(f"join token: raced by {RACERS} enrolments", Threat.SPENT)
def _raced(scene: Scene) -> None:
    token = scene.token()

    def race(number: int) -> MarramError | None:
        try:
            _ask(scene, token, name=f"racer-{number}")
        except MarramError as error:
            return error
        return None

    with ThreadPoolExecutor(RACERS) as pool:
        ends = list(pool.map(race, range(RACERS)))
    lost = [end for end in ends if end is not None]
    joined = [name for name in scene.cloud.state.store.devices.admissible() if name.startswith("racer-")]
    if len(lost) != RACERS - 1 or len(joined) != 1:
        raise Permanent(f"{len(joined)} devices joined with one token")
    for end in lost:
        if not isinstance(end, Untrusted) or end.threat is not Threat.SPENT:
            raise end
    raise lost[0]


@SUITE.attack("join token: used again", Threat.SPENT)
def _again(scene: Scene) -> None:
    token = scene.token()
    scene.join("first", token)
    scene.join("second", token)


@SUITE.attack("join token: expired", Threat.STALE)
def _expired(scene: Scene) -> None:
    token, now_s = new_token(JOIN, scene.cloud.state.authority.fingerprint), time.time()
    row = TokenRow(token.id, token.secret_hash, {}, 1, 1, now_s - 7200, now_s - 3600)
    scene.cloud.state.store.tokens.add(row)
    scene.join("late", token.text)


@SUITE.attack("join token: revoked", Threat.UNKNOWN)
def _revoked_token(scene: Scene) -> None:
    token = scene.token()
    scene.cloud.state.revoke_token(token.split(".")[1][:8])
    scene.join("late", token)


@SUITE.attack("join token: made up", Threat.UNKNOWN)
def _made_up(scene: Scene) -> None:
    scene.join("guest", new_token(JOIN, scene.cloud.state.authority.fingerprint).text)


@SUITE.attack("join token: another secret of one that exists", Threat.UNKNOWN)
def _other_secret(scene: Scene) -> None:
    kind, secret, cloud = scene.token().split(".")
    scene.join("guest", f"{kind}.{secret[:8]}{secret[:7:-1]}.{cloud}")


@SUITE.attack("join token: of another cloud, as the device checks it", Threat.OTHER_CLOUD)
def _foreign_token(scene: Scene) -> None:
    scene.join("guest", new_token(JOIN, _foreign(scene).fingerprint).text)


@SUITE.attack("join token: of another cloud, brought here all the same", Threat.OTHER_CLOUD)
def _brought(scene: Scene) -> None:
    _ask(scene, new_token(JOIN, _foreign(scene).fingerprint).text)


@SUITE.attack("join token: another cloud stands where this one was", Threat.OTHER_CLOUD)
def _impostor(scene: Scene) -> None:
    other = _foreign(scene)
    _overheard(scene, other.server_certificate(["localhost"], time.time()), other.certificate_pem)


@SUITE.attack("join token: another cloud shows this one's authority", Threat.OTHER_CLOUD)
def _borrowed(scene: Scene) -> None:
    _overheard(scene, _foreign(scene).server_certificate(["localhost"], time.time()), scene.authority)


@SUITE.attack("join token: a device stands where the cloud was", Threat.OTHER_CLOUD)
def _device_as_cloud(scene: Scene) -> None:
    _overheard(scene, scene.thief.own, scene.authority)


def _overheard(scene: Scene, shown: bytes, authority: bytes) -> None:
    """A device is led to an impostor, which must not hear its token."""
    token = scene.token()
    with closing(Impostor(scene.folder, shown, authority)) as impostor:
        try:
            scene.join("led-astray", token, impostor.url)
        finally:
            if token.split(".")[1].encode() in impostor.heard or b"POST" in impostor.heard:
                raise Permanent("the impostor heard the token")


@SUITE.attack("join token: shown over plain HTTP", "over HTTPS only")
def _in_the_clear(scene: Scene) -> None:
    with scene.plain(None) as cloud:
        cloud.join(scene.token(), identity.request(identity.new_key()).decode(), info=machine())


@SUITE.attack("join token: used as an API token", "the token is not one of this cloud's")
def _as_api_token(scene: Scene) -> None:
    with scene.api(scene.token()) as cloud:
        cloud.devices()


# ---------------------------------------------------------------- the name and the request


@SUITE.attack("joining: as a device that exists", '"victim" exists already')
def _taken(scene: Scene) -> None:
    scene.join("victim")


@SUITE.attack("joining: as a device that was revoked", Threat.REVOKED)
def _revoked_name(scene: Scene) -> None:
    scene.join("outcast")
    scene.cloud.state.store.devices.revoke("outcast")
    scene.join("outcast")


@SUITE.attack("joining: with the key of another device", Threat.CLONED)
def _stolen_key(scene: Scene) -> None:
    _ask(scene, scene.token(), identity.request(scene.victim.own))


@SUITE.attack("joining: a request for a key that somebody else has", Threat.WRONG_KEY)
def _signed_by_another(scene: Scene) -> None:
    """The request names the victim's public key; the thief signs it with its own."""
    request = x509.load_pem_x509_csr(identity.request(scene.victim.own))
    signature = pki.new_key().sign(request.tbs_certrequest_bytes, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    content = request.tbs_certrequest_bytes + algorithm + _der(0x03, b"\0" + signature)
    forged = x509.load_der_x509_csr(_der(0x30, content))
    _ask(scene, scene.token(), forged.public_bytes(serialization.Encoding.PEM))


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    size = [length] if length < 128 else [0x81, length]
    return bytes([tag, *size]) + content


def _weak(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Callable[[Scene], None]:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return lambda scene: _ask(scene, scene.token(), request.public_bytes(serialization.Encoding.PEM))


_STRANGE = "the key is of another kind"
SUITE.add("joining: RSA of 1024 bits", _STRANGE, lambda scene: _weak(rsa.generate_private_key(65537, 1024))(scene))
SUITE.add("joining: a curve of 192 bits", _STRANGE, lambda scene: _weak(ec.generate_private_key(ec.SECP192R1()))(scene))
SUITE.add("joining: garbage for a request", "this is no signing request",
          lambda scene: _ask(scene, scene.token(), b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END"))  # fmt: skip
SUITE.add("joining: a certificate for a request", "this is no signing request",
          lambda scene: _ask(scene, scene.token(), scene.authority))  # fmt: skip


# ---------------------------------------------------------------- renewing


def _renew(scene: Scene, ask: RenewAsk) -> None:
    with scene.api() as cloud:
        cloud.renew(ask)


@SUITE.attack("renewing: another device's certificate, without its key", Threat.WRONG_KEY)
def _without_key(scene: Scene) -> None:
    _renew(scene, scene.victim.ask(signer=scene.thief.own))


@SUITE.attack("renewing: asking why another device is refused, without its key", Threat.WRONG_KEY)
def _anothers_standing(scene: Scene) -> None:
    certificate = identity.certificate_of(scene.victim.own).decode()
    with scene.api() as cloud:
        cloud.standing(StandingAsk(certificate=certificate, proof=identity.prove_standing(scene.thief.own)))


@SUITE.attack("renewing: a proof that was made for another request", Threat.WRONG_KEY)
def _replayed_proof(scene: Scene) -> None:
    theirs = identity.request(identity.new_key()).decode()
    _renew(scene, scene.victim.ask().model_copy(update={"csr": theirs}))


@SUITE.attack("renewing: a proof that is none", Threat.WRONG_KEY)
def _no_proof(scene: Scene) -> None:
    _renew(scene, scene.victim.ask().model_copy(update={"proof": "AAAA"}))


@SUITE.attack("renewing: another device's certificate, as oneself on the bus", Threat.NOT_YOURS)
def _as_oneself(scene: Scene) -> None:
    _on_bus(scene, scene.thief, scene.victim.ask())


def _on_bus(scene: Scene, who: Identity, ask: RenewAsk) -> None:
    async def renew() -> None:
        async with await scene.connect(who.name, who.tls) as bus:
            await bus.wait_connected(10)
            await bus.request(subjects.renew(who.name), ask.model_dump_json().encode(), 10)

    scene.run(renew())


@SUITE.attack("renewing: a certificate of the same name by another authority", Threat.OTHER_CLOUD)
def _forged(scene: Scene) -> None:
    _renew(scene, _by(_foreign(scene), scene).ask())


@SUITE.attack("renewing: a certificate of this authority that was never given out", Threat.OTHER_CLOUD)
def _never_issued(scene: Scene) -> None:
    _renew(scene, _by(scene.cloud.state.authority, scene).ask())


def _by(authority: Authority, scene: Scene) -> Identity:
    """The victim's name on a certificate by `authority`, with a key of the thief's."""
    stolen, key = scene.victim.copy(scene.path("forged")), identity.new_key()
    issued = authority.device_certificate(identity.request(key), stolen.name, time.time())
    stolen.folder.identity.own.write_bytes(key + issued.pem)
    return stolen


@SUITE.attack("renewing: a service's certificate", Threat.NOT_YOURS)
def _service(scene: Scene) -> None:
    made = _by(scene.cloud.state.authority, scene)
    made.folder.identity.own.write_bytes(scene.cloud.state.authority.service_certificate("cloud", time.time()))
    _renew(scene, made.ask())


@SUITE.attack("renewing: a copy, after the device renewed", Threat.CLONED)
def _clone_renews(scene: Scene) -> None:
    device = scene.join("copied")
    clone = device.copy(scene.path("clone"))
    scene.renewed(device)
    _renew(scene, clone.ask())


@SUITE.attack("renewing: beyond the grace period", Threat.EXPIRED)
def _beyond_grace(scene: Scene) -> None:
    _renew(scene, scene.aged(scene.join("forgotten"), 200).ask())


@SUITE.attack("renewing: revoked", Threat.REVOKED)
def _revoked_renews(scene: Scene) -> None:
    device = scene.join("dismissed")
    scene.cloud.state.store.devices.revoke("dismissed")
    _renew(scene, device.ask())


@SUITE.attack("renewing: for the key it has", "is the present one")
def _same_key(scene: Scene) -> None:
    device = scene.join("lazy")
    _renew(scene, device.ask(csr=identity.request(device.own)))


# ---------------------------------------------------------------- what a device takes for an answer


def _answered(authority: Callable[[Scene], Authority], name: str, own_key: bool) -> Callable[[Scene], None]:
    """The victim asks for a new certificate; somebody on the way answers."""

    def answer(scene: Scene) -> None:
        asking = scene.victim.copy(scene.path("asking"))
        before = asking.own
        renewing = Renewing(asking.folder.identity)
        ask = RenewAsk.model_validate_json(renewing.request())
        csr = ask.csr.encode() if own_key else identity.request(identity.new_key())
        issued = authority(scene).device_certificate(csr, name, time.time())
        try:
            renewing.accept(Renewed(certificate=issued.pem.decode()).model_dump_json().encode())
        finally:
            if asking.own != before:
                raise Permanent("it took the answer's place")

    return answer


SUITE.add("renewal answered: by another authority", Threat.OTHER_CLOUD, _answered(_foreign, "victim", True))
SUITE.add("renewal answered: for another key", Threat.WRONG_KEY,
          _answered(lambda scene: scene.cloud.state.authority, "victim", False))  # fmt: skip
SUITE.add("renewal answered: for another device", Threat.NOT_YOURS,
          _answered(lambda scene: scene.cloud.state.authority, "thief", True))  # fmt: skip
