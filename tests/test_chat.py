"""The chat client with a scripted server: retries, errors of one line, token counts, the key."""

import asyncio
import gzip
import json
import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from chat_server import (
    Answer,
    ChatServer,
    Drip,
    Messages,
    Refuse,
    Reset,
    Say,
    Send,
    completion,
)
from stepagent.chat.client import (
    ChatClient,
    ChatConfig,
    ChatError,
    Filtered,
    Message,
    TooLong,
    Usage,
)
from stepagent.chat.http import MAX_BYTES

KEY = "sk-secret-0123456789"
HELLO = [Message("system", "Be brief."), Message("user", "Hello?")]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def client(server: ChatServer, **config: object) -> ChatClient:
    return ChatClient("m-1", ChatConfig(base_url=server.url, **config))  # type: ignore[arg-type]


def error_for(answer: Answer) -> ChatError:
    with ChatServer(script=[answer]) as server, pytest.raises(ChatError) as raised:
        client(server, max_retries=0).reply(HELLO)
    assert str(raised.value).isprintable()
    assert str(raised.value).startswith(f"{server.url}: ")
    return raised.value


def test_a_reply_has_text_and_token_counts_and_the_server_gets_model_messages_and_key() -> None:
    with ChatServer(script=[Say("Hi.")]) as server:
        reply = client(server, max_tokens=7).reply(HELLO)
    assert (reply.text, reply.is_cut_off, reply.usage) == ("Hi.", False, Usage(10, 2))
    assert server.requests == [
        {
            "path": "/v1/chat/completions",
            "model": "m-1",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello?"},
            ],
            "max_completion_tokens": 7,
            "temperature": 0.0,
        }
    ]
    assert server.keys == [f"Bearer {KEY}"]


def test_temperature_none_leaves_it_to_the_server() -> None:
    with ChatServer(script=[Say("Hi.")]) as server:
        client(server, temperature=None).reply(HELLO)
    assert "temperature" not in server.requests[0]


@pytest.mark.parametrize(
    "faults", [[Refuse(429)], [Refuse(500)], [Reset()], [Refuse(503), Refuse(429), Refuse(500)]]
)
def test_rate_limits_server_errors_and_lost_connections_are_retried(
    faults: list[Answer],
) -> None:
    with ChatServer(script=[*faults, Say("Hi.")]) as server:
        assert client(server, max_retries=3).reply(HELLO).text == "Hi."
    assert len(server.requests) == len(faults) + 1


def test_the_number_of_retries_is_limited() -> None:
    with (
        ChatServer(script=[Refuse(429, "slow down")] * 9) as server,
        pytest.raises(ChatError, match=r"error 429, tried 3 times; it says: .*slow down"),
    ):
        client(server, max_retries=2).reply(HELLO)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "error 400 for model 'm-1'; it says: "),
        (401, "rejects the key; check the environment variable OPENAI_API_KEY; it says: "),
        (403, "rejects the key"),
        (404, "no model 'm-1' there, or no chat completions API"),
        (422, "error 422 for model 'm-1'"),
        (500, "error 500, tried 1 times"),
    ],
)
def test_a_refusal_is_one_line_that_quotes_the_server_escaped_and_without_the_key(
    status: int, message: str
) -> None:
    error = error_for(Refuse(status, f"bad\n\x1b[31m {KEY} " + "x" * 10_000))
    assert message in str(error)
    assert "bad\\n\\x1b[31m *** xxx" in str(error)
    assert KEY not in str(error)
    assert len(str(error)) < 700
    assert not isinstance(error, TooLong)


@pytest.mark.parametrize(
    "body", [b'{"detail": "no such model"}', b'{"message": "no such model"}', b"no such model"]
)
def test_errors_in_other_formats_are_quoted_too(body: bytes) -> None:
    assert "no such model" in str(error_for(Send(body, status=400)))


