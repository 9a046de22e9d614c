"""Tokens: who gets in, every reason to stay out, and that nothing of a token is shown."""

import base64
import hashlib
import hmac
import json
import stat
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from uproar.auth import AuthError, Claims, Verifier, load_key, make_token, platform_keys
from uproar.config import load
from uproar.events import User
from uproar.jwks import Key, KeySet, read_pem

KEY = b"k" * 32
NOW = time.time()


PRIVATE = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(private):
    return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def platform(**more):
    """A verifier that knows one key of each type, named by its algorithm."""
    keys = [Key(name, name, key.public_key()) for name, key in PRIVATE.items()]
    return Verifier(KEY, keys=keys, **more)


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(claims, *, header=None, key=KEY):
    """A token made by hand, as a wrong issuer might."""
    head = b64(json.dumps(header or {"alg": "HS256", "typ": "JWT"}).encode())
    body = f"{head}.{b64(json.dumps(claims).encode())}"
    return f"{body}.{b64(hmac.new(key, body.encode(), hashlib.sha256).digest())}"


def check(text):
    return Verifier(KEY).check(text)


def test_what_is_made_is_read():
    made = make_token(
        KEY, sub="u", name="Ü", role="moderator", streams=("a", "b"), color="#fff", badges=["sub"]
    )
    claims = check(made)
    assert (claims.sub, claims.name, claims.role) == ("u", "Ü", "moderator")
    assert claims.streams == ("a", "b")
    assert claims.user() == User("u", "Ü", "moderator", "#fff", ("sub",))
    assert claims.moderates and claims.allows("a") and not claims.allows("c")
    assert NOW + 3590 < claims.expires < NOW + 3700


def test_the_least_is_a_subject():
    assert check(token({"sub": "u"})) == Claims("u", "u")
    assert check(token({"sub": "u"})).allows("anything")
    assert check(token({"sub": "u", "streams": "*"})).streams is None
    assert check(token({"sub": "u", "streams": ["Ab"]})).allows("ab")
    assert not check(token({"sub": "u", "streams": []})).allows("ab")


@pytest.mark.parametrize(
    ("role", "moderates"),
    [("viewer", 0), ("vip", 0), ("moderator", 1), ("broadcaster", 1), ("service", 1)],
)
def test_roles(role, moderates):
    assert check(make_token(KEY, sub="u", name="u", role=role)).moderates == bool(moderates)


