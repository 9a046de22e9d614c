"""One validated tree of settings: `uproar.toml`, then `UPROAR_SECTION__KEY`, then flags.

Every field has its unit in its name or comment and the reason for its default. An unknown key or
a bad value raises ConfigError with the path of the setting. `uproar config` prints the effective
tree.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

ENV_PREFIX = "UPROAR_"
# Environment words that are not settings: read by tests, tools and the processes themselves.
ENV_RESERVED = frozenset(
    f"UPROAR_{word}" for word in ("TOKEN", "ENGINE", "CHAT_DATA", "NATIVE", "DEBUG", "STACK")
)
# And whole families of them: which real servers tests use (`python -m deploy.stack --help`).
ENV_RESERVED_PREFIXES = ("UPROAR_TEST_", "UPROAR_STACK_")

STORE_ENGINES = ("sqlite", "cassandra")
STORE_CONSISTENCIES = ("local_quorum", "quorum")

STATE_ENGINES = ("valkey", "cluster")
CLUSTER_SHARDS = 100
MODERATION_STAGES = ("rules", "linear", "reputation")
MODERATION_ACTIONS = ("allow", "flag", "hold", "delete")

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class ConfigError(Exception):
    """A setting that can't be used; the message names its path and what to do."""


class _Section(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Server(_Section):
    """Where the system listens. Loopback by default: opening it to others is a decision."""

    host: str = "127.0.0.1"
    port: Port = 8080  # 0 picks a free one
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8081  # 0 picks a free one; so does `port = 0` where this is not set
    gateways: Annotated[int, Meta(ge=1, le=256)] = 2  # two, so that one may die and viewers stay
    origins: list[str] = []  # allowed Origin, CORS and frame-ancestors; empty: any
    # Networks of the balancers in front, ["10.0.0.0/24"]: from them X-Forwarded-For says whose
    # address it is that limits count. Empty: nobody's word counts.
    trusted_proxies: Annotated[list[str], Meta(max_length=64)] = []


class Auth(_Section):
    """Tokens. The signing key is made at the first start, mode 0600, in the data directory."""

    key_file: str = ""  # empty: {data}/signing.key
    guests: bool = True  # POST /session gives a viewer token to anybody
    guest_ttl_s: Seconds = 43_200.0  # as long as the longest streams
    guests_per_minute: Positive = 60  # guest tokens per address: a classroom behind one NAT
    leeway_s: Annotated[float, Meta(ge=0, le=300)] = 5.0  # clock skew between issuer and us
    # The platform's public keys, beside the signing key: docs/tokens.md.
    keys: Annotated[list[str], Meta(max_length=16)] = []  # PEM files; the name is the `kid`
    jwks_url: str = ""  # its key set, http(s), fetched in the background
    jwks_file: str = ""  # or in a file
    jwks_refresh_s: Seconds = 300.0  # how soon a withdrawn key is no longer taken
    jwks_cooldown_s: Seconds = 30.0  # between readings that unknown keys or failures cause
    jwks_timeout_s: Seconds = 5.0  # a whole answer
    issuer: str = ""  # the claim `iss` of the platform's tokens; empty: any
    audience: str = ""  # and `aud`; empty: only tokens without one


class Streams(_Section):
    """Which stream ids exist."""

    open: bool = True  # any well-formed id is a stream; false: only those opened before


class PerMinute(_Section):
    """Comments a minute per user and stream, by role; 0: no limit."""

    viewer: Natural = 10
    vip: Natural = 20
    moderator: Natural = 100
    broadcaster: Natural = 100
    service: Natural = 0


class Limits(_Section):
    """What one sender may cost. Every limit answers with a code, never with silence."""

    max_chars: Annotated[int, Meta(ge=1, le=4000)] = 500  # code points in a comment
    max_bytes: Annotated[int, Meta(ge=1, le=16_000)] = 2000  # 500 code points of 4 bytes
    per_minute: PerMinute = msgspec.field(default_factory=PerMinute)
    commands_per_second: Positive = 50  # per session, over a second; above: close 4029
    reactions_per_message: Positive = 100  # the `count` of one REACT: two seconds of fast tapping
    command_bytes: Annotated[int, Meta(ge=1024, le=1 << 20)] = 65_536  # one WebSocket message
    body_bytes: Annotated[int, Meta(ge=1024, le=1 << 24)] = 1 << 20  # one HTTP request body
    handshake_s: Seconds = 5.0  # for the whole request head
    handshake_bytes: Annotated[int, Meta(ge=1024, le=65_536)] = 16_384  # request head
    connections: Positive = 18_000  # per gateway process; files per process are often 20,000
    connections_per_address: Positive = 18_000  # loopback and proxies hold everybody
    fragments: Positive = 4096  # pieces of one message
    accepts_per_second: Positive = 10_000  # per gateway process; more wait in the listen queue


class Log(_Section):
    """The log: a Valkey of its own with `appendfsync always`, or a topic of Apache Kafka."""

    engine: str = "valkey"  # or "kafka"
    batch_records: Annotated[int, Meta(ge=1, le=10_000)] = 1000  # per append and partition
    timeout_s: Seconds = 5.0  # a blocked append or read
    # valkey:
    max_memory_mb: Annotated[int, Meta(ge=64)] = 1024
    keep_s: Annotated[float, Meta(ge=600, le=604_800)] = 600.0  # never trimmed within this
    # kafka: docs/scaling-out.md. A topic that promises less than this is refused at start.
    brokers: str = ""  # HOST:PORT, several with commas between
    topic: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9._-]{1,200}$")] = "comments"  # made if missing
    partitions: Annotated[int, Meta(ge=1, le=1000)] = 12  # for good: it decides where streams lie
    replicas: Annotated[int, Meta(ge=1, le=10)] = 3  # of every record
    min_insync: Annotated[int, Meta(ge=1, le=10)] = 2  # have it before it is acknowledged
    retention_s: Annotated[float, Meta(ge=600)] = 86_400.0  # how far behind the archive may be
    session_s: Annotated[float, Meta(ge=1, le=300)] = 6.0  # till a dead worker's partitions move
    member: Annotated[str, Meta(max_length=200)] = ""  # our name in groups; empty: hostname
    user: str = ""  # by SCRAM-SHA-512; empty: no login
    password_file: str = ""  # its first line
    ca_file: str = ""  # PEM; given: TLS, and only to brokers with a certificate of theirs
    cert_file: str = ""  # our own certificate, where the brokers ask for one
    key_file: str = ""