@pytest.mark.parametrize(
    "answer",
    [
        Refuse(400, "too much", code="context_length_exceeded"),
        Refuse(400, "This model's maximum context length is 4096 tokens."),
        Refuse(400, "the request exceeds the available context size", code="400"),
    ],
)
def test_too_many_tokens_raise_their_own_error(answer: Answer) -> None:
    error = error_for(answer)
    assert isinstance(error, TooLong)
    assert "too long for model 'm-1'" in str(error)


def changed(**parts: object) -> bytes:
    return json.dumps(completion(Say("Hi."), "m-1") | parts).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"{'choices'",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"Hi."',
        b"{}",
        changed(choices=None),
        changed(choices=[]),
        changed(choices=[{"index": 0, "finish_reason": "stop", "message": None}]),
        changed(choices=[{"finish_reason": "stop", "message": {"content": ["Hi."]}}]),
        changed(usage={"prompt_tokens": "many", "completion_tokens": 1}),
        changed(usage={"prompt_tokens": -1, "completion_tokens": 1}),
        changed(usage=[1]),
    ],
)
def test_an_answer_of_a_different_shape_is_an_error(body: bytes) -> None:
    assert "not an answer of a chat completions API" in str(error_for(Send(body)))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Send(b"<html>Log in first</html>", "text/html"), "Log in first"),
        (Send(b'data: {"choices": []}\n\ndata: [DONE]\n\n', "text/event-stream"),
         "an event stream, which was not requested"),
        (Send(b'{"choices": [' + b"[" * 100_000), "nested too deeply"),
        (Send(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deeply"),
        (Send('{"choices": "h\xe9"}'.encode("latin-1"), "application/json; charset=latin-1"),
         "not UTF-8 text"),
        (Send(changed(choices=None, info="nothing today")), "nothing today"),
        (Send(changed(usage={"prompt_tokens": 10**400})), "token counts are not numbers"),
        (Send(changed(usage={"prompt_tokens": True})), "token counts are not numbers"),
    ],
)  # fmt: skip
def test_the_error_of_an_unreadable_answer_says_what_came_instead(
    answer: Answer, reason: str
) -> None:
    error = str(error_for(answer))
    assert "not an answer of a chat completions API" in error
    assert reason in error
    assert len(error) < 600


def test_deep_json_in_an_error_is_one_line_too() -> None:
    assert "error 400" in str(error_for(Send(b'{"error":' * 50_000, status=400)))


@pytest.mark.parametrize("finish_reason", ["stop", "tool_calls"])
def test_a_reply_may_be_empty(finish_reason: str) -> None:
    with ChatServer(script=[Say(None, finish_reason), Say("")]) as server:
        for _ in range(2):
            reply = client(server).reply(HELLO)
            assert (reply.text, reply.is_cut_off) == ("", False)


@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
def test_a_reply_that_was_cut_off_says_so(finish_reason: str) -> None:
    with ChatServer(script=[Say("go o", finish_reason)]) as server:
        reply = client(server).reply(HELLO)
    assert (reply.text, reply.is_cut_off) == ("go o", True)


def test_text_that_cannot_be_encoded_is_replaced() -> None:
    with ChatServer(script=[Say("go \ud800on")]) as server:
        assert client(server).reply(HELLO).text == "go ?on"


@pytest.mark.parametrize("usage", [None, {}])
def test_a_server_that_counts_no_tokens_leaves_them_unknown(usage: object) -> None:
    with ChatServer(script=[Send(changed(usage=usage))]) as server:
        assert client(server).reply(HELLO).usage == Usage(None, None)


