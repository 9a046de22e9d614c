"""Settings: who overrides whom, and what is said about a bad one."""

import pytest

from uproar.config import ENV_RESERVED, Config, ConfigError, dump, load


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "uproar.toml"
    path.write_text(
        'data = "from-file"\n[server]\nport = 1\nadmin_port = 2\n[limits.per_minute]\nviewer = 3\n'
    )
    return path


def test_flags_stand_above_the_environment_and_that_above_the_file(file):
    config = load(file, environ={})
    assert (config.data, config.server.port, config.limits.per_minute.viewer) == ("from-file", 1, 3)
    assert config.limits.per_minute.vip == 20, "what nobody sets has its default"
    environ = {
        "UPROAR_SERVER__PORT": "10",
        "UPROAR_SERVER__HOST": "::1",
        "UPROAR_LIMITS__PER_MINUTE__VIEWER": "30",
        "UPROAR_AUTH__GUESTS": "false",
        "UPROAR_SERVER__ORIGINS": '["https://a.example"]',
        "UPROAR_GATEWAY__TICK_MS": "5",
        "PATH": "/bin",
    }
    config = load(file, environ=environ)
    assert (config.server.port, config.server.admin_port) == (10, 2)
    assert (config.server.host, config.limits.per_minute.viewer) == ("::1", 30)
    assert (config.auth.guests, config.server.origins) == (False, ["https://a.example"])
    config = load(file, environ=environ, flags={"server.port": 100, "server.host": None})
    assert (config.server.port, config.server.host) == (100, "::1")


def test_the_file_of_the_working_directory_is_read_where_there_is_one(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert load(environ={}).server.port == 1
    file.unlink()
    assert load(environ={}) == Config()


@pytest.mark.parametrize(
    ("environ", "flags", "said"),
    [
        ({"UPROAR_SERVER__PROT": "1"}, {}, r"server\.prot: unknown setting"),
        ({"UPROAR_NONSENSE": "1"}, {}, r"nonsense: unknown setting"),
        ({"UPROAR_LIMITS__PER_MINUTE__KING": "1"}, {}, r"limits\.per_minute\.king: unknown"),
        ({"UPROAR_SERVER__PORT": "70000"}, {}, r"server\.port: expected `int` <= 65535"),
        ({"UPROAR_SERVER__PORT": "many"}, {}, r"server\.port: expected `int`"),
        ({"UPROAR_GATEWAY__FILL_S": "0"}, {}, r"gateway\.fill_s: expected `float` > 0"),
        ({"UPROAR_GATEWAY__FILL_S": "nan"}, {}, r"gateway\.fill_s: "),
        ({"UPROAR_DATA__X": "1"}, {}, "UPROAR_DATA__X: `data` is a value, not a section"),
        ({"UPROAR_SERVER": "1"}, {}, r"server: expected `object`"),
        ({"UPROAR_SERVER__ORIGINS": '["a", 5]'}, {}, r"server\.origins\[1\]: expected `str`"),
        ({"UPROAR_GATEWAY__OVERFLOW": "explode"}, {}, r'gateway\.overflow: "explode" is no policy'),
        ({"UPROAR_GATEWAY__BACKLOG_DEFAULT": "101"}, {}, r"gateway\.backlog_default: above"),
        ({}, {"server.port": 9, "server.admin_port": 9}, r"server\.admin_port: 9 is taken"),
        ({}, {"serve.port": 9}, r"serve: unknown setting"),
        (
            {"UPROAR_STORE__ENGINE": "oracle"},
            {},
            r'store\.engine: "oracle" is unknown; take sqlite',
        ),
        ({"UPROAR_STORE__CONSISTENCY": "one"}, {}, r'store\.consistency: "one" is unknown'),
        ({"UPROAR_STORE__KEYSPACE": "a-b"}, {}, r"store\.keyspace: expected `str` matching"),
        ({"UPROAR_STORE__HOSTS": "[]"}, {}, r"store\.hosts: expected `array` of length >= 1"),
        ({"UPROAR_STORE__USER": "u"}, {}, r"store\.user: goes together with store\.password_file"),
        ({"UPROAR_LOG__ENGINE": "file"}, {}, r'log\.engine: "file" is no engine; take "valkey" or'),
        ({"UPROAR_LOG__ENGINE": "kafka"}, {}, r"log\.brokers: empty; name the brokers"),
        ({"UPROAR_LOG__MIN_INSYNC": "4"}, {}, r"log\.min_insync: above log\.replicas"),
        ({"UPROAR_LOG__USER": "u"}, {}, r"log\.user: goes together with log\.password_file"),
        ({"UPROAR_LOG__PASSWORD_FILE": "p"}, {}, r"log\.user: goes together with log\.password"),
        ({"UPROAR_LOG__KEY_FILE": "k"}, {}, r"log\.key_file: goes together with log\.cert_file"),
        ({}, {"log.key_file": "k", "log.cert_file": "c"}, r"log\.ca_file: goes together with log"),
        ({"UPROAR_LOG__TOPIC": "a b"}, {}, r"log\.topic: expected `str` matching"),
    ],
)
def test_a_bad_setting_is_named_with_its_path(file, environ, flags, said):
    with pytest.raises(ConfigError, match=said):
        load(file, environ=environ, flags=flags)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[server", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"[server]\ncolour = 1\n", r"server\.colour: unknown setting"),
        (b"server = 5\n", r"server: expected `object`"),
        (None, "can't be read"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, said):
    path = tmp_path / "x.toml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=said):
        load(path, environ={})


def test_words_of_the_environment_that_are_no_settings_are_left_alone():
    words = [*ENV_RESERVED, "UPROAR_TEST_KAFKA", "UPROAR_STACK_RUN"]
    assert load(environ=dict.fromkeys(words, "x")) == Config()


def test_what_is_dumped_loads_as_the_same(tmp_path):
    flags = {
        "data": 'a "b" \\ é 👋',
        "server.origins": ["https://a.example", 'b"c'],
        "limits.per_minute.vip": 7,
        "gateway.tick_ms": 1.5,
        "auth.guests": False,
        "auth.leeway_s": 1e-05,
    }
    config = load(environ={}, flags=flags)
    path = tmp_path / "dumped.toml"
    path.write_text(dump(config), "utf-8")
    assert load(path, environ={}) == config
    assert config.auth.leeway_s == 1e-05 and config.limits.per_minute.vip == 7


def test_sockets_have_a_path_that_the_kernel_takes(tmp_path):
    short = load(environ={}, flags={"data": "/tmp/d"})
    assert str(short.socket("log")).endswith("/d/run/log.sock")
    deep = load(environ={}, flags={"data": str(tmp_path / ("x" * 100))})
    other = load(environ={}, flags={"data": str(tmp_path / ("y" * 100))})
    assert len(str(deep.socket("status-moderation"))) <= 107
    assert deep.run_dir != other.run_dir