REFUSED = {
    "expired": (token({"sub": "u", "exp": NOW - 60}), "expired"),
    "another key": (token({"sub": "u"}, key=b"x" * 32), "signature"),
    "not signed": (jwt.encode({"sub": "u"}, None, algorithm="none"), "not signed"),
    "none in capitals": (
        b64(b'{"alg":"NONE"}') + "." + b64(b'{"sub":"u"}') + ".",
        "not signed",
    ),
    "another algorithm": (jwt.encode({"sub": "u"}, b"k" * 64, algorithm="HS512"), "HS256"),
    "not yet": (token({"sub": "u", "nbf": NOW + 600}), "not valid yet"),
    "changed": (
        ".".join([token({"sub": "u"}).split(".")[0], b64(b'{"sub":"v"}'), "c2ln"]),
        "signature",
    ),
    "empty": ("", "no valid JWT"),
    "words": ("secret-words", "no valid JWT"),
    "dots": ("....", "no valid JWT"),
    "not ASCII": ("é\ud800.b.c", "no valid JWT"),
    "long": ("a" * 8193, "longer than"),
    "a list": (token(["sub"]), "no JSON object"),
    "no sub": (token({"name": "u"}), "`sub`"),
    "sub null": (token({"sub": None}), "not one of ours|`sub`"),
    "sub number": (token({"sub": 5}), "`sub`"),
    "sub empty": (token({"sub": ""}), "`sub`"),
    "sub long": (token({"sub": "u" * 65}), "`sub`"),
    "sub control": (token({"sub": "u\n"}), "`sub`"),
    "name number": (token({"sub": "u", "name": 5}), "`name`"),
    "name empty": (token({"sub": "u", "name": ""}), "`name`"),
    "name control": (token({"sub": "u", "name": "a\x85"}), "`name`"),
    "name surrogate": (token({"sub": "u", "name": "a\ud800"}), "no sound JSON"),
    "role": (token({"sub": "u", "role": "king"}), "`role`"),
    "role list": (token({"sub": "u", "role": ["viewer"]}), "`role`"),
    "begins soon, as text": (token({"sub": "u", "nbf": "0"}), "`nbf`"),
    "exp text": (token({"sub": "u", "exp": str(int(NOW) + 60)}), "`exp`"),
    "exp true": (token({"sub": "u", "exp": True}), "`exp`"),
    "from the future": (token({"sub": "u", "iat": NOW + 600}), "future"),
    "milliseconds": (token({"sub": "u", "follows_since": int(NOW * 1000)}), "unix seconds"),
    "follows as date": (token({"sub": "u", "follows_since": "2026-01-01"}), "unix seconds"),
    "made before time": (token({"sub": "u", "created_at": -1}), "unix seconds"),
    "subscriber word": (token({"sub": "u", "subscriber": "yes"}), "`subscriber`"),
    "subscriber number": (token({"sub": "u", "subscriber": 1}), "`subscriber`"),
    "an extension": (token({"sub": "u"}, header={"alg": "HS256", "crit": ["exp"]}), "crit"),
    "alg list": (token({"sub": "u"}, header={"alg": ["HS256"]}), "no valid JWT"),
    "kid number": (token({"sub": "u"}, header={"alg": "HS256", "kid": 5}), "no valid JWT"),
    "no alg": (token({"sub": "u"}, header={"typ": "JWT"}), "no valid JWT"),
    "deep header": (b64(b'{"alg":' + b"[" * 5000) + ".e30.c2ln", "no valid JWT"),
    "deep claims": (
        jwt.PyJWS().encode(b"[" * 5000, KEY, algorithm="HS256"),
        "no sound JSON",
    ),
    "padding": (token({"sub": "u"}) + "!!", "no valid JWT"),
    "for others": (token({"sub": "u", "aud": "shop"}), "audience"),
    "RS256 without keys": (
        jwt.encode({"sub": "u"}, PRIVATE["RS256"], algorithm="RS256"),
        "must be signed with HS256",
    ),
    "streams word": (token({"sub": "u", "streams": "a"}), "`streams`"),
    "streams number": (token({"sub": "u", "streams": 5}), "`streams`"),
    "streams mixed": (token({"sub": "u", "streams": ["a", 5]}), "`streams`"),
    "streams null": (token({"sub": "u", "streams": None}), "`streams`"),
    "color": (token({"sub": "u", "color": "x" * 33}), "`color`"),
    "color list": (token({"sub": "u", "color": []}), "`color`"),
    "badges word": (token({"sub": "u", "badges": "sub"}), "`badges`"),
    "badges many": (token({"sub": "u", "badges": ["b"] * 17}), "`badges`"),
    "exp null": (token({"sub": "u", "exp": None}), "`exp`"),
    "exp list": (token({"sub": "u", "exp": [1]}), "`exp`"),
    "exp endless": (token({"sub": "u", "exp": float("inf")}), "no sound JSON"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_every_refusal_is_a_sentence_that_shows_nothing_of_the_token(name):
    text, said = REFUSED[name]
    verifier = Verifier(KEY)
    for _ in range(2):  # and again: a refusal must not get into the cache
        with pytest.raises(AuthError, match=said) as refusal:
            verifier.check(text)
        for part in text.split("."):
            assert len(part) < 3 or part not in str(refusal.value)


def test_what_would_be_refused_is_not_made():
    for claims in ({"sub": ""}, {"role": "king"}, {"name": "x" * 65}, {"color": 5}):
        with pytest.raises(AuthError):
            make_token(KEY, **{"sub": "u", "name": "u", **claims})


def test_the_cache_does_not_outlive_the_token():
    verifier = Verifier(KEY, leeway_s=5.0)
    made = make_token(KEY, sub="u", name="u", ttl_s=60)
    claims = verifier.check(made)
    assert verifier.check(made) is claims
    assert verifier.check(made, now=claims.expires + 4.0) is claims
    with pytest.raises(AuthError, match="expired"):
        verifier.check(made, now=claims.expires + 5.1)


def test_the_cache_is_bounded():
    verifier = Verifier(KEY, cache=10)
    for number in range(50):
        assert verifier.check(make_token(KEY, sub=f"u{number}", name="u")).sub == f"u{number}"
    assert len(verifier._cache) <= 10


def test_what_the_modes_ask_for():
    claims = check(
        make_token(KEY, sub="u", name="u", follows_since=5, subscriber=True, created_at=7.9)
    )
    assert (claims.follows_since, claims.subscriber, claims.created_at) == (5, True, 7)
    claims = check(token({"sub": "u", "follows_since": None, "created_at": None}))
    assert (claims.follows_since, claims.subscriber, claims.created_at) == (None, False, None)


def test_a_full_cache_forgets_the_oldest_alone():
    verifier = Verifier(KEY, cache=10)
    made = [make_token(KEY, sub=f"u{number}", name="u") for number in range(11)]
    claims = [verifier.check(text) for text in made]
    assert verifier.check(made[10]) is claims[10] and verifier.check(made[1]) is claims[1]
    assert verifier.check(made[0]) is not claims[0]


def test_an_expired_token_leaves_the_cache():
    verifier = Verifier(KEY, leeway_s=0)
    made = make_token(KEY, sub="u", name="u", ttl_s=60)
    with pytest.raises(AuthError, match="expired"):
        verifier.check(made, now=verifier.check(made).expires)
    assert not verifier._cache


# -- the platform's keys ---------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("algorithm", sorted(PRIVATE))
def test_a_platform_signs_with_its_own_key(algorithm, named):
    headers = {"kid": algorithm} if named else None
    made = jwt.encode(
        {"sub": "u", "role": "vip"}, PRIVATE[algorithm], algorithm=algorithm, headers=headers
    )
    verifier = platform()
    assert verifier.check(made) == Claims("u", "u", "vip")
    assert verifier.check(make_token(KEY, sub="guest", name="G")).sub == "guest"


@pytest.mark.parametrize("algorithm", sorted(PRIVATE))
def test_another_key_of_the_same_type_is_refused(algorithm):
    for headers in ({"kid": algorithm}, None):
        made = jwt.encode({"sub": "u"}, OTHER[algorithm], algorithm=algorithm, headers=headers)
        with pytest.raises(AuthError, match="signature does not fit"):
            platform().check(made)


@pytest.mark.parametrize("algorithm", sorted(PRIVATE))
def test_a_key_that_is_not_known_is_refused(algorithm):
    headers = {"kid": "secret-name"}
    made = jwt.encode({"sub": "u"}, PRIVATE[algorithm], algorithm=algorithm, headers=headers)
    with pytest.raises(AuthError, match="`kid`") as refusal:
        platform().check(made)
    assert "secret-name" not in str(refusal.value)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("form", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("algorithm", sorted(PRIVATE))
def test_a_public_key_never_serves_as_a_secret(algorithm, form, named):
    """The classic confusion: HS256 with what everybody knows of an RS256 key as the secret."""
    public = PRIVATE[algorithm].public_key().public_bytes(form, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "HS256"} | ({"kid": algorithm} if named else {})
    for secret in (public, public.strip()):
        with pytest.raises(AuthError, match="signature does not fit"):
            platform().check(token({"sub": "u", "role": "service"}, header=header, key=secret))


@pytest.mark.parametrize(
    ("algorithm", "claimed"),
    [
        (algorithm, claimed)
        for algorithm in sorted(PRIVATE)
        for claimed in ("RS256", "ES256", "EdDSA", "PS256", "RS512", "ES384")
        if claimed != algorithm
    ],
)
def test_a_key_is_used_with_its_own_algorithm_alone(algorithm, claimed):
    made = jwt.encode({"sub": "u"}, PRIVATE[algorithm], algorithm=algorithm)
    header = b64(json.dumps({"alg": claimed, "kid": algorithm}).encode())
    body = f"{header}.{made.split('.')[1]}"
    made = f"{body}.{made.split('.')[2]}"
    with pytest.raises(AuthError, match="not one of ours"):
        platform().check(made)


def test_the_right_key_with_another_hash_is_refused():
    for algorithm in ("PS256", "RS512"):
        made = jwt.encode(
            {"sub": "u"}, PRIVATE["RS256"], algorithm=algorithm, headers={"kid": "RS256"}
        )
        with pytest.raises(AuthError, match="must be signed with ES256 or EdDSA or HS256 or RS256"):
            platform().check(made)


def test_a_key_that_the_token_brings_along_is_not_used():
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(OTHER["ES256"].public_key()))
    headers = {"jwk": jwk, "jku": "http://127.0.0.1:9/", "x5u": "http://127.0.0.1:9/"}
    made = jwt.encode({"sub": "u"}, OTHER["ES256"], algorithm="ES256", headers=headers)
    with pytest.raises(AuthError, match="signature does not fit"):
        platform().check(made)


def test_without_a_name_only_a_few_keys_are_tried():
    keys = [Key(f"k{n}", "ES256", PRIVATE["ES256"].public_key()) for n in range(5)]
    made = jwt.encode({"sub": "u"}, PRIVATE["ES256"], algorithm="ES256")
    assert Verifier(KEY, keys=keys[:4]).check(made).sub == "u"
    with pytest.raises(AuthError, match="names no key"):
        Verifier(KEY, keys=keys).check(made)
    made = jwt.encode({"sub": "u"}, PRIVATE["ES256"], algorithm="ES256", headers={"kid": "k4"})
    assert Verifier(KEY, keys=keys).check(made).sub == "u"


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"iss": "https://id", "aud": "chat"}, None),
        ({"iss": "https://id", "aud": ["shop", "chat"]}, None),
        ({"aud": "chat"}, "issuer"),
        ({"iss": "https://evil", "aud": "chat"}, "issuer"),
        ({"iss": ["https://id"], "aud": "chat"}, "issuer"),
        ({"iss": "https://id"}, "names no audience"),
        ({"iss": "https://id", "aud": "chatter"}, "another audience"),
        ({"iss": "https://id", "aud": []}, "another audience"),
        ({"iss": "https://id", "aud": {"chat": 1}}, "another audience"),
    ],
)
def test_issuer_and_audience(claims, said):
    verifier = platform(issuer="https://id", audience="chat")
    made = jwt.PyJWS().encode(
        json.dumps({"sub": "u", **claims}).encode(), PRIVATE["ES256"], algorithm="ES256"
    )
    if said is None:
        assert verifier.check(made).sub == "u"
        return
    with pytest.raises(AuthError, match=said):
        verifier.check(made)