@pytest.mark.parametrize(
    ("answer", "text", "thought"),
    [
        (Say("go on", more={"reasoning_content": " Hm. "}), "go on", "Hm."),
        (Say("go on", more={"reasoning": "Hm.", "reasoning_content": "Hm."}), "go on", "Hm."),
        (Say("go on", more={"reasoning": "Hm.", "reasoning_content": None}), "go on", "Hm."),
        (Say("go on", more={"reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]}),
         "go on", "Hm."),
        (Say(None, more={"reasoning_content": "Hm."}), "", "Hm."),
        (Say(None, more={"refusal": "I must not."}), "", "I must not."),
        (Say([{"type": "text", "text": "go "}, {"type": "text", "text": "on"}]), "go on", ""),
        (Say([{"text": "go on"}]), "go on", ""),
        (Say([{"type": "thinking", "thinking": "Hm.", "signature": "x"},
              {"type": "text", "text": "go on"}]), "go on", "Hm."),
        (Say([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
              {"type": "text", "text": "go on"}]), "go on", "Hm."),
        (Say([{"type": "tool_use", "name": "x", "input": {}}], "tool_calls",
             {"tool_calls": [{"id": "1"}]}), "", ""),
        (Say([]), "", ""),
        (Say("go on", more={"tool_calls": [{"id": "1"}], "reasoning": None, "refusal": None}),
         "go on", ""),
    ],
)  # fmt: skip
def test_text_and_thought_are_found_in_every_format(answer: Say, text: str, thought: str) -> None:
    with ChatServer(script=[answer]) as server:
        reply = client(server).reply(HELLO)
    assert (reply.text, reply.thought, reply.is_cut_off) == (text, thought, False)


def test_a_part_that_is_not_text_is_an_error() -> None:
    error = error_for(Say([{"type": "image_url", "image_url": {"url": "http://a/"}}]))
    assert "has a part that is not text: image_url" in str(error)


def test_tool_calls_cause_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    calls = Say(None, "tool_calls", {"tool_calls": [{"id": "1"}]})
    with ChatServer(script=[calls, calls]) as server:
        model = client(server)
        assert [model.reply(HELLO).text for _ in range(2)] == ["", ""]
    assert [r.message for r in caplog.records] == [
        "m-1: calls tools, but was offered none; such a reply is an empty action"
    ]


def broken(choice: dict[str, object], **parts: object) -> Send:
    message = {"role": "assistant", "content": ""}
    return Send(changed(choices=[{"index": 0, "message": message, **choice}], **parts))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (broken({"finish_reason": "error", "error": {"code": 502, "message": "it broke"}}),
         "error 502, tried 2 times; it says: 'it broke"),
        (broken({"finish_reason": "stop", "error": {"message": "it broke"}}), "it broke"),
        (Say("Action: o", "error"), "a reply that ended with error"),
        (Say("Action: o", "abort"), "a reply that ended with abort"),
        (Say("", "we\nird"), "a reply that ended with we\\nird"),
        (Send(b'{"error": {"code": 503, "message": "it broke"}}'), "error 503, tried 2 times"),
        (Send(b'{"error": {"message": "overloaded"}, "choices": null}'), "tried 2 times"),
        (Send(b'{"error": "Rate limit", "choices": []}'), "'Rate limit'"),
        (Send(b'[{"error": {"code": 429, "message": "it broke"}}]'), "error 429, tried 2 times"),
        (Send(changed(choices=[])), "not an answer of a chat completions API"),
        (Send(changed(choices=None)), "not an answer of a chat completions API"),
    ],
)  # fmt: skip
def test_an_error_in_place_of_a_reply_is_retried(answer: Answer, said: str) -> None:
    with ChatServer(script=[answer, Say("Hi.")]) as server:
        assert client(server, max_retries=1).reply(HELLO).text == "Hi."
    with (
        ChatServer(script=[answer, answer]) as server,
        pytest.raises(ChatError) as raised,
    ):
        client(server, max_retries=1).reply(HELLO)
    assert said in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("code", "message"),
    [(401, "rejects the key"), (404, "no model 'm-1' there"), (400, "error 400 for model 'm-1'")],
)
def test_a_permanent_error_with_status_200_is_not_retried(code: int, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": "so it is"}}).encode()
    with ChatServer(script=[Send(body)]) as server, pytest.raises(ChatError) as raised:
        client(server).reply(HELLO)
    assert message in str(raised.value)
    assert "so it is" in str(raised.value)
    assert len(server.requests) == 1


def test_a_reply_that_ends_for_an_unknown_reason_counts_as_cut_off() -> None:
    with ChatServer(script=[Say("go on", "weird"), Say("go on", None)]) as server:
        model = client(server)
        assert [model.reply(HELLO).is_cut_off for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "answer",
    [
        Refuse(400, "The prompt triggers our content management policy.", "content_filter"),
        Say(None, "content_filter"),
        broken({"finish_reason": "SAFETY"}),
        Send(b'{"error": {"code": 403, "message": "Your input was flagged"}}'),
    ],
)
def test_a_rejection_by_a_content_filter_raises_its_own_error(answer: Answer) -> None:
    assert isinstance(error_for(answer), Filtered)


@pytest.mark.parametrize("finish_reason", ["length", "MAX_TOKENS", "model_length"])
def test_a_reply_of_reasoning_alone_has_no_text(finish_reason: str) -> None:
    with ChatServer(script=[Say("", finish_reason, {"reasoning": "Hm"})]) as server:
        reply = client(server, max_retries=0).reply(HELLO)
    assert (reply.text, reply.thought, reply.is_cut_off) == ("", "Hm", True)


@pytest.mark.parametrize(
    "answer",
    [
        Say(None, "model_context_window_exceeded"),
        Send(b'{"error": {"code": 400, "message": "prompt is too long: 9 tokens > 8 maximum"}}'),
        Send(b"<html>413 Request Entity Too Large</html>", "text/html", 413),
        Refuse(500, "context size exceeded: too many tokens"),
    ],
)
def test_too_long_is_recognized_with_any_status(answer: Answer) -> None:
    assert isinstance(error_for(answer), TooLong)


NO_SYSTEM = Refuse(400, "System role not supported")
NO_TEMPERATURE = Refuse(400, "Unsupported parameter: 'temperature' is not supported.")
NO_LIMIT = Refuse(422, "Unrecognized request argument supplied: max_completion_tokens")


def test_an_option_that_a_server_rejects_is_left_out_from_then_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script: list[Answer] = [NO_SYSTEM, NO_LIMIT, NO_TEMPERATURE]
    with ChatServer(answer=lambda _: Say("Hi."), script=script) as server:
        model = client(server, max_retries=0)
        assert [model.reply(HELLO).text for _ in range(2)] == ["Hi.", "Hi."]
    assert len(server.requests) == 5
    for request in server.requests[3:]:
        assert request == {
            "path": "/v1/chat/completions",
            "model": "m-1",
            "messages": [{"role": "user", "content": "Be brief.\n\nHello?"}],
            "max_tokens": 512,
        }
    assert [r.message for r in caplog.records] == [
        "m-1: rejects the system role; the rules now precede the first user message",
        "m-1: rejects max_completion_tokens; max_tokens is sent instead",
        "m-1: rejects temperature; the server chooses one",
    ]


def test_a_server_that_keeps_rejecting_options_is_an_error() -> None:
    for refusal in (NO_SYSTEM, NO_TEMPERATURE, NO_LIMIT):
        with (
            ChatServer(answer=lambda _, refusal=refusal: refusal) as server,  # type: ignore[misc]
            pytest.raises(ChatError, match="error 4"),
        ):
            client(server).reply(HELLO)
        assert len(server.requests) == 2


def test_options_can_say_from_the_start_what_a_server_rejects() -> None:
    with ChatServer(script=[Say("Hi.")]) as server:
        client(server, max_tokens_field="max_tokens", system_role=False).reply(HELLO)
    request = server.requests[0]
    assert request["max_tokens"] == 512
    assert "max_completion_tokens" not in request
    assert request["messages"] == [{"role": "user", "content": "Be brief.\n\nHello?"}]


def test_several_threads_learn_of_a_rejected_option_and_warn_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    together = threading.Barrier(4)

    def answer(messages: Messages) -> Answer:
        if messages[0]["role"] == "system":
            together.wait(60)
            return NO_SYSTEM
        return Say("Hi.")

    with ChatServer(answer=answer) as server, ThreadPoolExecutor(4) as pool:
        model = client(server, max_retries=0)
        replies = list(pool.map(lambda _: model.reply(HELLO).text, range(4)))
    assert replies == ["Hi."] * 4
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "drip",
    [Drip(b" ", 0.05), Drip(b"X-A: b\r\n", 0.05, is_header=True), Drip(b"data: 1\n\n", 0.05)],
)
def test_an_endless_answer_is_given_up(drip: Drip) -> None:
    with (
        ChatServer(script=[drip]) as server,
        pytest.raises(ChatError, match=r"no answer within 0\.4 s, tried 1 times"),
    ):
        client(server, timeout_seconds=0.4, max_retries=0).reply(HELLO)