class Store(_Section):
    """History: the embedded SQLite file, or a Cassandra cluster (docs/scaling-out.md)."""

    engine: str = "sqlite"  # or "cassandra"; what follows is Cassandra's
    hosts: Annotated[list[str], Meta(min_length=1, max_length=64)] = msgspec.field(
        default_factory=lambda: ["127.0.0.1"]  # any of them leads to the others
    )
    port: Annotated[int, Meta(ge=1, le=65535)] = 9042
    keyspace: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,47}$")] = "uproar"
    datacenter: str = ""  # the one to talk to; empty: that of the host that answers first
    # Copies of a row in that data center, for the keyspace when it is made; a keyspace with fewer
    # is refused. Below 3 a node that is down takes the store with it.
    replication: Annotated[int, Meta(ge=1, le=16)] = 3
    consistency: str = "local_quorum"  # or "quorum", over all data centers
    user: str = ""  # empty: no login
    password_file: str = ""  # its first line
    ca_file: str = ""  # PEM; given: TLS, and only to servers with a certificate of theirs
    # How long comments are kept; 0: for good. Cassandra's limit is 20 years.
    ttl_s: Annotated[int, Meta(ge=0, le=630_000_000)] = 0
    timeout_s: Seconds = 5.0  # a whole call; the archive tries again, a page says "unavailable"
    in_flight: Annotated[int, Meta(ge=1, le=1024)] = 64  # requests at a time of one process