def test_own_tokens_need_no_issuer_but_a_wrong_one_is_wrong():
    verifier = platform(issuer="https://id", audience="chat")
    assert verifier.check(token({"sub": "u"})).sub == "u"
    assert verifier.check(token({"sub": "u", "iss": "https://id", "aud": "chat"})).sub == "u"
    for claims in ({"iss": "https://evil"}, {"aud": "shop"}):
        with pytest.raises(AuthError, match="another"):
            verifier.check(token({"sub": "u", **claims}))


def jwks(**keys):
    entries = []
    for kid, private in keys.items():
        kinds = {"RS": jwt.algorithms.RSAAlgorithm, "ES": jwt.algorithms.ECAlgorithm}
        made = kinds.get(kid[:2], jwt.algorithms.OKPAlgorithm).to_jwk(private.public_key())
        entries.append({**json.loads(made), "kid": kid})
    return json.dumps({"keys": entries})


def test_a_withdrawn_key_is_forgotten_with_what_it_signed(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(jwks(ES1=PRIVATE["ES256"]))
    found = KeySet(str(path))
    found.load()
    verifier = Verifier(KEY, sets=[found])
    made = jwt.encode({"sub": "u"}, PRIVATE["ES256"], algorithm="ES256", headers={"kid": "ES1"})
    assert verifier.check(made) is verifier.check(made)
    path.write_text(jwks(ES2=OTHER["ES256"]))
    found.load()
    with pytest.raises(AuthError, match="not among the platform's"):
        verifier.check(made)
    made = jwt.encode({"sub": "u"}, OTHER["ES256"], algorithm="ES256", headers={"kid": "ES2"})
    assert verifier.check(made).sub == "u"


# -- from settings ---------------------------------------------------------------------------------


def config(tmp_path, **auth):
    flags = {"data": str(tmp_path), **{f"auth.{name}": value for name, value in auth.items()}}
    return load(environ={}, flags=flags)


def test_the_settings_bring_all_keys(tmp_path):
    (tmp_path / "es.pem").write_bytes(pem(PRIVATE["ES256"]))
    (tmp_path / "set.json").write_text(jwks(RS1=PRIVATE["RS256"]))
    settings = config(
        tmp_path, keys=[str(tmp_path / "es.pem")], jwks_file=str(tmp_path / "set.json"),
        issuer="me",
    )  # fmt: skip
    verifier = Verifier.from_config(settings)
    try:
        for algorithm, kid in (("ES256", "es"), ("RS256", "RS1")):
            claims = {"sub": kid, "iss": "me"}
            made = jwt.encode(claims, PRIVATE[algorithm], algorithm=algorithm, headers={"kid": kid})
            assert verifier.check(made).sub == kid
        own = make_token(load_key(tmp_path / "signing.key"), sub="own", name="O")
        assert verifier.check(own).sub == "own"
    finally:
        verifier.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read: No such file"),
        (b"", "begins with -----BEGIN PUBLIC KEY"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
        (b"-----BEGIN PRIVATE KEY-----\n", "private key.*-pubout"),
        (b"-----BEGIN CERTIFICATE-----\n", "certificate.*-pubkey"),
        (pem(rsa.generate_private_key(65537, 1024)), "2048 to 8192 bits, not 1024"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "RSA, EC on P-256 or Ed25519"),
    ],
)
def test_a_public_key_that_can_t_be_used_is_named_with_the_remedy(tmp_path, content, said):
    path = tmp_path / "some.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AuthError, match=rf"auth\.keys: .*some\.pem: .*{said}"):
        platform_keys(config(tmp_path, keys=[str(path)]))