def packed(content: bytes, encoding: str = "gzip", status: int = 200) -> Send:
    compress = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)
    return Send(compress(content), status=status, headers={"Content-Encoding": encoding})


BOMB = b'{"a": "' + b"a" * (MAX_BYTES + 1)


@pytest.mark.parametrize(
    "answer",
    [
        Drip(b"a" * 2**20),
        packed(BOMB),
        packed(BOMB, "deflate"),
        packed(BOMB, status=400),
    ],
)
def test_an_answer_that_is_too_large_is_not_read(answer: Answer) -> None:
    assert "no usable answer: 'longer than 16 MiB'" in str(error_for(answer))


def test_compressed_answers_are_read_or_refused_although_not_requested() -> None:
    for encoding in ("gzip", "deflate"):
        with ChatServer(script=[packed(changed(), encoding)]) as server:
            assert client(server).reply(HELLO).text == "Hi."
    for encoding in ("br", "zstd", "gzip, gzip"):
        assert "which was not requested" in str(error_for(packed(b"x", encoding)))
    bad = Send(b"no gzip", headers={"Content-Encoding": "gzip"})
    assert "cannot be decompressed" in str(error_for(bad))


def test_redirects_are_followed_only_within_the_server() -> None:
    with ChatServer(answer=lambda _: Say("Hi.")) as other, ChatServer() as server:
        server.script += [Send(b"", status=307, headers={"Location": "/v2/chat"}), Say("Hi.")]
        assert client(server).reply(HELLO).text == "Hi."
        assert server.requests[1]["path"] == "/v2/chat"
        for status in (301, 302, 303, 307, 308):
            away = {"Location": f"{other.url}/chat/completions"}
            server.script.append(Send(b"", status=status, headers=away))
            with pytest.raises(ChatError, match="redirects to") as raised:
                client(server).reply(HELLO)
            assert f"redirects to {other.url}/chat/completions; if that is" in str(raised.value)
        server.answer = lambda _: Send(b"", status=308, headers={"Location": "/v1"})
        with pytest.raises(ChatError, match="redirects more than 3 times"):
            client(server).reply(HELLO)
    assert other.requests == []