class State(_Section):
    """Bus and state: the second embedded Valkey, or a Redis or Valkey Cluster."""

    engine: str = "valkey"  # the embedded one; or "cluster"
    nodes: Annotated[list[str], Meta(max_length=1000)] = []  # HOST:PORT of some of a cluster
    user: str = ""  # of its access list; empty: its default user
    password_file: str = ""  # its first line; empty: no password
    ca_file: str = ""  # PEM; given: TLS, and only to nodes with a certificate of theirs
    cert_file: str = ""  # our own certificate, where the nodes ask for one
    key_file: str = ""
    max_memory_mb: Annotated[int, Meta(ge=64)] = 512  # of the embedded one
    timeout_s: Seconds = 2.0
    ring_s: Seconds = 120.0  # how long a batch stays in the ring
    ring_bytes: Annotated[int, Meta(ge=65_536)] = 4 << 20  # per stream
    interest_lease_s: Seconds = 30.0
    gateway_lease_s: Seconds = 5.0  # a dead gateway's viewers leave the count within this


class Bus(_Section):
    """How batches are spread over gateways; each gateway process listens on one shard."""

    # 0: 1 on the embedded Valkey, 100 on a cluster, where they spread a stream over the masters.
    shards: Annotated[int, Meta(ge=0, le=10_000)] = 0


class Ingest(_Section):
    """The process that owns the log's partitions."""

    address: str = ""  # unix:PATH or tcp:HOST:PORT; empty: a socket in the data directory
    pending: Positive = 20_000  # submissions waiting for their acknowledgement, in all
    ack_deadline_s: Seconds = 5.0  # after this a submission is answered `unavailable`


class Sampling(_Section):
    """When a stream is too fast to be read, a share of its comments is shown. History has all."""

    threshold: Natural = 5000  # comments/s of a stream above which sampling begins; 0: never
    ratio: Annotated[float, Meta(gt=0, le=1)] = 0.2  # the share shown
    release: Annotated[float, Meta(gt=0, le=1)] = 0.6  # of the threshold: below it is calm
    calm_s: Seconds = 10.0  # for so long: sampling ends


Kind = Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,32}$")]


class Reactions(_Section):
    """What viewers may react with. Words, so that every client draws them in its own way."""

    kinds: Annotated[list[Kind], Meta(min_length=1, max_length=32)] = msgspec.field(
        default_factory=lambda: ["fire", "heart", "clap", "laugh", "wow", "sad"]
    )


class Gateway(_Section):
    """The process that holds viewers."""

    # This host's, before the names of its gateways: two gateways of one name would take each
    # other's lease. Empty: the machine's name on a host of a cluster, none for `uproar serve`.
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{0,32}$")] = ""
    tick_ms: Annotated[float, Meta(ge=1, le=1000)] = 10.0
    backlog_max: Annotated[int, Meta(ge=0, le=1000)] = 100
    backlog_default: Annotated[int, Meta(ge=0, le=1000)] = 50
    resume_max: Annotated[int, Meta(ge=1, le=10_000)] = 1000  # comments a resume may bring
    recent_s: Seconds = 120.0  # events kept in memory per live stream
    recent_events: Annotated[int, Meta(ge=100)] = 5000
    fill_s: Seconds = 3.0  # a hole not filled within this becomes a GAP
    queue_bytes: Annotated[int, Meta(ge=65_536)] = 1 << 20  # unsent bytes per viewer
    queue_s: Seconds = 10.0  # and their age; above either: `overflow`
    overflow: str = "coalesce"  # or "close": 4008
    ping_s: Seconds = 30.0  # what WELCOME asks clients to keep
    idle_s: Seconds = 90.0  # silent for this long: the connection is dropped
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 1.0  # RECONNECTs are spread over this


Share = Annotated[float, Meta(ge=0, le=1)]


