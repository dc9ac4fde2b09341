"""The chat client against a scripted server: retries, errors in one line, tokens, the key."""

import json
import socket
import threading

import pytest

from chat_server import Answer, ChatServer, Refuse, Reset, Say, Send, completion
from stepagent.backends.chat import ChatClient, ChatConfig, ChatError, Message, TooLong, Usage

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


def test_a_reply_has_text_and_tokens_and_the_server_gets_model_messages_and_key() -> None:
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
def test_rate_limits_server_errors_and_lost_connections_are_tried_again(
    faults: list[Answer],
) -> None:
    with ChatServer(script=[*faults, Say("Hi.")]) as server:
        assert client(server, max_retries=3).reply(HELLO).text == "Hi."
    assert len(server.requests) == len(faults) + 1


def test_retries_come_to_an_end() -> None:
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
        (401, "refuses the key, check the environment variable OPENAI_API_KEY; it says: "),
        (403, "refuses the key"),
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
def test_errors_of_servers_with_a_form_of_their_own_are_quoted_too(body: bytes) -> None:
    assert "no such model" in str(error_for(Send(body, status=400)))


@pytest.mark.parametrize(
    "answer",
    [
        Refuse(400, "too much", code="context_length_exceeded"),
        Refuse(400, "This model's maximum context length is 4096 tokens."),
        Refuse(400, "the request exceeds the available context size", code="400"),
    ],
)
def test_too_many_tokens_have_an_error_of_their_own(answer: Answer) -> None:
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
def test_an_answer_of_another_shape_is_an_error(body: bytes) -> None:
    assert "not an answer of a chat completions API" in str(error_for(Send(body)))


def test_a_web_page_is_an_error() -> None:
    page = Send(b"<html>Log in first</html>", "text/html")
    assert "not an answer of a chat completions API" in str(error_for(page))


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


def test_text_that_cannot_be_written_is_replaced() -> None:
    with ChatServer(script=[Say("go \ud800on")]) as server:
        assert client(server).reply(HELLO).text == "go ?on"


@pytest.mark.parametrize("usage", [None, {}])
def test_a_server_that_counts_no_tokens_leaves_them_unknown(usage: object) -> None:
    with ChatServer(script=[Send(changed(usage=usage))]) as server:
        assert client(server).reply(HELLO).usage == Usage(None, None)


def test_a_server_that_is_not_there_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ChatError) as raised:
            ChatClient("m-1", ChatConfig(base_url=url, max_retries=0)).reply(HELLO)
    assert str(raised.value).startswith(f"{url}: cannot be reached (")
    assert str(raised.value).endswith("tried 1 times; is the server running?")


def test_a_server_that_does_not_answer_is_given_up() -> None:
    over = threading.Event()

    def wait(_: object) -> Say:
        over.wait(60)
        return Say("Hi.")

    with ChatServer(answer=wait) as server:
        with pytest.raises(ChatError, match=r"no answer within 0\.2 s, tried 1 times"):
            client(server, timeout_seconds=0.2, max_retries=0).reply(HELLO)
        over.set()


def test_without_a_key_openai_itself_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(ChatError, match="wants a key; set the environment variable OPENAI_API_KEY"):
        ChatClient("m-1", ChatConfig())
    with ChatServer(script=[Say("Hi.")]) as server:  # but a server of one's own is
        assert client(server).reply(HELLO).text == "Hi."


def test_the_address_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatServer(script=[Say("Hi.")]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert ChatClient("m-1", ChatConfig()).reply(HELLO).text == "Hi."


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://", "http://a:b/", "\x1b"])
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(ChatError, match="not the address of a server; expected one") as raised:
        ChatClient("m-1", ChatConfig(base_url=url))
    assert str(raised.value).isprintable()


def test_passwords_in_an_address_are_not_shown() -> None:
    url = "https://me:pass@[::1]:81/v1?token=pass"
    assert ChatClient("m-1", ChatConfig(base_url=url)).url == "https://[::1]:81/v1"


def test_tokens_add_up_and_cost_what_the_prices_say() -> None:
    usage = Usage(1_000_000, 20) + Usage(500_000, 30)
    assert usage == Usage(1_500_000, 50)
    assert usage.cost(2.0, 10.0) == pytest.approx(3.0005)
    assert usage.cost(None, None) is None
    unknown = usage + Usage(None, 5)
    assert unknown == Usage(None, 55)
    assert unknown.cost(2.0, 10.0) is None