@pytest.mark.parametrize(
    ("key", "echo"),
    [
        (KEY, KEY),
        (KEY, KEY.upper()),
        (KEY, KEY[:15]),
        (KEY, KEY[4:]),
        ("sk+se/cret=0123456789", "sk%2Bse%2Fcret%3D0123456789"),
        ("sk+se/cret=0123456789", "sk%2bse%2fcret%3d0123456789"),
    ],
)
def test_the_key_is_in_no_message_however_the_server_repeats_it(
    key: str, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    for answer in (
        Refuse(400, f"bad key {echo}!"),
        Send(f"<html>bad key {echo}!".encode()),
        Send(b"", status=307, headers={"Location": f"http://a/bad key {echo}!"}),
        Say("", f"bad key {echo}!"),
    ):
        error = str(error_for(answer))
        assert echo.lower() not in error.lower()
        assert "***" in error


def test_the_key_is_in_no_reply_either() -> None:
    with ChatServer(script=[Say(f"go {KEY}", more={"reasoning": f"so {KEY}"})]) as server:
        reply = client(server).reply(HELLO)
    assert (reply.text, reply.thought) == ("go ***", "so ***")


def test_an_invalid_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")  # as $(cat FILE) can make it
    with ChatServer(script=[Say("Hi.")]) as server:
        client(server).reply(HELLO)
    assert server.keys == [f"Bearer {KEY}"]
    for key in (f"{KEY}\n{KEY}", f"{KEY}\xe9"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ChatError, match="OPENAI_API_KEY: not a key") as raised:
            ChatClient("m-1", ChatConfig())
        assert KEY not in str(raised.value)


def test_messages_with_lone_surrogates_can_be_sent() -> None:
    with ChatServer(script=[Say("Hi.")]) as server:
        client(server).reply([Message("user", "go \ud800on \u65e5")])
    assert server.requests[0]["messages"][0]["content"] == "go ?on \u65e5"


def test_a_client_works_inside_a_running_event_loop() -> None:
    async def ask() -> str:
        return client(server).reply(HELLO).text

    with ChatServer(script=[Say("Hi.")]) as server:
        assert asyncio.run(ask()) == "Hi."


def test_an_unreachable_server_is_an_error_of_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ChatError) as raised:
            ChatClient("m-1", ChatConfig(base_url=url, max_retries=0)).reply(HELLO)
    assert str(raised.value).startswith(f"{url}: cannot be reached (")
    assert str(raised.value).endswith("tried 1 times; check that the server is running")


