"""The Kafka topic: made when it is missing, refused where it promises less than uproar does.

What is checked is what promise 1 rests on: enough replicas that must have a record, none that is
elected without it, nothing deleted before the archive has it; and the partition count, which
decides where every stream's order lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from uproar.config import Log as Settings
from uproar.log import LogRefused

RECORD_BYTES: Final = 4 << 20  # the largest record, a stream's terms, has a little over 2 MiB

# The results of an administrative call, made again where that helps; raises LogUnavailable, and
# KafkaException for a refusal.
Ask = Callable[[Callable[[], Mapping[Any, Future[Any]]]], dict[Any, Any]]


def create(admin: AdminClient, settings: Settings, ask: Ask) -> None:
    """Make the topic unless it is there; raises LogRefused and LogUnavailable."""
    topic = NewTopic(
        settings.topic,
        num_partitions=settings.partitions,
        replication_factor=settings.replicas,
        config={
            "min.insync.replicas": str(settings.min_insync),
            "cleanup.policy": "delete",
            "retention.ms": str(int(settings.retention_s * 1000)),
            "retention.bytes": "-1",
            "unclean.leader.election.enable": "false",
            "message.timestamp.type": "CreateTime",
            "max.message.bytes": str(RECORD_BYTES),
        },
    )
    try:
        ask(lambda: admin.create_topics([topic]))
    except KafkaException as error:
        reason: KafkaError = error.args[0]
        if reason.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        raise LogRefused(
            f'topic "{settings.topic}" can\'t be made: {reason.str()}; lower log.replicas to the '
            "number of brokers, or have an operator make the topic"
        ) from error


def check(admin: AdminClient, settings: Settings, ask: Ask) -> None:
    """Raise LogRefused where the topic promises too little, LogUnavailable when nobody answers."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, settings.topic)
    try:
        named = TopicCollection([settings.topic])
        found = ask(lambda: admin.describe_topics(named))[settings.topic]
        entries = ask(lambda: admin.describe_configs([resource]))[resource]
    except KafkaException as error:
        raise LogRefused(
            f'topic "{settings.topic}" can\'t be looked at: {error.args[0].str()}'
        ) from error
    values = {name: entry.value for name, entry in entries.items()}
    partitions = len(found.partitions)
    replicas = min((len(one.replicas) for one in found.partitions), default=0)
    for wrong in _shortcomings(settings, partitions, replicas, values):
        raise LogRefused(f'topic "{settings.topic}": {wrong}')


def _shortcomings(
    settings: Settings, partitions: int, replicas: int, values: dict[str, str]
) -> list[str]:
    """Return what is wrong with a topic, each a sentence with its remedy."""
    wrong = []
    if partitions != settings.partitions:
        wrong.append(
            f"it has {partitions} partitions where log.partitions says {settings.partitions}: "
            f"streams would change places and lose their order; set log.partitions to {partitions} "
            "where it always had so many, else take a new log.topic"
        )
    if replicas < settings.replicas:
        wrong.append(
            f"some of its records have {replicas} replicas where log.replicas promises "
            f"{settings.replicas}; reassign its partitions, or lower log.replicas"
        )
    if int(values["min.insync.replicas"]) < settings.min_insync:
        wrong.append(
            f"min.insync.replicas = {values['min.insync.replicas']} where log.min_insync promises "
            f"{settings.min_insync}: what is acknowledged could go with one broker; "
            f"{_alter('min.insync.replicas', settings.min_insync)}, or lower log.min_insync"
        )
    if values["cleanup.policy"] != "delete":
        wrong.append(
            f"cleanup.policy = {values['cleanup.policy']} removes all but a stream's newest "
            f"record; {_alter('cleanup.policy', 'delete')}"
        )
    needed = int(settings.retention_s * 1000)
    if 0 <= int(values["retention.ms"]) < needed:
        wrong.append(
            f"retention.ms = {values['retention.ms']} is less than log.retention_s = "
            f"{settings.retention_s:g}: what the archive has not read by then would be lost; "
            f"{_alter('retention.ms', needed)}, or lower log.retention_s"
        )
    if int(values["retention.bytes"]) >= 0:
        wrong.append(
            f"retention.bytes = {values['retention.bytes']} removes records that the archive may "
            f"not have read; {_alter('retention.bytes', -1)}"
        )
    if values["unclean.leader.election.enable"] != "false":
        wrong.append(
            "unclean.leader.election.enable = true lets a broker lead that lacks acknowledged "
            f"records; {_alter('unclean.leader.election.enable', 'false')}"
        )
    if values["message.timestamp.type"] != "CreateTime":
        wrong.append(
            f"message.timestamp.type = {values['message.timestamp.type']} hides the records' own "
            f"times; {_alter('message.timestamp.type', 'CreateTime')}"
        )
    if int(values["max.message.bytes"]) < RECORD_BYTES:
        wrong.append(
            f"max.message.bytes = {values['max.message.bytes']} is less than a record may have; "
            f"{_alter('max.message.bytes', RECORD_BYTES)}"
        )
    return wrong


def _alter(name: str, value: object) -> str:
    return f"kafka-configs --alter --entity-type topics --add-config {name}={value}"
