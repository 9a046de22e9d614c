"""The OpenAPI 3.1 document, written by hand; a test compares it with the routes.

`DOCUMENT` is what GET /openapi.json answers. Paths name their parts as the routes do.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from uproar import __version__
from uproar.codes import REJECTIONS
from uproar.mode import SETTINGS

Schema: TypeAlias = dict[str, Any]

MILLIS: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": (1 << 53) - 1}
OFFSET: Final[Schema] = {**MILLIS, "description": "The place in the stream's order."}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
TEXT: Final[Schema] = {"type": "string"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
COMMENT_ID: Final[Schema] = {
    "type": "string",
    "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
}
# No control characters: C0, DEL and C1.
VISIBLE: Final = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
CLEAN: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"
NONCE: Final[Schema] = {
    "type": "string",
    "pattern": "^[!-~]{1,64}$",
    "description": "Chosen by the client; the same within two minutes is the same act.",
}
KEY: Final[Schema] = {**NONCE, "pattern": "^[!-~]{0,64}$"}
STREAM_ID: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"}
TITLE: Final[Schema] = {"type": "string", "maxLength": 140, "pattern": CLEAN}
REASON: Final[Schema] = {"type": "string", "maxLength": 500, "pattern": CLEAN}
SECONDS: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 1_209_600}
CURSOR: Final[Schema] = {
    "type": "string",
    "pattern": (
        "^([0-9]{1,9}-[0-9]{1,16}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$"
    ),
}
# No term is only wildcards; what moderation refuses besides is named with its line.
TERM: Final[Schema] = {"type": "string", "maxLength": 500}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object that has all of `required` and may have the rest; nothing else."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
        "additionalProperties": False,
    }


def _array(of: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": of, **more}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _mode() -> dict[str, Schema]:
    """The settings of `uproar.mode` as schemas."""
    settings: dict[str, Schema] = {}
    for name, setting in SETTINGS.items():
        choices: list[Schema] = []
        if setting.words:
            choices.append({"enum": list(setting.words)})
        if setting.most >= setting.least:
            choices.append({"type": "integer", "minimum": setting.least, "maximum": setting.most})
        settings[name] = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return settings


_BARE: Final = _object(
    {"id": COMMENT_ID, "user": _ref("User"), "text": TEXT, "ts": MILLIS},
    reply_to=COMMENT_ID,
    emotes=_array(
        {"type": "array", "prefixItems": [TEXT, COUNT, COUNT], "minItems": 3, "maxItems": 3}
    ),
)

SCHEMAS: Final[dict[str, Schema]] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457, with the code of the same refusal over WebSocket.",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer"},
            "code": {"type": "string", "examples": sorted(REJECTIONS)},
            "detail": TEXT,
            "retry_after_ms": COUNT,
        },
    },
    "User": _object(
        {"id": TEXT, "name": TEXT, "role": _ref("Role")}, color=TEXT, badges=_array(TEXT)
    ),
    "Role": {"enum": ["viewer", "vip", "moderator", "broadcaster", "service"]},
    "BareComment": _BARE,
    "Comment": {
        **_BARE,
        "required": [*_BARE["required"], "offset"],
        "properties": {
            **_BARE["properties"],
            "offset": OFFSET,
            "visibility": {"enum": ["held", "shadow"], "description": "For moderators."},
        },
    },
    "PostedComment": _object(
        {
            "text": {
                "type": "string",
                "maxLength": 500,
                "pattern": VISIBLE,
                "description": "Something visible, no control characters.",
            },
        },
        nonce=_or_null(NONCE),
        reply_to=_or_null(COMMENT_ID),
        user=_or_null(_object(
            {
                "id": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[!-~]+$"},
                "name": {"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[!-~]+$"},
            },
            role=_ref("Role"),
            color=_or_null({"type": "string", "maxLength": 32, "pattern": "^[!-~]*$"}),
        )),
        ts=_or_null(MILLIS),
    ),
    "Accepted": _object(
        {"id": COMMENT_ID, "offset": OFFSET, "shown": {"enum": ["all", "sampled", "held"]}}
    ),
    "Result": {
        "type": "object",
        "description": "One comment of an array: as Accepted, or why it was refused.",
        "required": ["nonce"],
        "properties": {
            "nonce": _or_null(TEXT), "id": COMMENT_ID, "offset": OFFSET, "shown": TEXT,
            "code": TEXT, "message": TEXT, "retry_after_ms": COUNT,
        },
    },
    "Page": _object({"comments": _array(_ref("Comment")), "next": _or_null(CURSOR)}),
    "Mode": _object(_mode()),
    "ModeChange": {**_object({}, **_mode()), "minProperties": 1},
    "ModeNow": _object({**_mode(), "offset": OFFSET}),
    "Pinned": _object(
        {"comment_id": COMMENT_ID, "comment": _ref("BareComment")}, until=MILLIS, offset=OFFSET
    ),
    "Info": _object(
        {
            "id": STREAM_ID, "title": TEXT, "viewers": COUNT, "connections": COUNT,
            "reactions": {"type": "object", "additionalProperties": COUNT},
            "pinned": _or_null(_ref("Pinned")), "mode": _ref("Mode"),
            "rate": {"type": "number", "minimum": 0},
            "sample_ratio": _or_null({"type": "number"}), "started_at": _or_null(MILLIS),
            "ended": BOOLEAN,
        }
    ),
    "Opened": _object(
        {"id": STREAM_ID, "title": TEXT, "started_at": _or_null(MILLIS)}, offset=OFFSET
    ),
    "Active": _object(
        {
            "streams": _array(
                _object(
                    {
                        "id": STREAM_ID, "title": TEXT, "viewers": COUNT, "connections": COUNT,
                        "started_at": _or_null(MILLIS),
                    }
                )
            )
        }
    ),
    "Session": _object(
        {
            "token": TEXT, "user": _ref("User"), "ws_url": TEXT, "expires": COUNT,
            "reconnect": {"type": "object"},
        }
    ),
    "Terms": _object({"blocked": _array(TEXT), "allowed": _array(TEXT)}, offset=OFFSET),
    "Sanctioned": _object(
        {"user_id": TEXT, "action": TEXT, "offset": OFFSET}, until=MILLIS, sessions=COUNT
    ),
    "Held": _object(
        {
            "held": _array(
                _object(
                    {
                        "comment_id": COMMENT_ID, "comment": _ref("BareComment"), "rule": TEXT,
                        "category": TEXT, "score": {"type": "number"},
                        "spans": _array(_array(COUNT, minItems=2, maxItems=2)),
                    }
                )
            ),
            "waiting": COUNT,
            "next": _or_null(COMMENT_ID),
        }
    ),
    "Audit": _object(
        {
            "acts": _array(
                {
                    "type": "object",
                    "description": "The event as moderators get it, and who did it.",
                    "required": ["type", "offset", "ts", "by"],
                    "properties": {"type": TEXT, "offset": OFFSET, "ts": MILLIS, "by": TEXT},
                }
            ),
            "next": _or_null(CURSOR),
        }
    ),
    "WrittenByUser": _object(
        {
            "comments": _array(
                {
                    "type": "object",
                    "required": ["id", "offset", "user", "text", "ts", "deleted"],
                    "properties": {"id": COMMENT_ID, "offset": OFFSET, "deleted": BOOLEAN},
                }
            ),
            "next": _or_null(CURSOR),
        }
    ),
    "Stats": _object(
        {
            "from_ms": MILLIS, "to_ms": MILLIS, "bucket_ms": COUNT,
            "buckets": _array(
                _object(
                    {"ts": MILLIS, "comments": COUNT, "authors": COUNT, "deletions": COUNT}
                )
            ),
            "reactions": _or_null({"type": "object", "additionalProperties": COUNT}),
            "viewers": _or_null(COUNT),
        }
    ),
    "DoneToComment": _object({"comment_id": COMMENT_ID, "offset": OFFSET}),
    "Decided": _object({"comment_id": COMMENT_ID, "action": TEXT, "offset": OFFSET}),
}  # fmt: skip

_PROBLEMS: Final = {
    "400": "Malformed; the detail names the field.",
    "401": "No token, or one that is not good (any more).",
    "403": "The role may not do this, or the token is for other streams.",
    "404": "There is no such stream, comment or page.",
    "405": "Another method; Allow names those that are served.",
    "408": "The body did not arrive in time.",
    "409": "It was done or decided already, or stands against it.",
    "413": "The body is too big.",
    "422": "A text that can't be shown: empty or too long.",
    "429": "Too many; Retry-After says when to try again.",
    "500": "A fault of ours.",
    "503": "Log, store or state is away; send the same nonce again.",
}
_ALWAYS: Final = ("404", "405", "500", "503")


def _json(schema: Schema, description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: Schema, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _operation(
    id_: str,
    summary: str,
    answers: dict[str, Any],
    *,
    who: str = "everybody",
    problems: str = "",
    body: Schema | None = None,
    body_required: bool = True,
    query: list[dict[str, Any]] | None = None,
    idempotent: bool = False,
) -> dict[str, Any]:
    """One operation. `who`: everybody, optional (a token shows more), or those with a token."""
    refused = {*_ALWAYS, *problems.split()}
    if who != "everybody":
        refused |= {"401", "403"}
    if body is not None:
        refused |= {"400", "408", "413"}
    if query:
        refused.add("400")
    parameters = list(query or [])
    if idempotent:
        refused.add("400")
        parameters.append(
            {"name": "Idempotency-Key", "in": "header", "schema": KEY, "required": False}
        )
    operation: dict[str, Any] = {
        "operationId": id_,
        "summary": summary,
        "responses": {
            **answers,
            **{code: {"$ref": f"#/components/responses/{code}"} for code in sorted(refused)},
        },
    }
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {
            "required": body_required, "content": {"application/json": {"schema": body}},
        }  # fmt: skip
    if who == "optional":
        operation["security"] = [{}, {"token": []}]
    elif who != "everybody":
        operation["security"] = [{"token": []}]
        operation["description"] = f"For {who}."
    return operation


def _path(parts: dict[str, Schema], **operations: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in parts.items()
    ]
    return {**({"parameters": parameters} if parameters else {}), **operations}


EACH: Final = "Each as PostedComment; a bad one costs itself only."
_STREAM: Final[dict[str, Schema]] = {"stream": STREAM_ID}
_COMMENT: Final[dict[str, Schema]] = {**_STREAM, "comment": COMMENT_ID}
_USER: Final[dict[str, Schema]] = {
    **_STREAM,
    "user": {
        "type": "string", "minLength": 1, "maxLength": 64, "pattern": CLEAN,
        "description": "Any text without control characters.",
    },
}  # fmt: skip
_MODERATORS: Final = "moderators, broadcasters and services of the stream"
_LIMIT: Final = _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}, "At most.")
_BEFORE: Final = _query("before", CURSOR, "What is older than this: `next`, or a comment id.")
_AFTER: Final = _query("after", CURSOR, "What is newer than this: `next`, or a comment id.")
_FROM: Final = _query("from_ms", MILLIS, "The window's beginning, unix ms.")
_TO: Final = _query("to_ms", MILLIS, "Its end, unix ms, not included.")
_PAGE: Final = {"description": "The page.", "content": {"text/html": {"schema": TEXT}}}


def _asset(type_: str) -> dict[str, Any]:
    return {type_: {"schema": TEXT}}


PATHS: Final[dict[str, Any]] = {
    "/": _path({}, get=_operation("home", "The page of streams.", {"200": _PAGE})),
    "/assets/{name}": _path(
        {"name": {"type": "string", "pattern": "^[A-Za-z0-9_.-]+$"}},
        get=_operation(
            "asset", "A file of the pages.",
            {"200": {"description": "The file.", "content": {
                **_asset("text/html"), **_asset("text/javascript"), **_asset("text/css"),
                **_asset("image/svg+xml"),
            }}},
        ),
    ),
    "/openapi.json": _path(
        {},
        get=_operation("openapi", "This document.", {"200": _json({"type": "object"}, "It.")}),
    ),
    "/session": _path(
        {},
        post=_operation(
            "guest", "A guest token; limited per address.",
            {"201": _json(_ref("Session"), "The token and where to connect.")},
            problems="403 422 429",
            body=_object(
                {"name": {
                    "type": "string", "pattern": "^[!-~]{1,40}$",
                }}
            ),
        ),
    ),
    "/streams": _path(
        {},
        get=_operation(
            "activeStreams", "The active streams, those with the most viewers first.",
            {"200": _json(_ref("Active"), "They.")}, query=[_LIMIT],
        ),
    ),
    "/stream": _path(
        {},
        post=_operation(
            "openStream", "Open a stream; once more changes nothing.",
            {"200": _json(_ref("Opened"), "It was open."),
             "201": _json(_ref("Opened"), "It is open.")},
            who=_MODERATORS, problems="409", idempotent=False,
            body=_object({"id": STREAM_ID}, title=TITLE, nonce=_or_null(NONCE)),
        ),
    ),
    "/stream/{stream}": _path(
        _STREAM,
        get=_operation(
            "stream", "What stands in a stream; for browsers its page (by Accept).",
            {"200": {"description": "The stream.", "content": {
                "application/json": {"schema": _ref("Info")}, "text/html": {"schema": TEXT},
            }}},
        ),
    ),
    "/stream/{stream}/comments": _path(
        _STREAM,
        get=_operation(
            "history", "History, newest first; with from_ms or to_ms a replay window, in order.",
            {"200": _json(_ref("Page"), "One page.")}, who="optional",
            query=[_BEFORE, _AFTER, _LIMIT, _FROM, _TO],
        ),
        post=_operation(
            "write", "Write one comment, or an array of at most 500.",
            {"201": _json(
                {"anyOf": [_ref("Accepted"), _array(_ref("Result"))]}, "They stand in the log."),
             "207": _json(_array(_ref("Result")), "Some were refused.")},
            who="those with a token", problems="409 422 429",
            body={"anyOf": [_ref("PostedComment"), _array({}, maxItems=500, description=EACH)]},
        ),
        delete=_operation(
            "clear", "Take all comments from view, for good.",
            {"200": _json(_object({"offset": OFFSET}), "Done.")},
            who=_MODERATORS, idempotent=True,
        ),
    ),
    "/stream/{stream}/comments/{comment}": _path(
        _COMMENT,
        delete=_operation(
            "deleteComment", "Take a comment from view.",
            {"200": _json(_ref("DoneToComment"), "Done.")}, who=_MODERATORS, idempotent=True,
        ),
    ),
    "/stream/{stream}/comments/{comment}/restore": _path(
        _COMMENT,
        post=_operation(
            "restoreComment", "Show a deleted comment again.",
            {"200": _json(_ref("DoneToComment"), "Done.")},
            who=_MODERATORS, problems="409", idempotent=True,
        ),
    ),
    "/stream/{stream}/events": _path(
        _STREAM,
        get=_operation(
            "events", "Server-sent events: ids are {epoch}-{offset}, Last-Event-ID resumes.",
            {"200": {"description": "Without an end.",
                     "content": {"text/event-stream": {"schema": TEXT}}}},
            who="optional",
            query=[
                _query("backlog", COUNT, "The newest comments before the first event."),
                _query("rate", {"enum": ["all", "50", "20", "5"]}, "Comments a second at most."),
            ],
        ),
    ),
    "/stream/{stream}/stats": _path(
        _STREAM,
        get=_operation(
            "stats", "Comments, authors and deletions over time; reactions and viewers now.",
            {"200": _json(_ref("Stats"), "The window's buckets, at most 1,000.")}, who="optional",
            query=[
                _query("bucket", {"type": "string", "pattern": "^[1-9][0-9]?(s|m|h)$"},
                       "The length of a bucket, 1 s to 24 h."),
                _FROM, _TO,
            ],
        ),
    ),
    "/stream/{stream}/export": _path(
        _STREAM,
        get=_operation(
            "export", "All comments, oldest first, a JSON object a line.",
            {"200": {"description": "Lines of Comment.",
                     "content": {"application/x-ndjson": {"schema": TEXT}}}},
            who="optional",
        ),
    ),
    "/stream/{stream}/mode": _path(
        _STREAM,
        get=_operation("mode", "All settings.", {"200": _json(_ref("Mode"), "They.")}),
        patch=_operation(
            "changeMode", "Change some settings, for all at once.",
            {"200": _json(_ref("ModeNow"), "All settings after it.")},
            who=_MODERATORS, body=_ref("ModeChange"), idempotent=True,
        ),
    ),
    "/stream/{stream}/pin": _path(
        _STREAM,
        post=_operation(
            "pin", "Pin a comment, instead of what is pinned.",
            {"200": _json(_ref("Pinned"), "Done.")}, who=_MODERATORS, problems="409",
            body=_object(
                {"comment_id": COMMENT_ID}, seconds=_or_null(SECONDS), nonce=_or_null(NONCE)
            ),
        ),
        delete=_operation(
            "unpin", "Unpin what is pinned.",
            {"200": _json(_ref("DoneToComment"), "Done.")}, who=_MODERATORS, idempotent=True,
        ),
    ),
    "/stream/{stream}/terms": _path(
        _STREAM,
        get=_operation(
            "terms", "The stream's own lists.", {"200": _json(_ref("Terms"), "They.")},
            who=_MODERATORS,
        ),
        put=_operation(
            "setTerms", "Set the stream's own lists, whole.",
            {"200": _json(_ref("Terms"), "They.")}, who=_MODERATORS,
            body=_object(
                {"blocked": _array(TERM, maxItems=100_000)},
                allowed=_array(TERM, maxItems=100_000), nonce=_or_null(NONCE),
            ),
        ),
    ),
    "/stream/{stream}/held": _path(
        _STREAM,
        get=_operation(
            "held", "What waits for a decision, oldest first.",
            {"200": _json(_ref("Held"), "They.")}, who=_MODERATORS,
            query=[_LIMIT, _query("after", COMMENT_ID, "`next` of the page before.")],
        ),
    ),
    "/stream/{stream}/held/{comment}": _path(
        _COMMENT,
        post=_operation(
            "decide", "Approve or deny a held comment; the first decision wins.",
            {"200": _json(_ref("Decided"), "Done.")}, who=_MODERATORS, problems="409",
            body=_object({"action": {"enum": ["approve", "deny"]}}, nonce=_or_null(NONCE)),
        ),
    ),
    "/stream/{stream}/audit": _path(
        _STREAM,
        get=_operation(
            "audit", "What was done, newest first: by whom, to whom, why.",
            {"200": _json(_ref("Audit"), "One page.")}, who=_MODERATORS, query=[_BEFORE, _LIMIT],
        ),
    ),
    "/stream/{stream}/users/{user}/comments": _path(
        _USER,
        get=_operation(
            "byUser", "All that somebody wrote, deleted and hidden comments too.",
            {"200": _json(_ref("WrittenByUser"), "One page.")},
            who=_MODERATORS, query=[_BEFORE, _LIMIT], problems="400",
        ),
    ),
    "/stream/{stream}/users/{user}/timeout": _path(
        _USER,
        post=_operation(
            "timeout", "Keep somebody from writing for a time; what they wrote goes.",
            {"200": _json(_ref("Sanctioned"), "Done.")}, who=_MODERATORS,
            body=_object({"seconds": SECONDS}, reason=REASON, nonce=_or_null(NONCE)),
        ),
    ),
    "/stream/{stream}/users/{user}/{action}": _path(
        {**_USER, "action": {"enum": ["ban", "unban", "shadow_ban", "unshadow_ban", "kick"]}},
        post=_operation(
            "sanction", "Ban, shadow ban, end either, or close somebody's connections.",
            {"200": _json(_ref("Sanctioned"), "Done.")}, who=_MODERATORS,
            body=_object({}, reason=REASON, nonce=_or_null(NONCE)), body_required=False,
        ),
    ),
    "/stream/{stream}/end": _path(
        _STREAM,
        post=_operation(
            "endStream", "End a stream: nobody writes any more.",
            {"200": _json(_object({"id": STREAM_ID, "offset": OFFSET}), "Done.")},
            who=_MODERATORS, problems="409", idempotent=True,
        ),
    ),
}  # fmt: skip

DOCUMENT: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {
        "title": "uproar",
        "version": __version__,
        "summary": "The live chat behind a live stream.",
        "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
    },
    "paths": PATHS,
    "components": {
        "schemas": SCHEMAS,
        "responses": {
            code: {
                "description": description,
                "content": {"application/problem+json": {"schema": _ref("Problem")}},
                **(
                    {"headers": {"Retry-After": {"schema": {"type": "integer"}}}}
                    if code in ("429", "503")
                    else {}
                ),
            }
            for code, description in _PROBLEMS.items()
        },
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        },
    },
}