def test_a_server_that_does_not_answer_is_given_up() -> None:
    over = threading.Event()

    def wait(_: object) -> Say:
        over.wait(60)
        return Say("Hi.")

    with ChatServer(answer=wait) as server:
        with pytest.raises(ChatError, match=r"no answer within 0\.2 s, tried 1 times"):
            client(server, timeout_seconds=0.2, max_retries=0).reply(HELLO)
        over.set()


def test_openai_itself_requires_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(
        ChatError, match="requires a key; set the environment variable OPENAI_API_KEY"
    ):
        ChatClient("m-1", ChatConfig())
    with ChatServer(script=[Say("Hi.")]) as server:  # but one's own server does not
        assert client(server).reply(HELLO).text == "Hi."


def test_the_address_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(script=[Say("Hi.")]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert ChatClient("m-1", ChatConfig()).reply(HELLO).text == "Hi."


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://", "http://a:b/", "\x1b"])
def test_an_invalid_address_is_an_error_of_one_line(url: str) -> None:
    with pytest.raises(ChatError, match="not a server address; expected one") as raised:
        ChatClient("m-1", ChatConfig(base_url=url))
    assert str(raised.value).isprintable()


def test_passwords_in_an_address_are_not_shown() -> None:
    url = "https://me:pass@[::1]:81/v1?token=pass"
    assert ChatClient("m-1", ChatConfig(base_url=url)).url == "https://[::1]:81/v1"


def test_tokens_add_up_and_the_cost_follows_from_the_prices() -> None:
    usage = Usage(1_000_000, 20) + Usage(500_000, 30)
    assert usage == Usage(1_500_000, 50)
    assert usage.cost(2.0, 10.0) == pytest.approx(3.0005)
    assert usage.cost(None, None) is None
    unknown = usage + Usage(None, 5)
    assert unknown == Usage(None, 55)
    assert unknown.cost(2.0, 10.0) is None