def test_a_key_file_gives_its_name_and_algorithm(tmp_path):
    for algorithm, private in PRIVATE.items():
        path = tmp_path / f"2026-{algorithm}.pem"
        path.write_bytes(pem(private))
        assert read_pem(path)[:2] == (f"2026-{algorithm}", algorithm)


def test_a_key_set_file_that_can_t_be_used_is_named(tmp_path):
    with pytest.raises(AuthError, match=r"auth\.jwks_file: .*none\.json: .*No such file"):
        platform_keys(config(tmp_path, jwks_file=str(tmp_path / "none.json")))
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(AuthError, match=r"auth\.jwks_file: .*bad\.json: .*keys"):
        platform_keys(config(tmp_path, jwks_file=str(tmp_path / "bad.json")))


def test_the_key_is_made_once_for_its_owner_alone(tmp_path):
    path = tmp_path / "signing.key"
    key = load_key(path)
    assert load_key(path) == key and len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(tmp_path / "other.key") != key


def test_a_key_that_can_t_be_used_is_named_with_the_remedy(tmp_path):
    short = tmp_path / "short.key"
    short.write_text("abc")
    with pytest.raises(AuthError, match=r"short\.key: .*at least 32 bytes"):
        load_key(short)
    with pytest.raises(AuthError, match="can't be made: No such file"):
        load_key(tmp_path / "missing" / "k")
    with pytest.raises(AuthError, match="can't be read: Is a directory"):
        load_key(tmp_path)