class Moderation(_Section):
    """What is looked for in comments, and what it leads to; docs/moderating.md has the figures.

    An action is `allow` (not looked for), `flag` (moderators see it), `hold` or `delete`.
    """

    # In this order; one that is left out is off.
    stages: list[str] = msgspec.field(default_factory=lambda: list(MODERATION_STAGES))
    terms_files: list[str] = []  # one term a line, `*` as wildcard; added to {data}/terms.txt
    flag_at: Share = 0.9  # the model's probability; below, it is wrong more often than right
    delete_at: Share = 0.98  # and only of what is said to somebody: swearing is no abuse
    links: str = "flag"  # 2 of 3,888 comments of real chat have one
    link_domains: list[str] = []  # allowed, with their subdomains
    # Who may post links; moderators, broadcasters and services always may.
    link_roles: list[str] = msgspec.field(default_factory=lambda: ["vip"])
    caps: str = "allow"  # emote names and joy are capitals: 2 to 11 % of real chat
    caps_share: Share = 0.6  # of the letters
    caps_letters: Positive = 8  # fewer letters say nothing
    repetition: str = "allow"  # a quarter of a real emote wave
    repetition_times: Annotated[int, Meta(ge=2)] = 6  # the same words in a row, in 50 characters
    duplicates: str = "flag"  # per user; the same text by many is culture
    duplicates_times: Annotated[int, Meta(ge=2, le=100)] = 5  # copies; 3 are 7 % of an emote wave
    duplicates_s: Seconds = 30.0  # within this time
    strikes: Positive = 3  # deletions by moderation, not by people, that lead to a sanction
    strikes_s: Annotated[float, Meta(gt=0, le=600)] = 600.0  # within this; the log keeps 600 s
    # The first timeout, the second …; then a shadow ban.
    timeouts_s: list[Seconds] = msgspec.field(default_factory=lambda: [300.0, 1800.0])
    forget_s: Annotated[float, Meta(gt=0, le=31_536_000)] = 86_400.0  # then it is a first one again


class Webhooks(_Section):
    """Deletions, sanctions, starts and ends of streams, told to a backend: docs/rooms.md."""

    targets: Annotated[list[str], Meta(max_length=16)] = []  # URLs that are POSTed to; empty: none
    key_file: str = ""  # signs the bodies; empty: {data}/webhook.key, made at the first start
    allow_private: bool = False  # targets at loopback and private addresses
    timeout_s: Seconds = 5.0  # of one try, from connecting to the answer's status
    queue: Annotated[int, Meta(ge=1, le=100_000)] = 10_000  # events per target; `drop_oldest`
    give_up_s: Seconds = 600.0  # of tries for one event; as long as the log is kept anyway
    backoff_s: Seconds = 1.0  # after the first failure; doubles
    backoff_max_s: Seconds = 60.0


class Supervisor(_Section):
    """How `uproar serve` keeps its processes."""

    backoff_s: Seconds = 0.1  # before the first restart; doubles
    backoff_max_s: Seconds = 5.0
    stable_s: Seconds = 10.0  # up for this long: the back-off starts anew
    stop_s: Seconds = 5.0  # from SIGTERM to SIGKILL, per step of the shutdown
    ready_s: Seconds = 30.0  # for everything to come up
    disk_free_mb: Natural = 64  # below: the log waits for space


