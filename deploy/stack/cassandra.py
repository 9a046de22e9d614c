"""Apache Cassandra: one node that has a row on disk before it answers (`commitlog_sync: batch`)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from deploy.stack import jars
from deploy.stack.server import HOST, Server

HEAP: Final = ("-Xms256m", "-Xmx1g", "-XX:MaxDirectMemorySize=512m")
READY: Final = b"Starting listening for CQL clients"

# With `periodic` a row is answered before it can be replayed: of 3,000 answered rows 2,505 to 2,679
# came back after kill -9. With `batch` and `group` all did.
SYNC: Final = {
    "batch": "commitlog_sync: batch",
    "group": "commitlog_sync: group\ncommitlog_sync_group_window: 5ms",
    "periodic": "commitlog_sync: periodic\ncommitlog_sync_period: 10000ms",
}

SETTINGS: Final = """\
cluster_name: uproar
num_tokens: 4
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
{sync}
commitlog_segment_size: 8MiB
commitlog_total_space: 256MiB
data_file_directories: [{data}/data]
commitlog_directory: {data}/commitlog
saved_caches_directory: {data}/saved_caches
hints_directory: {data}/hints
cdc_raw_directory: {data}/cdc_raw
listen_address: {host}
rpc_address: {host}
storage_port: {storage}
native_transport_port: {port}
start_native_transport: true
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "{host}:{storage}"}}]
concurrent_reads: 8
concurrent_writes: 16
memtable_heap_space: 128MiB
memtable_offheap_space: 128MiB
memtable_allocation_type: heap_buffers
file_cache_size: 64MiB
networking_cache_size: 32MiB
key_cache_size: 16MiB
auto_snapshot: false
disk_access_mode: standard
authenticator: AllowAllAuthenticator
authorizer: AllowAllAuthorizer
"""

LOGGING: Final = """\
<configuration>
  <appender name="C" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %-5level %logger{20} %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="C"/></root>
</configuration>
"""

# The distribution's start script opens these to it; the jars come without that script.
EXPORTS: Final = [
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.base/java.lang.ref",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.rmi/sun.rmi.transport.tcp",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
    "jdk.compiler/com.sun.tools.javac.file",
    "jdk.attach/sun.tools.attach",
]
OPENS: Final = [
    "java.base/java.lang",
    "java.base/java.lang.module",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "jdk.management/com.sun.management.internal",
    "jdk.compiler/com.sun.tools.javac",
]


class Cassandra(Server):
    """One node with its ports for CQL, for other nodes and for JMX; `sync` is a key of SYNC."""

    ready_s = 120.0

    def __init__(
        self, cache: Path, directory: Path, ports: tuple[int, int, int], sync: str = "batch"
    ) -> None:
        super().__init__("cassandra", directory, ports[:1])
        self._cache = cache
        self._storage, self._jmx = ports[1:]
        self._sync = sync

    def prepare(self) -> None:
        for name in ("data", "tmp"):
            (self.directory / name).mkdir(exist_ok=True)
        settings = SETTINGS.format(
            sync=SYNC[self._sync], data=self.directory / "data", host=HOST,
            storage=self._storage, port=self.ports[0],
        )  # fmt: skip
        (self.directory / "cassandra.yaml").write_text(settings)
        (self.directory / "logback.xml").write_text(LOGGING)

    def command(self) -> list[str]:
        libs = jars.fetched(self._cache, "cassandra", jars.CASSANDRA)
        at = self.directory
        return [
            "java", *HEAP, "-XX:+UseG1GC", "-Xss512k", "-XX:+ExitOnOutOfMemoryError",
            "-Djava.net.preferIPv4Stack=true", "-Djdk.attach.allowAttachSelf=true",
            "-Dio.netty.tryReflectionSetAccessible=true",
            # Native code is unpacked here: /tmp may be mounted noexec.
            f"-Djava.io.tmpdir={at / 'tmp'}", f"-Djna.tmpdir={at / 'tmp'}",
            f"-Dcassandra.config=file://{at / 'cassandra.yaml'}",
            f"-Dcassandra.storagedir={at / 'data'}", f"-Dcassandra.logdir={at}",
            f"-Dlogback.configurationFile={at / 'logback.xml'}", "-Dcassandra-foreground=yes",
            f"-Dcassandra.jmx.local.port={self._jmx}",
            # One node has nobody to wait for.
            "-Dcassandra.ring_delay_ms=100", "-Dcassandra.skip_wait_for_gossip_to_settle=0",
            *(f"--add-exports={one}=ALL-UNNAMED" for one in EXPORTS),
            *(f"--add-opens={one}=ALL-UNNAMED" for one in OPENS),
            f"-javaagent:{_jamm(libs)}", "-cp", f"{libs}/*",
            "org.apache.cassandra.service.CassandraDaemon",
        ]  # fmt: skip

    def serves(self) -> bool:
        return READY in self.log.read_bytes() and super().serves()


@functools.cache
def _jamm(libs: Path) -> Path:
    """The agent by which Cassandra measures its objects."""
    return next(libs.glob("jamm-*.jar"))