class Config(_Section):
    """The whole tree."""

    data: str = "data"
    server: Server = msgspec.field(default_factory=Server)
    auth: Auth = msgspec.field(default_factory=Auth)
    streams: Streams = msgspec.field(default_factory=Streams)
    limits: Limits = msgspec.field(default_factory=Limits)
    log: Log = msgspec.field(default_factory=Log)
    store: Store = msgspec.field(default_factory=Store)
    state: State = msgspec.field(default_factory=State)
    bus: Bus = msgspec.field(default_factory=Bus)
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    emotes: dict[str, str] = msgspec.field(default_factory=dict)  # word → image URL
    reactions: Reactions = msgspec.field(default_factory=Reactions)
    ingest: Ingest = msgspec.field(default_factory=Ingest)
    gateway: Gateway = msgspec.field(default_factory=Gateway)
    moderation: Moderation = msgspec.field(default_factory=Moderation)
    webhooks: Webhooks = msgspec.field(default_factory=Webhooks)
    supervisor: Supervisor = msgspec.field(default_factory=Supervisor)

    @property
    def data_dir(self) -> Path:
        """The data directory, absolute."""
        return Path(self.data).expanduser().resolve()

    @property
    def shards(self) -> int:
        """The number of shards of the bus."""
        return self.bus.shards or (CLUSTER_SHARDS if self.state.engine == "cluster" else 1)

    def gateway_name(self, local: str) -> str:
        """The name by which the cluster knows this host's gateway `g1`, `g2` …"""
        return f"{self.gateway.name}-{local}" if self.gateway.name else local

    @property
    def jwks_path(self) -> Path:
        """Where the last good keys of `auth.jwks_url` survive a restart."""
        return self.data_dir / "jwks.json"

    @property
    def webhook_key_path(self) -> Path:
        """The file of the key that signs webhooks."""
        file = self.webhooks.key_file
        return Path(file).expanduser() if file else self.data_dir / "webhook.key"

    @property
    def key_path(self) -> Path:
        """The file of the signing key."""
        return (
            Path(self.auth.key_file).expanduser()
            if self.auth.key_file
            else (self.data_dir / "signing.key")
        )

    def socket(self, name: str) -> Path:
        """A Unix socket of the running system, e.g. `log`, `state`, `ingest`, `status-gateway1`."""
        return self.run_dir / f"{name}.sock"

    @property
    def run_dir(self) -> Path:
        """The directory of sockets and pid files: {data}/run, or one with a short enough path.

        A Unix socket's path has at most 107 bytes (unix(7)).
        """
        run = self.data_dir / "run"
        if len(os.fsencode(run)) + len("/status-moderation.sock") <= 100:
            return run
        digest = hashlib.blake2b(os.fsencode(self.data_dir), digest_size=6).hexdigest()
        return Path(tempfile.gettempdir()) / f"uproar-{os.getuid()}-{digest}"


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Return the effective configuration; raises ConfigError.

    `path` defaults to `uproar.toml` in the working directory where that exists. `flags` maps dotted
    paths (`server.port`) to values; None values are left out.
    """
    tree: dict[str, Any] = {}
    file = Path(path) if path else Path("uproar.toml")
    if path or file.exists():
        try:
            tree = tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"{file}: can't be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not TOML: {error}") from error
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name in ENV_RESERVED or name.startswith(ENV_RESERVED_PREFIXES):
            continue
        if name.startswith(ENV_PREFIX):
            _put(tree, name[len(ENV_PREFIX) :].lower().split("__"), _literal(text), name)
    for dotted, value in (flags or {}).items():
        if value is not None:
            _put(tree, dotted.split("."), value, dotted)
    server = tree.get("server")
    if isinstance(server, dict) and server.get("port") == 0:
        # Who asks for a free port runs beside others, which hold 8081 as well.
        server.setdefault("admin_port", 0)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_sentence(str(error))) from error
    _check(config)
    return config


def dump(config: Config) -> str:
    """Return the tree as TOML, in the order of its definition."""
    tree = msgspec.to_builtins(config)
    lines = [f"data = {_toml(tree.pop('data'))}"]
    for section, values in tree.items():
        lines += ["", f"[{section}]"]
        lines += [f"{_key(key)} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _check(config: Config) -> None:
    if config.gateway.overflow not in ("coalesce", "close"):
        raise ConfigError(
            f'gateway.overflow: "{config.gateway.overflow}" is no policy; '
            'take "coalesce" or "close"'
        )
    if config.gateway.backlog_default > config.gateway.backlog_max:
        raise ConfigError("gateway.backlog_default: above gateway.backlog_max; raise the latter")
    _check_networks(config.server.trusted_proxies)
    _check_store(config.store)
    _check_url(config.auth.jwks_url, "auth.jwks_url")
    for number, url in enumerate(config.webhooks.targets):
        _check_url(url or "-", f"webhooks.targets[{number}]")
    _check_moderation(config.moderation)
    _check_state(config.state)
    _check_log(config.log)
    if config.server.port and config.server.port == config.server.admin_port:
        raise ConfigError(
            f"server.admin_port: {config.server.port} is taken by server.port; choose another"
        )


def _check_networks(networks: list[str]) -> None:
    for number, network in enumerate(networks):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(
                f"server.trusted_proxies[{number}]: {error}; write 10.0.0.0/24 or 10.0.0.7"
            ) from error


def _check_url(url: str, path: str) -> None:
    """Refuse what is neither empty nor an http(s) URL of a host, without a name and password."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        sound = url.startswith(("http://", "https://")) and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or "@" in parts.netloc or not (url.isascii() and url.isprintable()) or " " in url:
        raise ConfigError(f"{path}: write https://HOST[:PORT]/PATH (http:// for a server nearby)")


def _check_store(store: Store) -> None:
    for field, known in (("engine", STORE_ENGINES), ("consistency", STORE_CONSISTENCIES)):
        value = getattr(store, field)
        if value not in known:
            raise ConfigError(f'store.{field}: "{value}" is unknown; take {" or ".join(known)}')
    if not all(store.hosts):
        raise ConfigError("store.hosts: an empty name; write host names or addresses")
    if bool(store.user) != bool(store.password_file):
        raise ConfigError("store.user: goes together with store.password_file; give both")


def _check_state(state: State) -> None:
    if state.engine not in STATE_ENGINES:
        raise ConfigError(
            f'state.engine: "{state.engine}" is none; take {" or ".join(STATE_ENGINES)}'
        )
    for number, node in enumerate(state.nodes):
        host, _, port = node.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
            raise ConfigError(f'state.nodes[{number}]: "{node}" is no HOST:PORT')
    if state.engine == "cluster" and not state.nodes:
        raise ConfigError('state.nodes: name some of the cluster\'s nodes, ["HOST:PORT", …]')
    if bool(state.cert_file) != bool(state.key_file):
        raise ConfigError("state.key_file: goes together with state.cert_file; give both")
    if state.cert_file and not state.ca_file:
        raise ConfigError("state.ca_file: goes together with state.cert_file; give both")
    if state.user and not state.password_file:
        raise ConfigError("state.user: goes together with state.password_file; give both")


def _check_log(log: Log) -> None:
    if log.engine not in ("valkey", "kafka"):
        raise ConfigError(f'log.engine: "{log.engine}" is no engine; take "valkey" or "kafka"')
    if log.engine == "kafka" and not log.brokers:
        raise ConfigError('log.brokers: empty; name the brokers, "HOST:PORT,HOST:PORT"')
    if log.min_insync > log.replicas:
        raise ConfigError(
            "log.min_insync: above log.replicas, so nothing could ever be written; lower it"
        )
    if bool(log.user) != bool(log.password_file):
        raise ConfigError("log.user: goes together with log.password_file; give both")
    if bool(log.cert_file) != bool(log.key_file):
        raise ConfigError("log.key_file: goes together with log.cert_file; give both")
    if log.cert_file and not log.ca_file:
        raise ConfigError("log.ca_file: goes together with log.cert_file; give both")


def _check_moderation(moderation: Moderation) -> None:
    for name in moderation.stages:
        if name not in MODERATION_STAGES or moderation.stages.count(name) > 1:
            raise ConfigError(
                f'moderation.stages: "{name}" twice or unknown; there are '
                f"{', '.join(MODERATION_STAGES)}"
            )
    for field in ("links", "caps", "repetition", "duplicates"):
        action = getattr(moderation, field)
        if action not in MODERATION_ACTIONS:
            raise ConfigError(
                f'moderation.{field}: "{action}" is no action; take {", ".join(MODERATION_ACTIONS)}'
            )
    if moderation.flag_at > moderation.delete_at:
        raise ConfigError("moderation.flag_at: above moderation.delete_at; lower it")


def _put(tree: dict[str, Any], path: list[str], value: Any, source: str) -> None:
    node = tree
    for key in path[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: `{key}` is a value, not a section")
        node = child
    node[path[-1]] = value


def _literal(text: str) -> Any:
    """An environment value: a TOML literal where it parses as one, else the string itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _sentence(message: str) -> str:
    """msgspec's `Expected … - at `$.a.b`` as `a.b: expected …`."""
    text, _, where = message.partition(" - at `")
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    if text.startswith("Object contains unknown field"):
        field = text.split("`")[1]
        path = f"{path}.{field}" if path else field
        return f"{path}: unknown setting; `uproar config` prints the known ones"
    return f"{path or 'configuration'}: {text[0].lower()}{text[1:]}"


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()  # a JSON string is a TOML basic string
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)
